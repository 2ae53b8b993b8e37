// What Affine, bias and LayerScale come to once they are folded out of the product: a few numbers for each channel and
// each token, in float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "affine_token_linear/affine_token_linear.h"
#include "common/channel_parameter.cuh"
#include "common/token_linear.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"
#include "common/warpgroup_tile.cuh"

namespace mixer_kernels {

constexpr int kFoldThreads = 256;
constexpr int kFoldWarps = kFoldThreads / 32;

// y = x + scale * (weight x) + shift * row_sums + layer_scale * bias, with scale = layer_scale * alpha and
// shift = layer_scale * beta. Arrays of the channels go on with zeros for `padded_channels`.
struct Folded {
  float *alpha, *beta, *layer_scale, *scale, *shift;
  float *row_sums, *bias;  // of the weight's rows, zeros beyond
  float* unit;             // a power of two, more than every |scale| and |shift|
};

template <typename scalar_t>
struct FoldArguments {
  ChannelParameter alpha, beta, layer_scale;
  int channels, padded_channels;
  const scalar_t *weight, *bias;
  int tokens;
  Folded to;
  // A copy of the weight with zeros beyond it, of this many rows and columns; null if not wanted.
  scalar_t* copy;
  int rows, columns;
  bool is_blocked;  // as the warpgroups want it
};

// The power of two above a value; 1 where there is none that is normal together with its inverse.
__device__ __forceinline__ float power_of_two_above(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t exponent = bits >> 23;
  const uint32_t power = exponent == 0 || exponent >= 252 ? 127u << 23 : (exponent + 1) << 23;
  float result;
  memcpy(&result, &power, sizeof(result));
  return result;
}

template <typename scalar_t>
__device__ __forceinline__ void fold_channels(const FoldArguments<scalar_t>& arguments) {
  __shared__ float largest_of_warp[kFoldWarps];
  const Folded& to = arguments.to;
  float largest = 0.0f;
  for (int channel = static_cast<int>(threadIdx.x); channel < arguments.padded_channels; channel += kFoldThreads) {
    float alpha = 0.0f, beta = 0.0f, layer_scale = 0.0f;
    if (channel < arguments.channels) {
      alpha = channel_value<scalar_t>(arguments.alpha, channel, 1.0f);
      beta = channel_value<scalar_t>(arguments.beta, channel, 0.0f);
      layer_scale = channel_value<scalar_t>(arguments.layer_scale, channel, 1.0f);
    }
    to.alpha[channel] = alpha;
    to.beta[channel] = beta;
    to.layer_scale[channel] = layer_scale;
    to.scale[channel] = layer_scale * alpha;
    to.shift[channel] = layer_scale * beta;
    largest = fmaxf(largest, fmaxf(fabsf(layer_scale * alpha), fabsf(layer_scale * beta)));
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
  if (threadIdx.x % 32 == 0) largest_of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x > 0) return;
#pragma unroll
  for (int warp = 1; warp < kFoldWarps; ++warp) largest = fmaxf(largest, largest_of_warp[warp]);
  *to.unit = power_of_two_above(largest);
}

// The first block takes the channels, every other one 8 rows of the weight, a warp each.
template <typename scalar_t>
__global__ void __launch_bounds__(kFoldThreads) fold_kernel(const __grid_constant__ FoldArguments<scalar_t> arguments) {
  if (blockIdx.x == 0) {
    fold_channels(arguments);
    return;
  }
  const int row = static_cast<int>(blockIdx.x - 1) * kFoldWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, tokens = arguments.tokens;
  if (row >= arguments.rows) return;
  const scalar_t* weight = arguments.weight + static_cast<int64_t>(row) * tokens;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = lane; i < arguments.columns; i += 32) {
    const scalar_t value = row < tokens && i < tokens ? weight[i] : from_acc<scalar_t>(0.0f);
    sum += to_acc(value);
    if (arguments.copy == nullptr) continue;
    const int64_t at = arguments.is_blocked ? BlockedWeight<WarpgroupTile::kTokens>::offset(row, i)
                                            : static_cast<int64_t>(row) * arguments.columns + i;
    arguments.copy[at] = value;
  }
  sum = warp_sum(sum);
  if (lane > 0) return;
  arguments.to.row_sums[row] = sum;
  arguments.to.bias[row] = bias_at(arguments.bias, row, tokens);
}

}  // namespace mixer_kernels
