// The forward pass for numbers of tokens around 196, in half types, on the warpgroups of Hopper.
//
// The whole weight stays in shared memory while the tiles pass: x is read once, as the first operand of the product and
// as the residual, and y takes its place before it is stored. One warpgroup multiplies while the other one does
// everything else.
#pragma once

#include <cstdint>

#include "affine_token_linear/affine_fold.cuh"
#include "common/opaque.cuh"
#include "common/vector.cuh"
#include "common/warpgroup_tile.cuh"

namespace mixer_kernels {

struct WarpgroupLinear : WarpgroupTile {
  using Weight = BlockedWeight<kTokens>;
  static constexpr int kSharedBytes = kAlignment + Weight::kBytes + kFeatureBytes + 8;
  static_assert(kSharedBytes <= kMostShared);
};

template <typename scalar_t>
struct WarpgroupLinearArguments {
  Operand<scalar_t> x;
  const scalar_t* weight;  // as WarpgroupLinear::Weight lays it out
  Folded folded;           // kTokens rows of the weight
  TokenOutput<scalar_t> y;
};

template <typename scalar_t>
__global__ void __launch_bounds__(WarpgroupTile::kThreads, 1)
    warpgroup_linear_kernel(const __grid_constant__ WarpgroupLinearArguments<scalar_t> arguments) {
#if defined(MIXER_KERNELS_WARPGROUPS)
  using Linear = WarpgroupLinear;
  unsigned char* shared = aligned_shared();
  auto* weight = reinterpret_cast<scalar_t*>(shared);
  auto* stages = reinterpret_cast<scalar_t*>(shared + Linear::Weight::kBytes);
  auto* barrier = reinterpret_cast<SharedBarrier*>(shared + Linear::Weight::kBytes + Linear::kFeatureBytes);
  if (threadIdx.x == 0) barrier->init(1);
  __syncthreads();
  if (threadIdx.x == 0) barrier->arrive_with_copy(weight, arguments.weight, Linear::Weight::kBytes);

  const Folded& folded = arguments.folded;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for_each_tile(arguments.x, arguments.y, stages, [&](scalar_t* rows, int, int channel) {
    uint32_t x[Linear::kSteps][4];
#pragma unroll
    for (int k = 0; k < Linear::kSteps; ++k) ldmatrix_transposed(x[k], rows + k * kStepElements);
    barrier->wait(0);
    float product[Linear::kTokens / 2];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Linear::kSteps; ++k) {
      wgmma<scalar_t>(product, x[k], Linear::Weight::descriptor(weight, k), k > 0);
    }
    wgmma_commit();
    float scale[2], shift[2], layer_scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = channel + lane / 4 + half * 8;
      scale[half] = folded.scale[own];
      shift[half] = folded.shift[own];
      layer_scale[half] = folded.layer_scale[own];
    }
    wgmma_wait<scalar_t, 0>(product);

    int first_token = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < Linear::kSteps; ++k) {
      make_opaque(first_token);  // so that its loads wait until registers are free
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first_token + k * 16 + i / 2 * 8, half = i % 2;
        float pair[2], row_sum[2], bias[2];
        to_floats(pair, Vector<scalar_t, 2>{x[k][i]});
        load_floats(row_sum, folded.row_sums + token);
        load_floats(bias, folded.bias + token);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float update = scale[half] * product[k * 8 + i * 2 + j];
          pair[j] += update + (shift[half] * row_sum[j] + layer_scale[half] * bias[j]);
        }
        words[i] = pack_pair<scalar_t>(pair[0], pair[1]);
      }
      stmatrix_transposed(rows + k * kStepElements, words);
    }
  });
#endif
}

}  // namespace mixer_kernels
