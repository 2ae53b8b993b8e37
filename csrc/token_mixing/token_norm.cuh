// LayerNorm over the channels of each token: forward for the products, and its backward pass.
#pragma once

#include <cstdint>

#include "common/opaque.cuh"
#include "common/pipeline.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"

namespace mixer_kernels {

constexpr int kNormThreads = 256;
constexpr int kNormBackwardThreads = 640;  // that a multiprocessor takes, and at most a block's
constexpr int kNormBackwardRows = 128;     // of a block at most
constexpr int kNormBackwardTogether = 4;   // rows that a thread has in flight

// LayerNorm's scale and shift; either may be absent.
template <typename scalar_t>
struct NormParameters {
  const void *weight, *bias;
  bool is_float;

  template <int kVec>
  __device__ __forceinline__ void load_weight(float (&to)[kVec], int64_t channel) const {
    load(to, weight, channel, 1.0f);
  }
  template <int kVec>
  __device__ __forceinline__ void load_bias(float (&to)[kVec], int64_t channel) const {
    load(to, bias, channel, 0.0f);
  }

 private:
  template <int kVec>
  __device__ __forceinline__ void load(float (&to)[kVec], const void* from, int64_t channel, float otherwise) const {
    if (from == nullptr) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] = otherwise;
    } else if (is_float) {
      load_floats(to, static_cast<const float*>(from) + channel);
    } else {
      load_floats(to, static_cast<const scalar_t*>(from) + channel);
    }
  }
};

template <typename scalar_t>
struct NormaliseArguments {
  Operand<scalar_t> x;
  int channels;  // of the columns
  NormParameters<scalar_t> parameters;
  float eps;
  float *mean, *rstd;
  scalar_t* n;  // rows as wide as those of x
};

// Calls f(channel, values) for the vectors of a row that a lane of a warp takes; several loads are under way before the
// first value is used.
template <int kVec, typename scalar_t, typename F>
__device__ __forceinline__ void for_each_vector(const scalar_t* row, int channels, F&& f) {
  constexpr int kBatch = 4;
  for (int begin = static_cast<int>(threadIdx.x) % 32 * kVec; begin < channels; begin += kBatch * 32 * kVec) {
    float values[kBatch][kVec];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int channel = begin + j * 32 * kVec;
      if (channel < channels) load_floats(values[j], row + channel);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int channel = begin + j * 32 * kVec;
      if (channel < channels) f(channel, values[j]);
    }
  }
}

struct Statistics {
  float mean, rstd;
};

// Of a row, by a warp, in two passes over it: it stays in the first-level cache.
template <int kVec, typename scalar_t>
__device__ __forceinline__ Statistics row_statistics(const scalar_t* row, int channels, float eps) {
  float sum = 0.0f;
  for_each_vector<kVec>(row, channels, [&](int, const float (&values)[kVec]) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += values[i];
  });
  const float mean = warp_sum(sum) / static_cast<float>(channels);
  float squares = 0.0f;
  for_each_vector<kVec>(row, channels, [&](int, const float (&values)[kVec]) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) squares += (values[i] - mean) * (values[i] - mean);
  });
  return {mean, 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(channels) + eps)};
}

// One warp normalises one token. kStatistics: it computes mean and rstd first, else it takes what is there.
template <typename scalar_t, int kVec, bool kStatistics>
__global__ void __launch_bounds__(kNormThreads, 3)
    normalise_kernel(const __grid_constant__ NormaliseArguments<scalar_t> arguments) {
  const Operand<scalar_t>& in = arguments.x;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kNormThreads / 32) + threadIdx.x / 32;
  const int64_t image = row / in.rows;
  if (image >= in.batch) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const scalar_t* x = in.data + image * in.batch_stride + (row - image * in.rows) * in.row_stride;
  scalar_t* n = arguments.n + row * in.columns;

  Statistics statistics;
  if constexpr (kStatistics) {
    statistics = row_statistics<kVec>(x, arguments.channels, arguments.eps);
    if (lane == 0) {
      arguments.mean[row] = statistics.mean;
      arguments.rstd[row] = statistics.rstd;
    }
  } else {
    statistics = {arguments.mean[row], arguments.rstd[row]};
  }
  for_each_vector<kVec>(x, arguments.channels, [&](int channel, float (&values)[kVec]) {
    float weight[kVec], bias[kVec];
    arguments.parameters.load_weight(weight, channel);
    arguments.parameters.load_bias(bias, channel);
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[i] = (values[i] - statistics.mean) * statistics.rstd * weight[i] + bias[i];
    store_floats(n + channel, values);
  });
  for (int channel = arguments.channels + lane; channel < in.columns; channel += 32) n[channel] = from_acc<scalar_t>(0);
}

template <typename scalar_t>
struct StatisticsArguments {
  Operand<scalar_t> x;
  int channels;  // of the columns
  float eps;
  float *mean, *rstd;
  float* pairs;  // mean and rstd side by side, of padded_rows rows an image, with zeros in those beyond x's
  int padded_rows;
};

// One warp computes what LayerNorm needs to know of one token.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kNormThreads, 3)
    statistics_kernel(const __grid_constant__ StatisticsArguments<scalar_t> arguments) {
  const Operand<scalar_t>& in = arguments.x;
  const int64_t padded_row = static_cast<int64_t>(blockIdx.x) * (kNormThreads / 32) + threadIdx.x / 32;
  const int64_t image = padded_row / arguments.padded_rows;
  if (image >= in.batch) return;
  const int row = static_cast<int>(padded_row - image * arguments.padded_rows);
  const bool is_there = row < in.rows;
  Statistics statistics{};
  if (is_there) {
    const scalar_t* x = in.data + image * in.batch_stride + row * in.row_stride;
    statistics = row_statistics<kVec>(x, arguments.channels, arguments.eps);
  }
  if (threadIdx.x % 32 != 0) return;
  arguments.pairs[padded_row * 2] = statistics.mean;
  arguments.pairs[padded_row * 2 + 1] = statistics.rstd;
  if (is_there) {
    arguments.mean[image * in.rows + row] = statistics.mean;
    arguments.rstd[image * in.rows + row] = statistics.rstd;
  }
}

template <typename scalar_t>
struct NormBackwardArguments {
  Operand<scalar_t> x;
  Operand<scalar_t> dy;  // the residual's gradient; without data there is no residual
  int channels;          // of the columns
  int64_t rows_per_block;
  NormParameters<scalar_t> parameters;
  const float *mean, *rstd;
  scalar_t* dx;    // holds dn, the gradient of the normalised tokens; contiguous
  float* dnorm;    // [block][weight, bias][channel]
  float* dy_sums;  // of each row; null if nobody asks
};

// A block takes up to 128 tokens, four at a time. A thread has the same channels of each: its sums over the tokens stay
// in registers, and so does what it has read of a token, until the sums over the channels are there for dx. Only rows
// of more channels than the block has threads for are read twice.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kNormBackwardThreads)
    norm_backward_kernel(const __grid_constant__ NormBackwardArguments<scalar_t> arguments) {
  using vector_t = Vector<scalar_t, kVec>;
  constexpr int kTogether = kNormBackwardTogether;
  enum { kG, kGXhat, kDy, kSums };  // sums over the channels
  struct Row {
    int64_t x, dy;  // where they begin: of a pointer the compiler would not know to what memory it points
    float mean, rstd;
    float means[2];  // of g and g * xhat
  };
  __shared__ Row shared_rows[kNormBackwardRows];
  __shared__ float shared_sums[kNormBackwardThreads / 32][kSums * kTogether];

  const Operand<scalar_t>&in = arguments.x, &residual = arguments.dy;
  const int channels = arguments.channels;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t first = blockIdx.x * arguments.rows_per_block;
  const int64_t left = static_cast<int64_t>(in.batch) * in.rows - first;
  const int count = static_cast<int>(left < arguments.rows_per_block ? left : arguments.rows_per_block);
  for (int r = thread; r < count; r += threads) {
    const int64_t image = (first + r) / in.rows, token = first + r - image * in.rows;
    Row& row = shared_rows[r];
    row.x = image * in.batch_stride + token * in.row_stride;
    row.dy = image * residual.batch_stride + token * residual.row_stride;
    row.mean = arguments.mean[first + r];
    row.rstd = arguments.rstd[first + r];
  }
  __syncthreads();
  int64_t begin_dx = first * channels;
  // Computed once: the compiler would rather do it again for every row.
  make_opaque(begin_dx);
  scalar_t* const dx = arguments.dx + begin_dx;

  // Behind the last row it comes again, without consequence.
  const auto row_of = [&](int r) -> const Row& { return shared_rows[r < count ? r : count - 1]; };
  vector_t x[kTogether], dn[kTogether], dy[kTogether];
  const auto load_rows = [&](int begin, int channel) {
    const scalar_t* from = dx + static_cast<int64_t>(begin) * channels + channel;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const Row& row = row_of(begin + j);
      x[j] = vector_t::load(in.data + row.x + channel);
      dn[j] = vector_t::load(from);
      dy[j] = residual.data != nullptr ? vector_t::load(residual.data + row.dy + channel) : vector_t::zero();
      if (begin + j + 1 < count) from += channels;
    }
  };
  const auto add_channels = [&](int begin, const float (&weight)[kVec], float (&sums)[kSums][kTogether]) {
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const Row& row = row_of(begin + j);
      float x_values[kVec], dn_values[kVec], dy_values[kVec];
      to_floats(x_values, x[j]);
      to_floats(dn_values, dn[j]);
      to_floats(dy_values, dy[j]);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float g = dn_values[i] * weight[i];
        sums[kG][j] += g;
        sums[kGXhat][j] += g * ((x_values[i] - row.mean) * row.rstd);
        sums[kDy][j] += dy_values[i];
      }
    }
  };
  // Adds up what the threads have, the warps in their order.
  const auto finish_sums = [&](int begin, const float (&sums)[kSums][kTogether]) {
#pragma unroll
    for (int i = 0; i < kSums * kTogether; ++i) {
      const float sum = warp_sum(sums[i / kTogether][i % kTogether]);
      if (thread % 32 == 0) shared_sums[thread / 32][i] = sum;
    }
    __syncthreads();
    const int which = thread / kTogether, r = begin + thread % kTogether;
    if (which < kSums && r < count) {
      float sum = 0.0f;
#pragma unroll 4
      for (int warp = 0; warp < threads / 32; ++warp) sum += shared_sums[warp][thread];
      if (which != kDy) {
        shared_rows[r].means[which] = sum / static_cast<float>(channels);
      } else if (arguments.dy_sums != nullptr) {
        arguments.dy_sums[first + r] = sum;
      }
    }
    __syncthreads();
  };

  const int width = threads * kVec;  // of what the block reads at once
  if (channels > width) {
    for (int begin = 0; begin < count; begin += kTogether) {
      float sums[kSums][kTogether] = {};
      for (int channel = thread * kVec; channel < channels; channel += width) {
        float weight[kVec];
        arguments.parameters.load_weight(weight, channel);
        load_rows(begin, channel);
        add_channels(begin, weight, sums);
      }
      finish_sums(begin, sums);
    }
  }
  for (int first_channel = 0; first_channel < channels; first_channel += width) {
    const int channel = first_channel + thread * kVec;
    const bool is_inside = channel < channels;
    float weight[kVec], dweight[kVec] = {}, dbias[kVec] = {};
    if (is_inside) arguments.parameters.load_weight(weight, channel);
    for (int begin = 0; begin < count; begin += kTogether) {
      if (is_inside) load_rows(begin, channel);
      if (channels <= width) {
        float sums[kSums][kTogether] = {};
        if (is_inside) add_channels(begin, weight, sums);
        finish_sums(begin, sums);
      }
      if (!is_inside) continue;
      scalar_t* to = dx + static_cast<int64_t>(begin) * channels + channel;
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (begin + j >= count) break;
        const Row& row = shared_rows[begin + j];
        float x_values[kVec], values[kVec], dy_values[kVec];
        to_floats(x_values, x[j]);
        to_floats(values, dn[j]);
        to_floats(dy_values, dy[j]);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const float xhat = (x_values[i] - row.mean) * row.rstd;
          dweight[i] += values[i] * xhat;
          dbias[i] += values[i];
          const float g = values[i] * weight[i];
          values[i] = dy_values[i] + row.rstd * (g - row.means[kG] - xhat * row.means[kGXhat]);
        }
        store_floats(to, values);
        to += channels;
      }
    }
    if (is_inside) {
      float* const sums = arguments.dnorm + static_cast<int64_t>(blockIdx.x) * 2 * channels + channel;
      store_floats(sums, dweight);
      store_floats(sums + channels, dbias);
    }
  }
}

}  // namespace mixer_kernels
