// What token mixing does around its products, and the two kernels that are its own.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/activation.cuh"
#include "common/token_linear.cuh"
#include "common/weight_gradient.cuh"

namespace mixer_kernels {

// Half types may use the cheaper functions.
template <typename scalar_t>
constexpr bool kExactActivation = std::is_same_v<scalar_t, float>;

// out = act(product + bias)
template <typename scalar_t>
struct ActivateEpilogue {
  static constexpr int kInputs = 0;
  static constexpr bool kKeepsSums = false;
  const scalar_t* bias;
  Activation activation;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, const TilePlace& place,
                                        const TokenOutput<scalar_t>& out, Next&&) const {
    const int first = place.row + Tile::warp_row() + Tile::thread_row();
    const auto tile = out.tile(place);
    dispatch_activation(activation, [&](auto tag) {
#pragma unroll
      for (int row = 0; row < Tile::kRows; ++row) {
        const float shift = bias_at(bias, first + Tile::row_offset(row), out.rows);
#pragma unroll
        for (int i = 0; i < Tile::kRuns * Tile::kRun; ++i) {
          float& value = Tile::run(acc, row, i / Tile::kRun)[i % Tile::kRun];
          value = activate<decltype(tag)::value, kExactActivation<scalar_t>>(value + shift).value;
        }
        // At once, to free registers.
        if ((row + 1) % Tile::kGroupRows == 0) Tile::store_group(acc, row / Tile::kGroupRows, tile);
      }
    });
  }
};

// Calls f(run of outputs, run of the input, row of the tile) for everything that a thread holds.
template <class Tile, class Next, typename F>
__device__ __forceinline__ void with_input(typename Tile::Accumulator& acc, Next&& next, F&& f) {
  for_each_part<Tile>(next, [&](int part, const typename Tile::scalar_t* from) {
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row) {
      if (!is_in_part<Tile>(part, row)) continue;
#pragma unroll
      for (int r = 0; r < Tile::kRuns; ++r) {
        float values[Tile::kRun];
        load_input<Tile>(values, from, row, r);
        f(Tile::run(acc, row, r), values, Tile::warp_row() + Tile::thread_row() + Tile::row_offset(row));
      }
    }
  });
}

// out = product + bias + input
template <typename scalar_t>
struct ResidualEpilogue {
  static constexpr int kInputs = 1;
  static constexpr bool kKeepsSums = false;
  const scalar_t* bias;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, const TilePlace& place,
                                        const TokenOutput<scalar_t>& out, Next&& next) const {
    with_input<Tile>(acc, next, [&](float* run, const float (&input)[Tile::kRun], int row) {
      const float shift = bias_at(bias, place.row + row, out.rows);
#pragma unroll
      for (int i = 0; i < Tile::kRun; ++i) run[i] += input[i] + shift;
    });
    store_tile<Tile>(acc, place, out);
  }
};

// out = input act'(product + bias)
template <typename scalar_t>
struct SlopeEpilogue {
  static constexpr int kInputs = 1;
  static constexpr bool kKeepsSums = false;
  const scalar_t* bias;
  Activation activation;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, const TilePlace& place,
                                        const TokenOutput<scalar_t>& out, Next&& next) const {
    dispatch_activation(activation, [&](auto tag) {
      with_input<Tile>(acc, next, [&](float* run, const float (&input)[Tile::kRun], int row) {
        const float shift = bias_at(bias, place.row + row, out.rows);
#pragma unroll
        for (int i = 0; i < Tile::kRun; ++i) {
          run[i] = input[i] * activate<decltype(tag)::value, kExactActivation<scalar_t>>(run[i] + shift).slope;
        }
      });
    });
    store_tile<Tile>(acc, place, out);
  }
};

// Two products of the same shape, whose chunks follow each other: z = weight1 @ n and dh = weight2^T @ dy.
template <class Tile_>
struct HiddenProduct {
  using Tile = Tile_;
  using scalar_t = typename Tile::scalar_t;
  using Cursor = typename Tile::ChunkCopy;
  static constexpr int kStages = 4;
  static constexpr int kStageElements = Tile::kStageElements;

  LinearProduct<Tile, 0> z, dh;

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
    const auto h_tile = h.tile(place);
    const auto dz_tile = dz.tile(place);
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

// The gradient of a weight between tokens, the product's rows, and hidden units, its columns. One block takes a tile of
// them and one part of the depth at a time. Its sums go to the workspace,
// gradient[split][token * token_stride + unit * unit_stride], and those of the second operand alone, the gradient of a
// bias, to sums[split][unit] if that is wanted.
template <class Tile>
__global__ void __launch_bounds__(kProductThreads, Tile::kBlocks)
    weight_gradient_kernel(const __grid_constant__ WeightGradientProduct<Tile> product, float* gradient,
                           int64_t token_stride, int64_t unit_stride, float* sums) {
  Pipeline<WeightGradientProduct<Tile>> pipeline(product, dynamic_shared<typename Tile::scalar_t>());
  const int units = product.second.rows;
  for (int tile = static_cast<int>(blockIdx.x); tile < product.tiles(); tile += static_cast<int>(gridDim.x)) {
    const SplitPlace place = product.place(tile);
    const bool wants_sums = sums != nullptr && place.row == 0;
    typename Tile::Accumulator acc;
    typename Tile::ColumnSums column_sums;
    for (int chunk = 0; chunk < product.split_chunks; ++chunk) {
      Tile::multiply(acc, column_sums, wants_sums, pipeline.next(), Tile::kK);
    }
    store_split<Tile>(acc, product, place, gradient, token_stride, unit_stride);
    if (wants_sums) {
      Tile::for_each_sum(column_sums, [&](int column, float sum) {
        const int unit = place.column + column;
        if (unit < units) sums[static_cast<int64_t>(place.split) * units + unit] = sum;
      });
    }
  }
}

}  // namespace mixer_kernels
