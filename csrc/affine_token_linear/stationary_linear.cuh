// The forward pass for numbers of tokens around 196, in half types: the weight stays in registers while the images
// pass.
//
// Each warp keeps 16 rows of the weight, as fragments of the whole depth. A block walks over tiles of 64 channels of
// one image, whose copies run two tiles ahead; a tile in shared memory is the second operand of the product and the
// residual as well, so that x is read from memory once and y is written once.
#pragma once

#include <cstdint>

#include "affine_token_linear/affine_fold.cuh"
#include "common/mma.cuh"
#include "common/pipeline.cuh"
#include "common/tile_product.cuh"
#include "common/token_linear.cuh"
#include "common/vector.cuh"

namespace mixer_kernels {

struct StationaryTile {
  static constexpr int kSteps = 13;  // of 16 tokens: a warp for each 16 rows, and a fragment for each 16 deep
  static constexpr int kDepth = 16 * kSteps, kColumns = 64, kPitch = kColumns + 8;
  static constexpr int kThreads = 32 * kSteps;
  static constexpr int kStages = 3, kStageElements = kDepth * kPitch;

  // Fewer tokens fit into one tile of the general product.
  static constexpr bool takes(int tokens) { return tokens > 112 && tokens <= kDepth; }
};

template <typename scalar_t>
struct StationaryArguments {
  Operand<scalar_t> weight, x;
  Folded folded;
  TokenOutput<scalar_t> y;

  __host__ __device__ int column_tiles() const {
    return (x.columns + StationaryTile::kColumns - 1) / StationaryTile::kColumns;
  }
  __host__ __device__ int tiles() const { return column_tiles() * x.batch; }
};

// 16 rows of the weight from `row` on; zeros beyond it.
template <typename scalar_t>
__device__ __forceinline__ void load_weight(uint32_t (&fragments)[StationaryTile::kSteps][4],
                                            const Operand<scalar_t>& weight, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 0; step < StationaryTile::kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + lane / 4 + i % 2 * 8, column = step * 16 + i / 2 * 8 + lane % 4 * 2;
      fragments[step][i] = 0;
      if (r < weight.rows && column < weight.columns) {
        fragments[step][i] = Vector<scalar_t, 2>::load(weight.data + r * weight.row_stride + column).bits;
      }
    }
  }
}

// Starts the copies of one tile of x, if there is one; zeros beyond it.
template <typename scalar_t>
__device__ __forceinline__ void copy_tile(scalar_t* stage, const StationaryArguments<scalar_t>& arguments, int tile) {
  constexpr int kVec = 16 / sizeof(scalar_t), kPieces = StationaryTile::kColumns / kVec;
  if (tile < arguments.tiles()) {
    const Operand<scalar_t>& x = arguments.x;
    const int image = tile / arguments.column_tiles();
    const int column =
        tile % arguments.column_tiles() * StationaryTile::kColumns + static_cast<int>(threadIdx.x) % kPieces * kVec;
    int row = static_cast<int>(threadIdx.x) / kPieces;
    const scalar_t* from = x.data + image * x.batch_stride + row * x.row_stride + column;
    scalar_t* to = stage + row * StationaryTile::kPitch + static_cast<int>(threadIdx.x) % kPieces * kVec;
    constexpr int kRowsAtOnce = StationaryTile::kThreads / kPieces;
    static_assert(StationaryTile::kDepth % kRowsAtOnce == 0);
#pragma unroll 1  // registers are short
    for (int i = 0; i < StationaryTile::kDepth / kRowsAtOnce; ++i) {
      cp_async(to + i * kRowsAtOnce * StationaryTile::kPitch, from, row < x.rows && column < x.columns);
      from += kRowsAtOnce * x.row_stride;
      row += kRowsAtOnce;
    }
  }
  cp_async_commit();
}

template <typename scalar_t>
__global__ void __launch_bounds__(StationaryTile::kThreads, 1)
    stationary_linear_kernel(const __grid_constant__ StationaryArguments<scalar_t> arguments) {
  using Tile = StationaryTile;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = static_cast<int>(threadIdx.x) / 32 * 16;
  scalar_t* shared = dynamic_shared<scalar_t>();
  const auto stage_of = [&](int number) { return shared + number * Tile::kStageElements; };
  const int step = static_cast<int>(gridDim.x);
  int tile = static_cast<int>(blockIdx.x);
#pragma unroll
  for (int ahead = 0; ahead < Tile::kStages - 1; ++ahead) {
    copy_tile(stage_of(ahead), arguments, tile + ahead * step);
  }

  uint32_t weight[Tile::kSteps][4];
  load_weight(weight, arguments.weight, first_row);

  for (int stage = 0; tile < arguments.tiles(); tile += step) {
    cp_async_wait<Tile::kStages - 2>();
    // Everybody's copies have arrived, and everybody has left the tile before this one, whose stage is filled next.
    __syncthreads();
    copy_tile(stage_of(stage == 0 ? Tile::kStages - 1 : stage - 1), arguments, tile + (Tile::kStages - 1) * step);
    const scalar_t* x = stage_of(stage);
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;

    constexpr int kFragments = Tile::kColumns / 8;
    float acc[kFragments][4] = {};
    const scalar_t* second = x + lane % 16 * Tile::kPitch + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < Tile::kSteps; ++k) {
#pragma unroll
      for (int j = 0; j < kFragments; j += 2) {
        uint32_t both[4];
        ldmatrix_transposed(both, second + k * 16 * Tile::kPitch + j * 8);
        const uint32_t left[2] = {both[0], both[1]}, right[2] = {both[2], both[3]};
        mma<scalar_t>(acc[j], weight[k], left);
        mma<scalar_t>(acc[j + 1], weight[k], right);
      }
    }

    // Loaded anew for every tile, to free registers.
    float row_sum[2], bias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + lane / 4 + half * 8;
      row_sum[half] = row < arguments.x.rows ? arguments.folded.row_sums[row] : 0.0f;
      bias[half] = row < arguments.x.rows ? arguments.folded.bias[row] : 0.0f;
    }
    const TilePlace place{tile / arguments.column_tiles(), first_row, tile % arguments.column_tiles() * Tile::kColumns};
    const scalar_t* residual = x + (first_row + lane / 4) * Tile::kPitch + lane % 4 * 2;
    const int channel = place.column + lane % 4 * 2;
    const auto finish = [&](float (&fragment)[4], int column) {
      float scale[2], shift[2], layer_scale[2];
      load_floats(scale, arguments.folded.scale + channel + column);
      load_floats(shift, arguments.folded.shift + channel + column);
      load_floats(layer_scale, arguments.folded.layer_scale + channel + column);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float own[2];
        load_floats(own, residual + half * 8 * Tile::kPitch + column);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& value = fragment[half * 2 + i];
          value = own[i] + (scale[i] * value + (shift[i] * row_sum[half] + layer_scale[i] * bias[half]));
        }
      }
    };
    const auto out = arguments.y.tile(place).from(RowGather::row(), RowGather::column());
#pragma unroll
    for (int j = 0; j < kFragments; j += 2) {
      finish(acc[j], j * 8);
      finish(acc[j + 1], j * 8 + 8);
      uint32_t words[4];
      RowGather::gather<scalar_t>(words, acc[j], acc[j + 1]);
      store_words(out, 0, j * 8, words);
    }
  }
}

}  // namespace mixer_kernels
