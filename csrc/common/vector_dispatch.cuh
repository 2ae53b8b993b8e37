// Which element type, and which vectors of it, a kernel is launched with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "common/cuda.cuh"
#include "common/element_type.h"

namespace mixer_kernels {

// Calls f with a value of the C++ type of an element, of kernels that take no double.
template <typename F>
void dispatch_up_to_float(ElementType type, F&& f) {
  switch (type) {
    case ElementType::kHalf:
      return f(__half{});
    case ElementType::kBFloat16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

template <int kVec_>
struct VectorLength {
  static constexpr int kVec = kVec_;
};

// Calls f with the element type and the length of vectors: of 16 bytes if they are wanted and divide `size`, else of
// one element.
template <typename F>
void dispatch_vectors(ElementType type, bool wants_vectors, int64_t size, F&& f) {
  dispatch_up_to_float(type, [&](auto element) {
    constexpr int kVec = 16 / sizeof(element);
    if (wants_vectors && size % kVec == 0) {
      f(element, VectorLength<kVec>{});
    } else {
      f(element, VectorLength<1>{});
    }
  });
}

inline bool are_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; });
}

}  // namespace mixer_kernels
