// Typed dispatch: calls f with a tag that carries the C++ type of a tensor's dtype.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <type_traits>

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

// Calls f with a tag of how AMX multiplies: float32 in three parts, or in two, which keep more digits than TF32.
template <template <typename, int> class AmxProduct, typename scalar_t, typename F>
auto with_amx_product(bool allow_tf32, const F& f) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    if (allow_tf32) return f(TypeTag<AmxProduct<float, 2>>{});
  }
  return f(TypeTag<AmxProduct<scalar_t, 3>>{});
}

}  // namespace mixer_kernels
