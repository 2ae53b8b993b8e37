// The forward pass of token mixing's MLP in one kernel, for half types and numbers of tokens around 196, on the
// warpgroups of Hopper.
//
// Channels are the rows of both products: h^T = act(n^T weight1^T + bias1), y^T = x^T + h^T weight2^T + bias2. A
// warpgroup takes 64 channels of one image with all their tokens. It keeps n^T in registers, the first product's first
// operand, and the sums of y^T; 64 hidden units at a time are the accumulators of the first product and, rounded, the
// first operand of the second one, in the same lanes. So neither n nor h is ever in memory, and x is transposed by
// the instructions that load fragments from shared memory, y by those that store them.
//
// Only the weights move, a chunk of one and of the other in turns. Both warpgroups of a block read each slot; while one
// activates, the other multiplies.
#pragma once

#include <cstdint>

#include "common/activation.cuh"
#include "common/vector.cuh"
#include "common/warpgroup_tile.cuh"
#include "token_mixing/token_norm.cuh"
#include "token_mixing/warpgroup_weights.cuh"

namespace mixer_kernels {

struct WarpgroupMlp : WarpgroupTile {
  static constexpr int kUnits = UnitChunk::kUnits;
  static constexpr int kSharedBytes = kAlignment + UnitChunk::kRingBytes + kFeatureBytes;
  static_assert(kSharedBytes <= kMostShared);
};

template <typename scalar_t>
struct WarpgroupMlpArguments {
  Operand<scalar_t> x;
  NormParameters<scalar_t> norm;
  int channels;             // of x's columns
  const float* statistics;  // mean and rstd of each token, kTokens of an image, zeros beyond
  MlpWeights<scalar_t> weights;
  TokenOutput<scalar_t> y;
};

#if defined(MIXER_KERNELS_WARPGROUPS)

// n^T of a warp's 16 channels as fragments, from x in shared memory.
template <typename scalar_t>
__device__ __forceinline__ void load_normalised(uint32_t (&n)[WarpgroupMlp::kSteps][4], const scalar_t* rows,
                                                const WarpgroupMlpArguments<scalar_t>& arguments, int image,
                                                int channel) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* statistics =
      arguments.statistics + (static_cast<int64_t>(image) * WarpgroupMlp::kTokens + lane % 4 * 2) * 2;
  float weight[2], bias[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = channel + lane / 4 + half * 8;
    float loaded[2][1] = {};
    if (own < arguments.channels) {
      arguments.norm.load_weight(loaded[0], own);
      arguments.norm.load_bias(loaded[1], own);
    }
    weight[half] = loaded[0][0];
    bias[half] = loaded[1][0];
  }
#pragma unroll
  for (int k = 0; k < WarpgroupMlp::kSteps; ++k) {
    uint32_t x[4];
    ldmatrix_transposed(x, rows + k * kStepElements);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float token[4];  // mean and rstd of two
      load_floats(token, statistics + (k * 16 + i / 2 * 8) * 2);
      float pair[2];
      to_floats(pair, Vector<scalar_t, 2>{x[i]});
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        pair[j] = (pair[j] - token[2 * j]) * token[2 * j + 1] * weight[i % 2] + bias[i % 2];
      }
      n[k][i] = pack_pair<scalar_t>(pair[0], pair[1]);
    }
  }
}

// The activated hidden units, rounded, as the first operand of the second product.
template <Activation kActivation, typename scalar_t>
__device__ __forceinline__ void activate_units(uint32_t (&h)[WarpgroupMlp::kUnits / 16][4],
                                               const float (&z)[WarpgroupMlp::kUnits / 2]) {
#pragma unroll
  for (int pair = 0; pair < WarpgroupMlp::kUnits / 4; ++pair) {
    h[pair / 4][pair % 4] = pack_pair<scalar_t>(activate<kActivation, false>(z[pair * 2]).value,
                                                activate<kActivation, false>(z[pair * 2 + 1]).value);
  }
}

// x of a warp's 16 channels in shared memory becomes y.
template <typename scalar_t>
__device__ __forceinline__ void add_update(scalar_t* rows, const float (&update)[WarpgroupMlp::kTokens / 2],
                                           const float* bias2) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < WarpgroupMlp::kSteps; ++k) {
    uint32_t words[4];
    ldmatrix_transposed(words, rows + k * kStepElements);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float pair[2], bias[2];
      to_floats(pair, Vector<scalar_t, 2>{words[i]});
      load_floats(bias, bias2 + k * 16 + i / 2 * 8 + lane % 4 * 2);
      const float* own = update + k * 8 + i * 2;
      words[i] = pack_pair<scalar_t>(pair[0] + (own[0] + bias[0]), pair[1] + (own[1] + bias[1]));
    }
    stmatrix_transposed(rows + k * kStepElements, words);
  }
}

#endif  // MIXER_KERNELS_WARPGROUPS

template <typename scalar_t, Activation kActivation>
__global__ void __launch_bounds__(WarpgroupMlp::kThreads, 1)
    warpgroup_mlp_kernel(const __grid_constant__ WarpgroupMlpArguments<scalar_t> arguments) {
#if defined(MIXER_KERNELS_WARPGROUPS)
  using Mlp = WarpgroupMlp;
  unsigned char* shared = aligned_shared();
  WeightStream<scalar_t> stream(shared, arguments.weights, tiles_of_block(warpgroup_tiles(arguments.x)));
  auto* stages = reinterpret_cast<scalar_t*>(shared + UnitChunk::kRingBytes);
  for_each_tile(arguments.x, arguments.y, stages, [&](scalar_t* rows, int image, int channel) {
    uint32_t n[Mlp::kSteps][4];
    load_normalised(n, rows, arguments, image, channel);
    float y[Mlp::kTokens / 2] = {};
    float z[Mlp::kUnits / 2];
    uint32_t h[Mlp::kUnits / 16][4];
#pragma unroll 1
    for (int chunk = 0; chunk < arguments.weights.chunks; ++chunk) {
      load_bias1(z, arguments.weights, chunk);
      const scalar_t* weight1 = stream.next();
      wgmma_wait<scalar_t, 0>(y);
      if (chunk > 0) stream.release(2);  // the second weights of the chunk before
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Mlp::kSteps; ++k) {
        wgmma<scalar_t>(z, n[k], UnitChunk::Rows::descriptor(weight1, k), true);
      }
      wgmma_commit();
      stream.refill();
      wgmma_wait<scalar_t, 0>(z);
      stream.release(1);

      activate_units<kActivation, scalar_t>(h, z);

      const scalar_t* weight2 = stream.next();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Mlp::kUnits / 16; ++k) {
        wgmma<scalar_t>(y, h[k], matrix_descriptor<128>(weight2 + k * 16), true);
      }
      wgmma_commit();
      stream.refill();
    }
    wgmma_wait<scalar_t, 0>(y);
    stream.release(1);
    add_update(rows, y, arguments.weights.bias2);
  });
#endif
}

}  // namespace mixer_kernels
