// Typed dispatch: calls f with a tag that carries the C++ type of a tensor's dtype.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

namespace mixer_kernels {

template <typename T>
struct TypeTag {
  using type = T;
};

template <typename F>
void dispatch_floating(c10::ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return f(TypeTag<float>{});
    case c10::ScalarType::Double:
      return f(TypeTag<double>{});
    case c10::ScalarType::Half:
      return f(TypeTag<c10::Half>{});
    case c10::ScalarType::BFloat16:
      return f(TypeTag<c10::BFloat16>{});
    default:
      TORCH_CHECK_TYPE(false, op, ": x must have dtype float32, float16, bfloat16 or float64, got ", dtype);
  }
}

}  // namespace mixer_kernels
