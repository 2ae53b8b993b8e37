// From a tensor's dtype to the element type that launchers take.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

#include "common/dispatch.h"
#include "common/element_type.h"

namespace mixer_kernels {

inline ElementType element_type_of(const at::Tensor& x, const char* op) {
  ElementType type{};
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    type = std::is_same_v<scalar_t, float>       ? ElementType::kFloat
           : std::is_same_v<scalar_t, double>    ? ElementType::kDouble
           : std::is_same_v<scalar_t, c10::Half> ? ElementType::kHalf
                                                 : ElementType::kBFloat16;
  });
  return type;
}

}  // namespace mixer_kernels
