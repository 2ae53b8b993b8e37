// The matrix products of token mixing, all of the form weight @ matrix with the channels contiguous, and those of the
// weights' gradients.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/activation.cuh"
#include "common/pipeline.cuh"
#include "common/tile_product.cuh"

namespace mixer_kernels {

// A (batch, rows, columns) result with contiguous columns; `whole` says that its rows are made of aligned 16-byte
// pieces.
template <typename scalar_t>
struct TokenOutput {
  scalar_t* data;
  int64_t batch_stride, row_stride;
  int rows, columns;
  bool whole;

  __device__ __forceinline__ TileOutput<scalar_t> tile(int image, int row, int column) const {
    return TileOutput<scalar_t>{data + image * batch_stride, row_stride, rows, columns, whole}.from(row, column);
  }
};

struct TilePlace {
  int image, row, column;
};

template <typename scalar_t>
__device__ __forceinline__ float bias_at(const scalar_t* bias, int row, int rows) {
  return bias != nullptr && row < rows ? to_acc(bias[row]) : 0.0f;
}

// Half types may use the cheaper functions.
template <typename scalar_t>
constexpr bool kExactActivation = std::is_same_v<scalar_t, float>;

// Stores all that a thread holds.
template <class Tile>
__device__ __forceinline__ void store_tile(typename Tile::Accumulator& acc,
                                           const TileOutput<typename Tile::scalar_t>& out) {
#pragma unroll
  for (int group = 0; group < Tile::kRows / Tile::kGroupRows; ++group) Tile::store_group(acc, group, out);
}

// out = act(product + bias)
template <typename scalar_t>
struct ActivateEpilogue {
  static constexpr bool kHasInput = false;
  const scalar_t* bias;
  Activation activation;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, int first_row, int rows,
                                        const TileOutput<scalar_t>& out, Next&&) const {
    const int first = first_row + Tile::warp_row() + Tile::thread_row();
    dispatch_activation(activation, [&](auto tag) {
#pragma unroll
      for (int row = 0; row < Tile::kRows; ++row) {
        const float shift = bias_at(bias, first + Tile::row_offset(row), rows);
#pragma unroll
        for (int i = 0; i < Tile::kRuns * Tile::kRun; ++i) {
          float& value = Tile::run(acc, row, i / Tile::kRun)[i % Tile::kRun];
          value = activate<decltype(tag)::value, kExactActivation<scalar_t>>(value + shift).value;
        }
        // At once, to free registers.
        if ((row + 1) % Tile::kGroupRows == 0) Tile::store_group(acc, row / Tile::kGroupRows, out);
      }
    });
  }
};

// Calls f(run of outputs, run of the input, row of the tile) for everything that a thread holds; next() yields the
// parts in which the input comes.
template <class Tile, class Next, typename F>
__device__ __forceinline__ void with_input(typename Tile::Accumulator& acc, Next&& next, F&& f) {
#pragma unroll
  for (int part = 0; part < Tile::kParts; ++part) {
    const typename Tile::scalar_t* input = next() + Tile::thread_row() * Tile::kWidePitch + Tile::first_column();
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row) {
      const int at = Tile::warp_row() + Tile::row_offset(row);
      if (at / Tile::kPartRows != part) continue;
#pragma unroll
      for (int r = 0; r < Tile::kRuns; ++r) {
        float values[Tile::kRun];
        load_floats(values, input + at % Tile::kPartRows * Tile::kWidePitch + Tile::column_offset(r));
        f(Tile::run(acc, row, r), values, at + Tile::thread_row());
      }
    }
  }
}

// out = product + bias + input
template <typename scalar_t>
struct ResidualEpilogue {
  static constexpr bool kHasInput = true;
  const scalar_t* bias;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, int first_row, int rows,
                                        const TileOutput<scalar_t>& out, Next&& next) const {
    with_input<Tile>(acc, next, [&](float* run, const float (&input)[Tile::kRun], int row) {
      const float shift = bias_at(bias, first_row + row, rows);
#pragma unroll
      for (int i = 0; i < Tile::kRun; ++i) run[i] += input[i] + shift;
    });
    store_tile<Tile>(acc, out);
  }
};

// out = input act'(product + bias)
template <typename scalar_t>
struct SlopeEpilogue {
  static constexpr bool kHasInput = true;
  const scalar_t* bias;
  Activation activation;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, int first_row, int rows,
                                        const TileOutput<scalar_t>& out, Next&& next) const {
    dispatch_activation(activation, [&](auto tag) {
      with_input<Tile>(acc, next, [&](float* run, const float (&input)[Tile::kRun], int row) {
        const float shift = bias_at(bias, first_row + row, rows);
#pragma unroll
        for (int i = 0; i < Tile::kRun; ++i) {
          run[i] = input[i] * activate<decltype(tag)::value, kExactActivation<scalar_t>>(run[i] + shift).slope;
        }
      });
    });
    store_tile<Tile>(acc, out);
  }
};

// weight (rows, depth) @ features (batch, depth, columns), tile by tile; the row tiles of a place follow each other, so
// that they share the features in the second-level cache. The epilogue may want an input of the result's shape.
template <class Tile_, bool kHasInput>
struct LinearProduct {
  using Tile = Tile_;
  using scalar_t = typename Tile::scalar_t;
  using Cursor = typename Tile::ChunkCopy;
  static constexpr int kStages = 4;
  static constexpr int kStageElements = Tile::kStageElements;

  Operand<scalar_t> weight, features, input;
  int row_tiles, column_tiles;

  LinearProduct(const Operand<scalar_t>& weight, const Operand<scalar_t>& features, const Operand<scalar_t>& input)
      : weight(weight),
        features(features),
        input(input),
        row_tiles((weight.rows + Tile::kM - 1) / Tile::kM),
        column_tiles((features.columns + Tile::kN - 1) / Tile::kN) {}

  __host__ __device__ int tiles() const { return row_tiles * column_tiles * features.batch; }
  __device__ __forceinline__ int depth_chunks() const { return (weight.columns + Tile::kK - 1) / Tile::kK; }
  __device__ __forceinline__ int chunks() const { return depth_chunks() + (kHasInput ? Tile::kParts : 0); }
  __device__ __forceinline__ TilePlace place(int tile) const {
    const int rest = tile / row_tiles;
    return {rest / column_tiles, tile % row_tiles * Tile::kM, rest % column_tiles * Tile::kN};
  }
  __device__ __forceinline__ void load(Cursor& cursor, int tile, int chunk, scalar_t* stage) const {
    if (chunk == 0) {
      const TilePlace at = place(tile);
      cursor.start(weight, 0, at.row, features, at.image, at.column, 0);
    }
    if (!kHasInput || chunk < depth_chunks()) {
      cursor.copy_next(weight, features, stage);
    } else {
      const TilePlace at = place(tile);
      typename Tile::PartCopy part;
      part.start(input, at.image, at.row + (chunk - depth_chunks()) * Tile::kPartRows, at.column);
      part.copy(input, stage);
    }
  }
};

// One block takes a tile of rows x channels of one image at a time; four warps share it, see TensorTile and FmaTile.
template <class Tile, class Epilogue>
__global__ void __launch_bounds__(kProductThreads, Tile::kBlocks)
    token_linear_kernel(const __grid_constant__ LinearProduct<Tile, Epilogue::kHasInput> product,
                        const __grid_constant__ Epilogue epilogue,
                        const __grid_constant__ TokenOutput<typename Tile::scalar_t> out) {
  Pipeline<LinearProduct<Tile, Epilogue::kHasInput>> pipeline(product, dynamic_shared<typename Tile::scalar_t>());
  const int depth = product.weight.columns;
  for (int tile = static_cast<int>(blockIdx.x); tile < product.tiles(); tile += static_cast<int>(gridDim.x)) {
    typename Tile::Accumulator acc;
    for (int k = 0; k < depth; k += Tile::kK) Tile::multiply(acc, pipeline.next(), depth - k);
    const TilePlace place = product.place(tile);
    epilogue.template apply<Tile>(acc, place.row, out.rows, out.tile(place.image, place.row, place.column),
                                  [&] { return pipeline.next(); });
  }
}

// Two products of the same shape, whose chunks follow each other: z = weight1 @ n and dh = weight2^T @ dy.
template <class Tile_>
struct HiddenProduct {
  using Tile = Tile_;
  using scalar_t = typename Tile::scalar_t;
  using Cursor = typename Tile::ChunkCopy;
  static constexpr int kStages = 4;
  static constexpr int kStageElements = Tile::kStageElements;

  LinearProduct<Tile, false> z, dh;

  __host__ __device__ int tiles() const { return z.tiles(); }
  __device__ __forceinline__ int chunks() const { return 2 * z.chunks(); }
  __device__ __forceinline__ void load(Cursor& cursor, int tile, int chunk, scalar_t* stage) const {
    if (chunk < z.chunks()) {
      z.load(cursor, tile, chunk, stage);
    } else {
      dh.load(cursor, tile, chunk - z.chunks(), stage);
    }
  }
};

// One block takes a tile of hidden units x channels of one image at a time and accumulates z and dh of it, from which
// follow h = act(z + bias) and dz = dh act'(z + bias).
template <class Tile>
__global__ void __launch_bounds__(kProductThreads, Tile::kBlocks)
    hidden_backward_kernel(const __grid_constant__ HiddenProduct<Tile> product, const typename Tile::scalar_t* bias,
                           Activation activation, const __grid_constant__ TokenOutput<typename Tile::scalar_t> h,
                           const __grid_constant__ TokenOutput<typename Tile::scalar_t> dz) {
  Pipeline<HiddenProduct<Tile>> pipeline(product, dynamic_shared<typename Tile::scalar_t>());
  const int depth = product.z.weight.columns;
  for (int tile = static_cast<int>(blockIdx.x); tile < product.tiles(); tile += static_cast<int>(gridDim.x)) {
    typename Tile::Accumulator z, dh;
    for (int k = 0; k < depth; k += Tile::kK) Tile::multiply(z, pipeline.next(), depth - k);
    for (int k = 0; k < depth; k += Tile::kK) Tile::multiply(dh, pipeline.next(), depth - k);
    const TilePlace place = product.z.place(tile);
    const int first = place.row + Tile::warp_row() + Tile::thread_row();
    const auto h_tile = h.tile(place.image, place.row, place.column);
    const auto dz_tile = dz.tile(place.image, place.row, place.column);
    dispatch_activation(activation, [&](auto tag) {
#pragma unroll
      for (int row = 0; row < Tile::kRows; ++row) {
        const float shift = bias_at(bias, first + Tile::row_offset(row), h.rows);
#pragma unroll
        for (int i = 0; i < Tile::kRuns * Tile::kRun; ++i) {
          float& value = Tile::run(z, row, i / Tile::kRun)[i % Tile::kRun];
          float& gradient = Tile::run(dh, row, i / Tile::kRun)[i % Tile::kRun];
          const Activated activated =
              activate<decltype(tag)::value, kExactActivation<typename Tile::scalar_t>>(value + shift);
          value = activated.value;
          gradient *= activated.slope;
        }
        // At once, to free registers.
        if ((row + 1) % Tile::kGroupRows == 0) {
          Tile::store_group(z, row / Tile::kGroupRows, h_tile);
          Tile::store_group(dh, row / Tile::kGroupRows, dz_tile);
        }
      }
    });
  }
}

struct SplitPlace {
  int split, row, column;
};

// The gradient of a weight: the sum over the images of tokens (S, C) @ hidden (D, C)^T. The depth, B times C, is split
// into equal ranges of chunks; the last range may run beyond the last image, where operands are zero.
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

  Operand<scalar_t> tokens, hidden;
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
      const int first = at.split * split_chunks + chunk;
      cursor.image = first / image_chunks;
      cursor.left = image_chunks - (first - cursor.image * image_chunks);
      const int depth = (image_chunks - cursor.left) * Tile::kK;
      cursor.copy.start(tokens, cursor.image, at.row, hidden, cursor.image, at.column, depth);
    }
    cursor.copy.copy_next(tokens, hidden, stage);
    --cursor.left;
  }
};

// One block takes a tile of tokens x hidden units and one part of the depth at a time. Its sums go to the workspace,
// gradient[split][token * token_stride + unit * unit_stride], and the sums of `hidden` alone, the gradient of a bias,
// to sums[split][unit] if that is wanted.
template <class Tile>
__global__ void __launch_bounds__(kProductThreads, Tile::kBlocks)
    weight_gradient_kernel(const __grid_constant__ WeightGradientProduct<Tile> product, float* gradient,
                           int64_t token_stride, int64_t unit_stride, float* sums) {
  Pipeline<WeightGradientProduct<Tile>> pipeline(product, dynamic_shared<typename Tile::scalar_t>());
  const int tokens = product.tokens.rows, units = product.hidden.rows;
  for (int tile = static_cast<int>(blockIdx.x); tile < product.tiles(); tile += static_cast<int>(gridDim.x)) {
    const SplitPlace place = product.place(tile);
    const bool wants_sums = sums != nullptr && place.row == 0;
    typename Tile::Accumulator acc;
    typename Tile::ColumnSums column_sums;
    for (int chunk = 0; chunk < product.split_chunks; ++chunk) {
      Tile::multiply(acc, column_sums, wants_sums, pipeline.next(), Tile::kK);
    }
    const int first_token = place.row + Tile::warp_row() + Tile::thread_row();
    const int first_unit = place.column + Tile::first_column();
    float* out = gradient + static_cast<int64_t>(place.split) * tokens * units + first_token * token_stride +
                 first_unit * unit_stride;
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row) {
      if (first_token + Tile::row_offset(row) >= tokens) continue;
#pragma unroll
      for (int i = 0; i < Tile::kRuns * Tile::kRun; ++i) {
        const int unit = Tile::column_offset(i / Tile::kRun) + i % Tile::kRun;
        if (first_unit + unit < units) {
          out[Tile::row_offset(row) * token_stride + unit * unit_stride] =
              Tile::run(acc, row, i / Tile::kRun)[i % Tile::kRun];
        }
      }
    }
    if (wants_sums) {
      Tile::for_each_sum(column_sums, [&](int column, float sum) {
        const int unit = place.column + column;
        if (unit < units) sums[static_cast<int64_t>(place.split) * units + unit] = sum;
      });
    }
  }
}

}  // namespace mixer_kernels
