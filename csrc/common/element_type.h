// The element types that every kernel takes, named without torch.
#pragma once

#include <cstdint>

namespace mixer_kernels {

enum class ElementType : int8_t { kFloat, kDouble, kHalf, kBFloat16 };

constexpr int element_size(ElementType type) {
  return type == ElementType::kDouble ? 8 : type == ElementType::kFloat ? 4 : 2;
}

}  // namespace mixer_kernels
