// Sums over the lanes of a warp, in a fixed order.
#pragma once

#include "common/cuda.cuh"

namespace mixer_kernels {

// Over the lanes whose numbers differ in the bits from kFirst to kLast; every one of them gets the sum.
template <int kFirst, int kLast>
__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
  for (int mask = kLast; mask >= kFirst; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

__device__ __forceinline__ float warp_sum(float value) { return sum_lanes<1, 16>(value); }

}  // namespace mixer_kernels
