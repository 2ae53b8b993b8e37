// What the affine-folded linear does around its products.
#pragma once

#include <cstdint>

#include "affine_token_linear/affine_fold.cuh"
#include "common/token_linear.cuh"
#include "common/weight_gradient.cuh"

namespace mixer_kernels {

// A number for each row of a tile that a thread holds; 0 beyond the rows.
template <class Tile>
struct RowValues {
  float value[Tile::kRows];

  __device__ __forceinline__ RowValues(const float* values, int first_row, int rows) {
    const int first = first_row + Tile::warp_row() + Tile::thread_row();
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row) {
      const int at = first + Tile::row_offset(row);
      value[row] = at < rows ? values[at] : 0.0f;
    }
  }
};

// out = input + scale * product + shift * row_sums + layer_scale * bias, all in float32. The input is x.
template <typename scalar_t>
struct AffineEpilogue {
  static constexpr int kInputs = 1;
  static constexpr bool kKeepsSums = false;
  Folded folded;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, const TilePlace& place,
                                        const TokenOutput<scalar_t>& out, Next&& next) const {
    const int channel = place.column + Tile::first_column();
    for_each_part<Tile>(next, [&](int part, const scalar_t* from) {
      const RowValues<Tile> row_sums(folded.row_sums, place.row, out.rows), bias(folded.bias, place.row, out.rows);
#pragma unroll
      for (int r = 0; r < Tile::kRuns; ++r) {
        float scale[Tile::kRun], shift[Tile::kRun], layer_scale[Tile::kRun];
        load_floats(scale, folded.scale + channel + Tile::column_offset(r));
        load_floats(shift, folded.shift + channel + Tile::column_offset(r));
        load_floats(layer_scale, folded.layer_scale + channel + Tile::column_offset(r));
#pragma unroll
        for (int row = 0; row < Tile::kRows; ++row) {
          if (!is_in_part<Tile>(part, row)) continue;
          float x[Tile::kRun];
          load_input<Tile>(x, from, row, r);
          float* run = Tile::run(acc, row, r);
#pragma unroll
          for (int i = 0; i < Tile::kRun; ++i) {
            const float constant = shift[i] * row_sums.value[row] + layer_scale[i] * bias.value[row];
            run[i] = x[i] + (scale[i] * run[i] + constant);
          }
        }
      }
    });
    store_tile<Tile>(acc, place, out);
  }
};

// Where the backward product leaves what the gradients of the vectors are sums of; null if nobody asks. Those of the
// channels have a term for every warp along the rows of every tile, [image][tile of rows][warp][channel],
// dlayer_scale two; those of the bias [image][tile of columns][warp][row].
struct AffineTerms {
  float *dalpha, *dbeta, *dlayer_scale, *dbias;
};

// out = dy + scale * U, with U = weight^T dy, the product, and the terms of sum(x U), sum(dy row_sums), sum(dy bias)
// and sum(layer_scale dy) of this tile. The inputs are x and dy.
template <typename scalar_t>
struct AffineBackwardEpilogue {
  static constexpr int kInputs = 2;
  static constexpr bool kKeepsSums = true;
  Folded folded;
  AffineTerms terms;

  template <class Tile, class Next>
  __device__ __forceinline__ void apply(typename Tile::Accumulator& acc, const TilePlace& place,
                                        const TokenOutput<scalar_t>& out, Next&& next) const {
    add_x<Tile>(acc, place, out, next);
    add_dy<Tile>(acc, place, out, next);
    store_tile<Tile>(acc, place, out);
  }

 private:
  // One number for each column that a thread holds.
  template <class Tile>
  using ColumnValues = float[Tile::kRuns][Tile::kRun];

  template <class Tile, class Next>
  __device__ __forceinline__ void add_x(typename Tile::Accumulator& acc, const TilePlace& place,
                                        const TokenOutput<scalar_t>& out, Next&& next) const {
    ColumnValues<Tile> xu = {};
    for_each_part<Tile>(next, [&](int part, const scalar_t* from) {
#pragma unroll
      for (int row = 0; row < Tile::kRows; ++row) {
        if (!is_in_part<Tile>(part, row)) continue;
#pragma unroll
        for (int r = 0; r < Tile::kRuns; ++r) {
          float x[Tile::kRun];
          load_input<Tile>(x, from, row, r);
#pragma unroll
          for (int i = 0; i < Tile::kRun; ++i) xu[r][i] += x[i] * Tile::run(acc, row, r)[i];
        }
      }
    });
    for_each_column<Tile>(place, out, [&](int r, int i, int64_t term, int channel, bool owns) {
      const float sum = Tile::sum_rows(xu[r][i]);
      if (!owns) return;
      if (terms.dalpha != nullptr) terms.dalpha[term * out.columns + channel] = folded.layer_scale[channel] * sum;
      if (terms.dlayer_scale != nullptr) {
        terms.dlayer_scale[2 * term * out.columns + channel] = folded.alpha[channel] * sum;
      }
    });
  }

  template <class Tile, class Next>
  __device__ __forceinline__ void add_dy(typename Tile::Accumulator& acc, const TilePlace& place,
                                         const TokenOutput<scalar_t>& out, Next&& next) const {
    const int first_channel = place.column + Tile::first_column();
    ColumnValues<Tile> dy_row_sums = {}, dy_bias = {};
    for_each_part<Tile>(next, [&](int part, const scalar_t* from) {
      const RowValues<Tile> row_sums(folded.row_sums, place.row, out.rows), bias(folded.bias, place.row, out.rows);
      float dbias[Tile::kRows] = {};
#pragma unroll
      for (int r = 0; r < Tile::kRuns; ++r) {
        float scale[Tile::kRun], layer_scale[Tile::kRun];
        load_floats(scale, folded.scale + first_channel + Tile::column_offset(r));
        load_floats(layer_scale, folded.layer_scale + first_channel + Tile::column_offset(r));
#pragma unroll
        for (int row = 0; row < Tile::kRows; ++row) {
          if (!is_in_part<Tile>(part, row)) continue;
          float dy[Tile::kRun];
          load_input<Tile>(dy, from, row, r);
          float* run = Tile::run(acc, row, r);
#pragma unroll
          for (int i = 0; i < Tile::kRun; ++i) {
            dy_row_sums[r][i] += dy[i] * row_sums.value[row];
            dy_bias[r][i] += dy[i] * bias.value[row];
            dbias[row] += dy[i] * layer_scale[i];
            run[i] = dy[i] + scale[i] * run[i];
          }
        }
      }
      store_dbias<Tile>(dbias, part, place, out);
    });
    for_each_column<Tile>(place, out, [&](int r, int i, int64_t term, int channel, bool owns) {
      const float row_sum = Tile::sum_rows(dy_row_sums[r][i]), bias_sum = Tile::sum_rows(dy_bias[r][i]);
      if (!owns) return;
      if (terms.dbeta != nullptr) terms.dbeta[term * out.columns + channel] = folded.layer_scale[channel] * row_sum;
      if (terms.dlayer_scale != nullptr) {
        terms.dlayer_scale[(2 * term + 1) * out.columns + channel] = folded.beta[channel] * row_sum + bias_sum;
      }
    });
  }

  // The rows of a part are whole in it.
  template <class Tile>
  __device__ __forceinline__ void store_dbias(const float (&dbias)[Tile::kRows], int part, const TilePlace& place,
                                              const TokenOutput<scalar_t>& out) const {
    if (terms.dbias == nullptr) return;
    const int64_t column_tiles = (out.columns + Tile::kN - 1) / Tile::kN;
    const int64_t term = (place.image * column_tiles + place.column / Tile::kN) * Tile::kWarpsN + Tile::warp_n();
    const int first_row = place.row + Tile::warp_row() + Tile::thread_row();
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row) {
      if (!is_in_part<Tile>(part, row)) continue;
      const float sum = Tile::sum_columns(dbias[row]);
      const int at = first_row + Tile::row_offset(row);
      if (Tile::owns_rows() && at < out.rows) terms.dbias[term * out.rows + at] = sum;
    }
  }

  // Calls f(run, place in it, number of the term, channel, whether this lane has it to itself) for the columns that a
  // thread holds.
  template <class Tile, typename F>
  static __device__ __forceinline__ void for_each_column(const TilePlace& place, const TokenOutput<scalar_t>& out,
                                                         F&& f) {
    const int64_t row_tiles = (out.rows + Tile::kM - 1) / Tile::kM;
    const int64_t term = (place.image * row_tiles + place.row / Tile::kM) * Tile::kWarpsM + Tile::warp_m();
    const int first = place.column + Tile::first_column();
#pragma unroll
    for (int r = 0; r < Tile::kRuns; ++r) {
#pragma unroll
      for (int i = 0; i < Tile::kRun; ++i) {
        const int channel = first + Tile::column_offset(r) + i;
        f(r, i, term, channel, Tile::owns_columns() && channel < out.columns);
      }
    }
  }
};

// The gradient of the weight, the sum over the images of dy @ (scale * x + shift)^T. One block takes a tile of it and
// one part of the depth at a time; its sums go to the workspace, gradient[split][row][column]. x becomes the other
// factor on its way to the tensor cores, in units that keep a small LayerScale away from the end of float16's range; dy
// itself, which may have few digits to lose, stays as it is.
template <class Tile>
__global__ void __launch_bounds__(kProductThreads, Tile::kBlocks)
    affine_weight_gradient_kernel(const __grid_constant__ WeightGradientProduct<Tile> product,
                                  const __grid_constant__ Folded folded, float* gradient) {
  Pipeline<WeightGradientProduct<Tile>> pipeline(product, dynamic_shared<typename Tile::scalar_t>());
  const float unit = *folded.unit;
  for (int tile = static_cast<int>(blockIdx.x); tile < product.tiles(); tile += static_cast<int>(gridDim.x)) {
    const SplitPlace place = product.place(tile);
    int image_chunk = place.split * product.split_chunks % product.image_chunks;
    typename Tile::Accumulator acc;
    for (int chunk = 0; chunk < product.split_chunks; ++chunk) {
      const int channel = image_chunk * Tile::kK;
      const DepthAffine affine{folded.scale + channel, folded.shift + channel, 1.0f / unit};
      Tile::multiply(acc, affine, pipeline.next(), Tile::kK);
      image_chunk = image_chunk + 1 == product.image_chunks ? 0 : image_chunk + 1;
    }
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row) {
#pragma unroll
      for (int i = 0; i < Tile::kRuns * Tile::kRun; ++i) Tile::run(acc, row, i / Tile::kRun)[i % Tile::kRun] *= unit;
    }
    store_split<Tile>(acc, product, place, gradient, product.second.rows, 1);
  }
}

}  // namespace mixer_kernels
