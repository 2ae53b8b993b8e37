// What kernels on Hopper's warpgroups share that keep all tokens of some channels of an image: around 196 of them, in
// half types. Channels are the rows of their products: the first operand is x^T, from registers, the second one a
// weight transposed, from shared memory.
#pragma once

#include <cstdint>

#include "common/pipeline.cuh"
#include "common/token_linear.cuh"
#include "common/vector.cuh"
#include "common/warpgroup.cuh"

namespace mixer_kernels {

struct WarpgroupTile {
  static constexpr int kSteps = 13, kTokens = 16 * kSteps;
  static constexpr int kColumns = 64;  // channels of a warpgroup
  static constexpr int kWarpgroups = 2, kThreads = kWarpgroups * kWarpgroup;

  // x of a warpgroup in shared memory: this tile's and the next one's. Pieces of a token's channels are swizzled.
  static constexpr int kStages = 2, kStageElements = kTokens * kColumns;
  static constexpr int kFeatureBytes = kWarpgroups * kStages * kStageElements * 2;

  static constexpr int kAlignment = 1024;  // of weights; shared memory begins anywhere
  static constexpr int kMostShared = 227 * 1024;

  // With fewer tokens less than half of the tensor cores' work would be of use.
  static constexpr bool takes(int tokens) { return tokens > 112 && tokens <= kTokens; }
};

// A weight of kRows rows and all tokens as the products want it: full blocks of 64 tokens, then narrow ones of 16, all
// rows of a block one after the other.
template <int kRows>
struct BlockedWeight {
  static constexpr int kBytes = kRows * WarpgroupTile::kTokens * 2;
  static constexpr int kFullBlocks = WarpgroupTile::kSteps / 4;
  static constexpr int kFullElements = kRows * 64, kNarrowElements = kRows * 16;
  static_assert(kRows % 8 == 0);

  // Where an element lies, and the rest of its eight behind it.
  static __host__ __device__ __forceinline__ int offset(int row, int token) {
    if (token < kFullBlocks * 64) {
      return token / 64 * kFullElements + row * 64 + swizzled_piece<128>(row, token % 64 / 8) * 8 + token % 8;
    }
    const int narrow = token - kFullBlocks * 64;
    return kFullBlocks * kFullElements + narrow / 16 * kNarrowElements + row * 16 +
           swizzled_piece<32>(row, narrow % 16 / 8) * 8 + token % 8;
  }

#if defined(MIXER_KERNELS_WARPGROUPS)
  // The 16 tokens of a step.
  template <typename scalar_t>
  static __device__ __forceinline__ uint64_t descriptor(const scalar_t* weight, int step) {
    return step < 4 * kFullBlocks ? matrix_descriptor<128>(weight + step / 4 * kFullElements + step % 4 * 16)
                                  : matrix_descriptor<32>(weight + kFullBlocks * kFullElements +
                                                          (step - 4 * kFullBlocks) * kNarrowElements);
  }
#endif
};

// Blocks take tiles of a pair of places, 64 channels of an image each; the very last may lie behind the last image.
template <typename scalar_t>
__host__ __device__ __forceinline__ int column_tiles(const Operand<scalar_t>& x) {
  return (x.columns + WarpgroupTile::kColumns - 1) / WarpgroupTile::kColumns;
}
template <typename scalar_t>
__host__ __device__ __forceinline__ int warpgroup_tiles(const Operand<scalar_t>& x) {
  return (x.batch * column_tiles(x) + WarpgroupTile::kWarpgroups - 1) / WarpgroupTile::kWarpgroups;
}

#if defined(MIXER_KERNELS_WARPGROUPS)

// How many tiles a block takes of all.
__device__ __forceinline__ int tiles_of_block(int tiles) {
  const int step = static_cast<int>(gridDim.x);
  return (tiles - static_cast<int>(blockIdx.x) + step - 1) / step;
}

// Shared memory from an address on that weights may have.
__device__ __forceinline__ unsigned char* aligned_shared() {
  auto* shared = dynamic_shared<unsigned char>();
  constexpr uintptr_t kAlignment = WarpgroupTile::kAlignment;
  return shared + (kAlignment - reinterpret_cast<uintptr_t>(shared) % kAlignment) % kAlignment;
}

// Starts the copies of a warpgroup's tile of x; zeros beyond it.
template <typename scalar_t>
__device__ __forceinline__ void copy_features(scalar_t* stage, const Operand<scalar_t>& x, int image, int column) {
  constexpr int kPieces = WarpgroupTile::kColumns / 8, kRowsAtOnce = kWarpgroup / kPieces;
  static_assert(kRowsAtOnce % 8 == 0);
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  int row = thread / kPieces;
  column += thread % kPieces * 8;
  const int rows = image < x.batch && column < x.columns ? x.rows : 0;
  const scalar_t* from = x.data + image * x.batch_stride + row * x.row_stride + column;
  scalar_t* to = stage + row * WarpgroupTile::kColumns + swizzled_piece<128>(row, thread % kPieces) * 8;
#pragma unroll 1  // registers are short
  for (; row < WarpgroupTile::kTokens; row += kRowsAtOnce) {
    cp_async(to, from, row < rows);
    from += kRowsAtOnce * x.row_stride;
    to += kRowsAtOnce * WarpgroupTile::kColumns;
  }
}

// Stores 16 bytes from shared memory.
template <typename scalar_t>
__device__ __forceinline__ void store_piece(const TileOutput<scalar_t>& out, int row, int column,
                                            const scalar_t* piece) {
  const auto bits = Vector<scalar_t, 8>::load(piece).bits;
  const uint32_t words[4] = {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32),
                             static_cast<uint32_t>(bits >> 64), static_cast<uint32_t>(bits >> 96)};
  store_words(out, row, column, words);
}

// Stores what a warpgroup has made of its tile.
template <typename scalar_t>
__device__ __forceinline__ void store_features(const TokenOutput<scalar_t>& y, const scalar_t* stage, int image,
                                               int column) {
  const auto out = y.tile({image, 0, column});
  constexpr int kPieces = WarpgroupTile::kColumns / 8;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, piece = thread % kPieces;
  for (int row = thread / kPieces; row < y.rows; row += kWarpgroup / kPieces) {
    store_piece(out, row, piece * 8, stage + row * WarpgroupTile::kColumns + swizzled_piece<128>(row, piece) * 8);
  }
}

// Where this lane's row of the fragments of its warp's 16 channels lies, for ldmatrix_transposed and
// stmatrix_transposed: those of the 16 tokens of a step lie kStepElements further on than those of the step before.
constexpr int kStepElements = 16 * WarpgroupTile::kColumns;
template <typename scalar_t>
__device__ __forceinline__ scalar_t* fragment_rows(scalar_t* stage) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const int row = lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
  return stage + row * WarpgroupTile::kColumns + swizzled_piece<128>(row, piece) * 8;
}

// Calls f(rows, image, channel) for each tile of a warpgroup: this lane's fragment_rows, the first of its warp's 16
// channels, and an image that is there. x in shared memory becomes y, which is stored; the next tile is on its way.
template <typename scalar_t, typename F>
__device__ __forceinline__ void for_each_tile(const Operand<scalar_t>& x, const TokenOutput<scalar_t>& y,
                                              scalar_t* stages, F&& f) {
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
  stages += warpgroup * WarpgroupTile::kStages * WarpgroupTile::kStageElements;
  int place = static_cast<int>(blockIdx.x) * WarpgroupTile::kWarpgroups + warpgroup;
  const int step = static_cast<int>(gridDim.x) * WarpgroupTile::kWarpgroups;
  const auto image_of = [&](int place) { return place / column_tiles(x); };
  const auto column_of = [&](int place) { return place % column_tiles(x) * WarpgroupTile::kColumns; };

  copy_features(stages, x, image_of(place), column_of(place));
  cp_async_commit();
  const int tiles = tiles_of_block(warpgroup_tiles(x));
#pragma unroll 1
  for (int i = 0; i < tiles; ++i, place += step) {
    scalar_t* stage = stages + i % 2 * WarpgroupTile::kStageElements;
    // Everybody has stored the tile before this one, whose stage the next one takes.
    warpgroup_sync();
    if (i + 1 < tiles) {
      copy_features(stages + (i + 1) % 2 * WarpgroupTile::kStageElements, x, image_of(place + step),
                    column_of(place + step));
    }
    cp_async_commit();
    cp_async_wait<1>();
    warpgroup_sync();
    const int image = image_of(place), column = column_of(place);
    const bool is_there = image < x.batch;
    f(fragment_rows(stage), is_there ? image : 0, column + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16);
    warpgroup_sync();
    if (is_there) store_features(y, stage, image, column);
  }
  cp_async_wait<0>();
}

// The same for the tiles of two tensors that are only read: calls f(load, image, channel), where load(a, b) brings the
// fragments of both into registers, to be called once. The image may lie behind the last one.
template <typename scalar_t, typename F>
__device__ __forceinline__ void for_each_pair_of_tiles(const Operand<scalar_t>& first, const Operand<scalar_t>& second,
                                                       scalar_t* stages, F&& f) {
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
  scalar_t* first_stage = stages + warpgroup * 2 * WarpgroupTile::kStageElements;
  scalar_t* second_stage = first_stage + WarpgroupTile::kStageElements;
  int place = static_cast<int>(blockIdx.x) * WarpgroupTile::kWarpgroups + warpgroup;
  const int step = static_cast<int>(gridDim.x) * WarpgroupTile::kWarpgroups;
  const auto copy = [&] {
    const int image = place / column_tiles(first), column = place % column_tiles(first) * WarpgroupTile::kColumns;
    copy_features(first_stage, first, image, column);
    copy_features(second_stage, second, image, column);
    cp_async_commit();
  };

  copy();
  const int tiles = tiles_of_block(warpgroup_tiles(first));
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    const int image = place / column_tiles(first), column = place % column_tiles(first) * WarpgroupTile::kColumns;
    const auto load = [&](uint32_t (&a)[WarpgroupTile::kSteps][4], uint32_t (&b)[WarpgroupTile::kSteps][4]) {
      cp_async_wait<0>();
      warpgroup_sync();
      const scalar_t *first_rows = fragment_rows(first_stage), *second_rows = fragment_rows(second_stage);
#pragma unroll
      for (int k = 0; k < WarpgroupTile::kSteps; ++k) {
        ldmatrix_transposed(a[k], first_rows + k * kStepElements);
        ldmatrix_transposed(b[k], second_rows + k * kStepElements);
      }
      warpgroup_sync();
      place += step;
      if (i + 1 < tiles) copy();
    };
    f(load, image, column + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16);
  }
}

#endif  // MIXER_KERNELS_WARPGROUPS

}  // namespace mixer_kernels
