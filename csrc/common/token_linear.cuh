// Products of the form weight @ matrix, one image at a time, with the channels contiguous: what comes before and after.
#pragma once

#include <cstdint>

#include "common/pipeline.cuh"
#include "common/tile_product.cuh"

namespace mixer_kernels {

struct TilePlace {
  int image, row, column;
};

// A (batch, rows, columns) result with contiguous columns; `whole` says that its rows are made of aligned 16-byte
// pieces.
template <typename scalar_t>
struct TokenOutput {
  scalar_t* data;
  int64_t batch_stride, row_stride;
  int rows, columns;
  bool whole;

  __device__ __forceinline__ TileOutput<scalar_t> tile(const TilePlace& at) const {
    return TileOutput<scalar_t>{data + at.image * batch_stride, row_stride, rows, columns, whole}.from(at.row,
                                                                                                       at.column);
  }
};

// The bias of a row; 0 without a bias and beyond the rows.
template <typename scalar_t>
__device__ __forceinline__ float bias_at(const scalar_t* bias, int row, int rows) {
  return bias != nullptr && row < rows ? to_acc(bias[row]) : 0.0f;
}

// Stores all that a thread holds.
template <class Tile>
__device__ __forceinline__ void store_tile(typename Tile::Accumulator& acc, const TilePlace& place,
                                           const TokenOutput<typename Tile::scalar_t>& out) {
  const auto tile = out.tile(place);
#pragma unroll
  for (int group = 0; group < Tile::kRows / Tile::kGroupRows; ++group) Tile::store_group(acc, group, tile);
}

// Calls f(part, the input of this thread's first output in it) for the parts in which an input comes; next() yields
// them.
template <class Tile, class Next, typename F>
__device__ __forceinline__ void for_each_part(Next&& next, F&& f) {
#pragma unroll
  for (int part = 0; part < Tile::kParts; ++part) {
    f(part, next() + Tile::thread_row() * Tile::kWidePitch + Tile::first_column());
  }
}

// Whether the input of a thread's row comes in this part.
template <class Tile>
__device__ __forceinline__ bool is_in_part(int part, int row) {
  return (Tile::warp_row() + Tile::row_offset(row)) / Tile::kPartRows == part;
}

// The input of one run of outputs, from a part that its row is in.
template <class Tile>
__device__ __forceinline__ void load_input(float (&to)[Tile::kRun], const typename Tile::scalar_t* part, int row,
                                           int r) {
  const int at = (Tile::warp_row() + Tile::row_offset(row)) % Tile::kPartRows;
  load_floats(to, part + at * Tile::kWidePitch + Tile::column_offset(r));
}

// weight (rows, depth) @ features (batch, depth, columns), tile by tile; the row tiles of a place follow each other, so
// that they share the features in the second-level cache. The epilogue may want inputs of the result's shape, which
// come after the product, part by part.
template <class Tile_, int kInputs>
struct LinearProduct {
  using Tile = Tile_;
  using scalar_t = typename Tile::scalar_t;
  using Cursor = typename Tile::ChunkCopy;
  static constexpr int kStages = 4;
  static constexpr int kStageElements = Tile::kStageElements;

  Operand<scalar_t> weight, features;
  Operand<scalar_t> inputs[kInputs > 0 ? kInputs : 1];
  int row_tiles, column_tiles;

  template <class... Inputs>
  LinearProduct(const Operand<scalar_t>& weight, const Operand<scalar_t>& features, const Inputs&... inputs)
      : weight(weight),
        features(features),
        inputs{inputs...},
        row_tiles((weight.rows + Tile::kM - 1) / Tile::kM),
        column_tiles((features.columns + Tile::kN - 1) / Tile::kN) {
    static_assert(sizeof...(Inputs) == kInputs);
  }

  __host__ __device__ int tiles() const { return row_tiles * column_tiles * features.batch; }
  __device__ __forceinline__ int depth_chunks() const { return (weight.columns + Tile::kK - 1) / Tile::kK; }
  __device__ __forceinline__ int chunks() const { return depth_chunks() + kInputs * Tile::kParts; }
  __device__ __forceinline__ TilePlace place(int tile) const {
    const int rest = tile / row_tiles;
    return {rest / column_tiles, tile % row_tiles * Tile::kM, rest % column_tiles * Tile::kN};
  }
  __device__ __forceinline__ void load(Cursor& cursor, int tile, int chunk, scalar_t* stage) const {
    if (chunk == 0) {
      const TilePlace at = place(tile);
      cursor.start(weight, 0, at.row, features, at.image, at.column, 0);
    }
    if (kInputs == 0 || chunk < depth_chunks()) {
      cursor.copy_next(weight, features, stage);
      return;
    }
    const TilePlace at = place(tile);
    const int part = chunk - depth_chunks();
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      if (part / Tile::kParts != i) continue;
      typename Tile::PartCopy copy;
      copy.start(inputs[i], at.image, at.row + part % Tile::kParts * Tile::kPartRows, at.column);
      copy.copy(inputs[i], stage);
    }
  }
};

// One block takes a tile of rows x channels of one image at a time; four warps share it, see TensorTile and FmaTile.
// Epilogue::apply gets the product, next() for the parts of its inputs, and stores the result.
template <class Tile, class Epilogue>
__global__ void __launch_bounds__(kProductThreads, Tile::kBlocks)
    token_linear_kernel(const __grid_constant__ LinearProduct<Tile, Epilogue::kInputs> product,
                        const __grid_constant__ Epilogue epilogue,
                        const __grid_constant__ TokenOutput<typename Tile::scalar_t> out) {
  Pipeline<LinearProduct<Tile, Epilogue::kInputs>> pipeline(product, dynamic_shared<typename Tile::scalar_t>());
  const int depth = product.weight.columns;
  for (int tile = static_cast<int>(blockIdx.x); tile < product.tiles(); tile += static_cast<int>(gridDim.x)) {
    typename Tile::Accumulator acc;
    for (int k = 0; k < depth; k += Tile::kK) Tile::multiply(acc, pipeline.next(), depth - k);
    epilogue.template apply<Tile>(acc, product.place(tile), out, [&] { return pipeline.next(); });
  }
}

}  // namespace mixer_kernels
