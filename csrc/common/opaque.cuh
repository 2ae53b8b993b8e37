// Values that the compiler knows nothing about.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"

namespace mixer_kernels {

// From here on the compiler takes the value for any other: it neither keeps what it has computed from it so far, nor
// computes the value itself a second time. For kernels that are short of registers or of instructions.
__device__ __forceinline__ void make_opaque([[maybe_unused]] int& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
}
__device__ __forceinline__ void make_opaque([[maybe_unused]] int64_t& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(value));
#endif
}

}  // namespace mixer_kernels
