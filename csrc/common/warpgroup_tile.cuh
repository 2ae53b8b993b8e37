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

// 64 channels of an image.
struct WarpgroupPlace {
  int image, column;

  // The first of a warp's 16 channels.
  __device__ __forceinline__ int warp_column() const {
    return column + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16;
  }
};

// A warpgroup's place in the block's tile of that number.
template <typename scalar_t>
__device__ __forceinline__ WarpgroupPlace warpgroup_place(const Operand<scalar_t>& x, int number) {
  const int tile = static_cast<int>(blockIdx.x) + number * static_cast<int>(gridDim.x);
  const int place = tile * WarpgroupTile::kWarpgroups + static_cast<int>(threadIdx.x) / kWarpgroup;
  return {place / column_tiles(x), place % column_tiles(x) * WarpgroupTile::kColumns};
}

// Starts the copies of a warpgroup's tile of x; zeros beyond it.
template <typename scalar_t>
__device__ __forceinline__ void copy_features(scalar_t* stage, const Operand<scalar_t>& x,
                                              const WarpgroupPlace& place) {
  constexpr int kPieces = WarpgroupTile::kColumns / 8, kRowsAtOnce = kWarpgroup / kPieces;
  static_assert(kRowsAtOnce % 8 == 0);
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  int row = thread / kPieces;
  const int column = place.column + thread % kPieces * 8;
  const int rows = place.image < x.batch && column < x.columns ? x.rows : 0;
  const scalar_t* from = x.data + place.image * x.batch_stride + row * x.row_stride + column;
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
__device__ __forceinline__ void store_features(const TokenOutput<scalar_t>& y, const scalar_t* stage,
                                               const WarpgroupPlace& place) {
  const auto out = y.tile({place.image, 0, place.column});
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

// Calls f(rows, image, channel) for each tile of a warpgroup: this lane's fragment_rows, an image that is there, and
// the first of its warp's 16 channels. x in shared memory becomes y, which is stored; the next tile is on its way.
template <typename scalar_t, typename F>
__device__ __forceinline__ void for_each_tile(const Operand<scalar_t>& x, const TokenOutput<scalar_t>& y,
                                              scalar_t* stages, F&& f) {
  const auto stage_of = [&](int number) {
    const int own = static_cast<int>(threadIdx.x) / kWarpgroup * WarpgroupTile::kStages + number % 2;
    return stages + own * WarpgroupTile::kStageElements;
  };
  copy_features(stage_of(0), x, warpgroup_place(x, 0));
  cp_async_commit();
  const int tiles = tiles_of_block(warpgroup_tiles(x));
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    // Everybody has stored the tile before this one, whose stage the next one takes.
    warpgroup_sync();
    if (i + 1 < tiles) copy_features(stage_of(i + 1), x, warpgroup_place(x, i + 1));
    cp_async_commit();
    cp_async_wait<1>();
    warpgroup_sync();
    const WarpgroupPlace place = warpgroup_place(x, i);
    const bool is_there = place.image < x.batch;
    f(fragment_rows(stage_of(i)), is_there ? place.image : 0, place.warp_column());
    warpgroup_sync();
    if (is_there) store_features(y, stage_of(i), place);
  }
  cp_async_wait<0>();
}

// The same for the tiles of two tensors that are only read: calls f(first, second, image, channel) with the fragments
// of both. The image may lie behind the last one.
template <typename scalar_t, typename F>
__device__ __forceinline__ void for_each_pair_of_tiles(const Operand<scalar_t>& first, const Operand<scalar_t>& second,
                                                       scalar_t* stages, F&& f) {
  scalar_t* first_stage =
      stages + static_cast<int>(threadIdx.x) / kWarpgroup * WarpgroupTile::kStages * WarpgroupTile::kStageElements;
  scalar_t* second_stage = first_stage + WarpgroupTile::kStageElements;
  const auto copy = [&](int number) {
    const WarpgroupPlace place = warpgroup_place(first, number);
    copy_features(first_stage, first, place);
    copy_features(second_stage, second, place);
    cp_async_commit();
  };

  copy(0);
  const int tiles = tiles_of_block(warpgroup_tiles(first));
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    cp_async_wait<0>();
    warpgroup_sync();
    uint32_t first_fragments[WarpgroupTile::kSteps][4], second_fragments[WarpgroupTile::kSteps][4];
#pragma unroll
    for (int k = 0; k < WarpgroupTile::kSteps; ++k) {
      ldmatrix_transposed(first_fragments[k], fragment_rows(first_stage) + k * kStepElements);
      ldmatrix_transposed(second_fragments[k], fragment_rows(second_stage) + k * kStepElements);
    }
    warpgroup_sync();
    if (i + 1 < tiles) copy(i + 1);
    const WarpgroupPlace place = warpgroup_place(first, i);
    f(first_fragments, second_fragments, place.image, place.warp_column());
  }
}

#endif  // MIXER_KERNELS_WARPGROUPS

}  // namespace mixer_kernels
