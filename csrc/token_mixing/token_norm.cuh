// LayerNorm over the channels of each token: forward for the products, and its backward pass.
#pragma once

#include <cstdint>

#include "common/pipeline.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"

namespace mixer_kernels {

constexpr int kNormThreads = 256;
constexpr int kNormBackwardThreads = 128;
constexpr int kNormBackwardRows = 64;  // of a block at most

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

// One block takes up to 64 tokens: first a warp a token for the two sums over its channels, then a thread a channel for
// dx and the sums over the block's tokens.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kNormBackwardThreads)
    norm_backward_kernel(const __grid_constant__ NormBackwardArguments<scalar_t> arguments) {
  struct Row {
    const scalar_t *x, *dy;
    float mean, rstd, mean_g, mean_g_xhat;
  };
  __shared__ Row shared_rows[kNormBackwardRows];
  const int64_t first = blockIdx.x * arguments.rows_per_block;
  const Operand<scalar_t>&in = arguments.x, &residual = arguments.dy;
  const int64_t left = static_cast<int64_t>(in.batch) * in.rows - first;
  const int count = static_cast<int>(left < arguments.rows_per_block ? left : arguments.rows_per_block);
  const int channels = arguments.channels;
  scalar_t* dn = arguments.dx + first * channels;

  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < count; r += kNormBackwardThreads / 32) {
    const int64_t image = (first + r) / in.rows;
    const int64_t token = first + r - image * in.rows;
    Row row;
    row.x = in.data + image * in.batch_stride + token * in.row_stride;
    row.dy = residual.data + image * residual.batch_stride + token * residual.row_stride;
    row.mean = arguments.mean[first + r];
    row.rstd = arguments.rstd[first + r];
    float sum_g = 0.0f, sum_g_xhat = 0.0f, sum_dy = 0.0f;
#pragma unroll 4
    for (int channel = lane * kVec; channel < channels; channel += 32 * kVec) {
      float x[kVec], g[kVec], weight[kVec];
      load_floats(x, row.x + channel);
      load_floats(g, dn + static_cast<int64_t>(r) * channels + channel);
      arguments.parameters.load_weight(weight, channel);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        g[i] *= weight[i];
        sum_g += g[i];
        sum_g_xhat += g[i] * ((x[i] - row.mean) * row.rstd);
      }
      if (arguments.dy_sums != nullptr) {
        float dy[kVec];
        load_floats(dy, row.dy + channel);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum_dy += dy[i];
      }
    }
    row.mean_g = warp_sum(sum_g) / static_cast<float>(channels);
    row.mean_g_xhat = warp_sum(sum_g_xhat) / static_cast<float>(channels);
    sum_dy = warp_sum(sum_dy);
    if (lane == 0) {
      shared_rows[r] = row;
      if (arguments.dy_sums != nullptr) arguments.dy_sums[first + r] = sum_dy;
    }
  }
  __syncthreads();

  for (int channel = static_cast<int>(threadIdx.x) * kVec; channel < channels; channel += kNormBackwardThreads * kVec) {
    float weight[kVec], dweight[kVec] = {}, dbias[kVec] = {};
    arguments.parameters.load_weight(weight, channel);
    // dx takes the place of dn, so the compiler may not load past a store by itself.
    constexpr int kBatch = 4;
    for (int begin = 0; begin < count; begin += kBatch) {
      float x[kBatch][kVec], values[kBatch][kVec], dy[kBatch][kVec] = {};
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (begin + j >= count) break;
        const Row& row = shared_rows[begin + j];
        load_floats(x[j], row.x + channel);
        load_floats(values[j], dn + static_cast<int64_t>(begin + j) * channels + channel);
        if (residual.data != nullptr) load_floats(dy[j], row.dy + channel);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (begin + j >= count) break;
        const Row& row = shared_rows[begin + j];
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const float xhat = (x[j][i] - row.mean) * row.rstd;
          dweight[i] += values[j][i] * xhat;
          dbias[i] += values[j][i];
          const float g = values[j][i] * weight[i];
          values[j][i] = dy[j][i] + row.rstd * (g - row.mean_g - xhat * row.mean_g_xhat);
        }
        store_floats(dn + static_cast<int64_t>(begin + j) * channels + channel, values[j]);
      }
    }
    float* sums = arguments.dnorm + static_cast<int64_t>(blockIdx.x) * 2 * channels + channel;
    store_floats(sums, dweight);
    store_floats(sums + channels, dbias);
  }
}

}  // namespace mixer_kernels
