// The product behind the gradient of a weight over the tokens, split over blocks into sums for sum_terms.cuh.
#pragma once

#include <cstdint>

#include "common/pipeline.cuh"
#include "common/tile_product.cuh"

namespace mixer_kernels {

struct SplitPlace {
  int split, row, column;
};

// The gradient of a weight: the sum over the images of first (rows, C) @ second (columns, C)^T. The depth, B times C,
// is split into equal ranges of chunks; the last range may run beyond the last image, where operands are zero.
template <class Tile_>
struct WeightGradientProduct {
  using Tile = Tile_;
  using scalar_t = typename Tile::scalar_t;
  static constexpr int kStages = 3;
  static constexpr int kStageElements = Tile::kStageElements;

  struct Cursor {
    typename Tile::ChunkCopy copy;
    int image, left;  // chunks of the image
  };

  Operand<scalar_t> first, second;
  int row_tiles, column_tiles, image_chunks, split_chunks, splits;

  __host__ __device__ int tiles() const { return row_tiles * column_tiles * splits; }
  __device__ __forceinline__ int chunks() const { return split_chunks; }
  __device__ __forceinline__ SplitPlace place(int tile) const {
    const int rest = tile / row_tiles;
    return {rest / column_tiles, tile % row_tiles * Tile::kM, rest % column_tiles * Tile::kN};
  }
  __device__ __forceinline__ void load(Cursor& cursor, int tile, int chunk, scalar_t* stage) const {
    if (chunk == 0 || cursor.left == 0) {
      const SplitPlace at = place(tile);
      const int begin = at.split * split_chunks + chunk;
      cursor.image = begin / image_chunks;
      cursor.left = image_chunks - (begin - cursor.image * image_chunks);
      const int depth = (image_chunks - cursor.left) * Tile::kK;
      cursor.copy.start(first, cursor.image, at.row, second, cursor.image, at.column, depth);
    }
    cursor.copy.copy_next(first, second, stage);
    --cursor.left;
  }
};

// Stores the sums of one tile as gradient[split][row * row_stride + column * column_stride].
template <class Tile>
__device__ __forceinline__ void store_split(typename Tile::Accumulator& acc, const WeightGradientProduct<Tile>& product,
                                            const SplitPlace& place, float* gradient, int64_t row_stride,
                                            int64_t column_stride) {
  const int rows = product.first.rows, columns = product.second.rows;
  const int first_row = place.row + Tile::warp_row() + Tile::thread_row();
  const int first_column = place.column + Tile::first_column();
  float* out = gradient + static_cast<int64_t>(place.split) * rows * columns + first_row * row_stride +
               first_column * column_stride;
#pragma unroll
  for (int row = 0; row < Tile::kRows; ++row) {
    if (first_row + Tile::row_offset(row) >= rows) continue;
#pragma unroll
    for (int i = 0; i < Tile::kRuns * Tile::kRun; ++i) {
      const int column = Tile::column_offset(i / Tile::kRun) + i % Tile::kRun;
      if (first_column + column < columns) {
        out[Tile::row_offset(row) * row_stride + column * column_stride] =
            Tile::run(acc, row, i / Tile::kRun)[i % Tile::kRun];
      }
    }
  }
}

}  // namespace mixer_kernels
