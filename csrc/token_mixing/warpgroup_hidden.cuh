// The hidden layer in the backward pass of token mixing, for half types and numbers of tokens around 196, on the
// warpgroups of Hopper: h = act(z + bias1) and dz = dh act'(z + bias1), where z = weight1 n and dh = weight2^T dy.
//
// As in warpgroup_mlp.cuh channels are the rows of the products, and a warpgroup takes 64 of them with all tokens: n^T
// and dy^T stay in registers, the weights stream. The results of 64 hidden units are turned in shared memory, each
// warp's own.
#pragma once

#include <cstdint>

#include "common/activation.cuh"
#include "common/vector.cuh"
#include "common/warpgroup_tile.cuh"
#include "token_mixing/warpgroup_weights.cuh"

namespace mixer_kernels {

struct WarpgroupHidden : WarpgroupTile {
  static constexpr int kUnits = UnitChunk::kUnits;
  static constexpr int kTurnElements = kUnits * 16;  // of a warp's results, 16 channels of each unit
  static constexpr int kTurnBytes = kThreads / 32 * kTurnElements * 2;
  static constexpr int kSharedBytes = kAlignment + UnitChunk::kRingBytes + kFeatureBytes + kTurnBytes;
  static_assert(kSharedBytes <= kMostShared);
};

template <typename scalar_t>
struct WarpgroupHiddenArguments {
  Operand<scalar_t> n, dy;
  MlpWeights<scalar_t> weights;  // the second one transposed
  TokenOutput<scalar_t> h, dz;
};

#if defined(MIXER_KERNELS_WARPGROUPS)

// Stores the results of a chunk of units that a warp holds as fragments, channels by units.
template <typename scalar_t>
__device__ __forceinline__ void store_units(const TileOutput<scalar_t>& out, scalar_t* turn,
                                            const uint32_t (&words)[UnitChunk::kUnits / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncwarp();  // everybody has read what lay there before
#pragma unroll
  for (int k = 0; k < UnitChunk::kUnits / 16; ++k) {
    const int unit = k * 16 + lane / 16 * 8 + lane % 8;
    stmatrix_transposed(turn + unit * 16 + swizzled_piece<32>(unit, lane / 8 % 2) * 8, words[k]);
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < UnitChunk::kUnits / 16; ++k) {
    const int unit = k * 16 + lane / 2;
    store_piece(out, unit, lane % 2 * 8, turn + unit * 16 + swizzled_piece<32>(unit, lane % 2) * 8);
  }
}

#endif  // MIXER_KERNELS_WARPGROUPS

template <typename scalar_t, Activation kActivation>
__global__ void __launch_bounds__(WarpgroupHidden::kThreads, 1)
    warpgroup_hidden_kernel(const __grid_constant__ WarpgroupHiddenArguments<scalar_t> arguments) {
#if defined(MIXER_KERNELS_WARPGROUPS)
  using Hidden = WarpgroupHidden;
  unsigned char* shared = aligned_shared();
  WeightStream<scalar_t> stream(shared, arguments.weights, tiles_of_block(warpgroup_tiles(arguments.n)));
  auto* stages = reinterpret_cast<scalar_t*>(shared + UnitChunk::kRingBytes);
  auto* turn =
      stages + Hidden::kFeatureBytes / sizeof(scalar_t) + static_cast<int>(threadIdx.x) / 32 * Hidden::kTurnElements;
  for_each_pair_of_tiles(arguments.n, arguments.dy, stages, [&](const auto& n, const auto& dy, int image, int channel) {
#pragma unroll 1
    for (int chunk = 0; chunk < arguments.weights.chunks; ++chunk) {
      float z[Hidden::kUnits / 2], dh[Hidden::kUnits / 2];
      load_bias1(z, arguments.weights, chunk);
      const auto multiply = [&](float (&to)[Hidden::kUnits / 2], const uint32_t (&operand)[Hidden::kSteps][4],
                                bool accumulates) {
        const scalar_t* weight = stream.next();
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Hidden::kSteps; ++k) {
          wgmma<scalar_t>(to, operand[k], UnitChunk::Rows::descriptor(weight, k), accumulates || k > 0);
        }
        wgmma_commit();
        stream.refill();
      };
      multiply(z, n, true);
      multiply(dh, dy, false);
      wgmma_wait<scalar_t, 0>(z);
      wgmma_wait<scalar_t, 0>(dh);
      stream.release(2);
      stream.release(1);

      uint32_t h[Hidden::kUnits / 16][4], dz[Hidden::kUnits / 16][4];
#pragma unroll
      for (int pair = 0; pair < Hidden::kUnits / 4; ++pair) {
        Activated activated[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) activated[i] = activate<kActivation, false>(z[pair * 2 + i]);
        h[pair / 4][pair % 4] = pack_pair<scalar_t>(activated[0].value, activated[1].value);
        dz[pair / 4][pair % 4] =
            pack_pair<scalar_t>(dh[pair * 2] * activated[0].slope, dh[pair * 2 + 1] * activated[1].slope);
      }
      if (image < arguments.n.batch) {
        const TilePlace place{image, chunk * Hidden::kUnits, channel};
        store_units(arguments.h.tile(place), turn, h);
        store_units(arguments.dz.tile(place), turn, dz);
      }
    }
  });
#endif
}

}  // namespace mixer_kernels
