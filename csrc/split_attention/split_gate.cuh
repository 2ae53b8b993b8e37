// Device code of the small perceptron between the passes of the shifted split attention: from the sums over the pixels
// to the weights of the branches. A block computes an image.
#pragma once

#include <cstdint>

#include "common/activation.cuh"
#include "common/vector.cuh"
#include "split_attention/split_attention.h"

namespace mixer_kernels {

constexpr int kGateThreads = 512;
constexpr int kGateRows = 4;  // of a matrix, that a thread has in flight

// What the parts of an image's sums add up to: terms[part][image][column] of `columns`. In double, for there may be
// many parts.
__device__ __forceinline__ void add_parts(const float* terms, int parts, int64_t part_stride, int columns, float* to) {
  constexpr int kColumns = 256, kSlices = kGateThreads / kColumns, kTogether = 8;
  __shared__ double partial[kSlices][kColumns];
  const int slice = static_cast<int>(threadIdx.x) / kColumns, lane = static_cast<int>(threadIdx.x) % kColumns;
  for (int first = 0; first < columns; first += kColumns) {
    const int column = first + lane;
    double sum = 0.0;
    if (column < columns) {
      for (int begin = slice; begin < parts; begin += kTogether * kSlices) {
        float values[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int part = begin + i * kSlices;
          values[i] = part < parts ? terms[part * part_stride + column] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) sum += values[i];
      }
    }
    partial[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && column < columns) {
#pragma unroll
      for (int i = 1; i < kSlices; ++i) sum += partial[i][lane];
      to[column] = static_cast<float>(sum);
    }
    __syncthreads();
  }
}

// Calls use(row, product) for the product of each row of a matrix with a vector. As many neighbouring lanes as a row
// has vectors share it, a warp at most, and have several rows in flight.
template <int kVec, typename scalar_t, typename Use>
__device__ __forceinline__ void multiply_rows(const scalar_t* matrix, int rows, int columns, const float* vector,
                                              Use&& use) {
  int lanes = 1;
  while (lanes < 32 && lanes * kVec < columns) lanes *= 2;
  const int lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
  const int groups = kGateThreads / lanes;
  for (int begin = 0; begin < rows; begin += groups * kGateRows) {
    const int first = begin + group;
    float sums[kGateRows] = {};
    for (int column = lane * kVec; column < columns; column += lanes * kVec) {
      Vector<scalar_t, kVec> loaded[kGateRows];
      float factors[kVec], values[kVec];
#pragma unroll
      for (int r = 0; r < kGateRows; ++r) {
        // Beyond the last row that one again: a load that may be left out would be waited for here.
        const int row = first + r * groups;
        const int64_t inside = row < rows ? row : rows - 1;
        loaded[r] = Vector<scalar_t, kVec>::load(matrix + inside * columns + column);
      }
      load_floats(factors, vector + column);
#pragma unroll
      for (int r = 0; r < kGateRows; ++r) {
        to_floats(values, loaded[r]);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sums[r] += values[i] * factors[i];
      }
    }
#pragma unroll
    for (int r = 0; r < kGateRows; ++r) {
      for (int mask = lanes / 2; mask > 0; mask /= 2) sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], mask);
      const int row = first + r * groups;
      if (lane == 0 && row < rows) use(row, sums[r]);
    }
  }
}

// Calls use(column, product) for the product of a vector with each column of a matrix. The threads that share a column
// take every so many rows of it.
template <int kVec, typename scalar_t, typename Use>
__device__ __forceinline__ void multiply_columns(const scalar_t* matrix, int rows, int columns, const float* vector,
                                                 Use&& use) {
  constexpr int kMostLanes = 64;
  // One element more than a vector has, for the banks.
  __shared__ float partial[kGateThreads][kVec + 1];
  const int vectors = columns / kVec, lanes = vectors < kMostLanes ? vectors : kMostLanes;
  if (lanes == 0) return;
  const int groups = kGateThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
  for (int begin = 0; begin < vectors; begin += lanes) {
    float sums[kVec] = {};
    if (group < groups && begin + lane < vectors) {
      for (int first = group; first < rows; first += kGateRows * groups) {
        Vector<scalar_t, kVec> loaded[kGateRows];
        float factors[kGateRows], values[kVec];
#pragma unroll
        for (int r = 0; r < kGateRows; ++r) {
          const int64_t row = first + r * groups < rows ? first + r * groups : first;
          loaded[r] = Vector<scalar_t, kVec>::load(matrix + row * columns + (begin + lane) * kVec);
          factors[r] = vector[row];
        }
#pragma unroll
        for (int r = 0; r < kGateRows; ++r) {
          if (first + r * groups >= rows) break;
          to_floats(values, loaded[r]);
#pragma unroll
          for (int i = 0; i < kVec; ++i) sums[i] += factors[r] * values[i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) partial[threadIdx.x][i] = sums[i];
    __syncthreads();
    const int left = columns - begin * kVec, count = left < lanes * kVec ? left : lanes * kVec;
    for (int c = static_cast<int>(threadIdx.x); c < count; c += kGateThreads) {
      float sum = 0.0f;
#pragma unroll 4
      for (int g = 0; g < groups; ++g) sum += partial[g * lanes + c / kVec][c % kVec];
      use(begin * kVec + c, sum);
    }
    __syncthreads();
  }
}

template <typename scalar_t>
struct SplitGate {
  const float* terms;  // [part][image][channel]
  int parts, channels, hidden_size;
  int64_t batch;
  const scalar_t *weight1, *weight2;  // (hidden, channels), (branches * channels, hidden)
  float *total, *hidden, *weights;    // (batch, channels), (batch, hidden), (batch, branches, channels)
};

// weights = softmax over the branches of weight2 @ gelu(weight1 @ total).
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kGateThreads, 1) split_gate_kernel(const __grid_constant__ SplitGate<scalar_t> g) {
  const int64_t image = blockIdx.x;
  const int channels = g.channels;
  float* const total = g.total + image * channels;
  float* const hidden = g.hidden + image * g.hidden_size;
  float* const weights = g.weights + image * kBranches * channels;
  add_parts(g.terms + image * channels, g.parts, g.batch * channels, channels, total);
  multiply_rows<kVec>(g.weight1, g.hidden_size, channels, total,
                      [&](int row, float inner) { hidden[row] = activate<Activation::kGelu, true>(inner).value; });
  __syncthreads();
  multiply_rows<kVec>(g.weight2, kBranches * channels, g.hidden_size, hidden,
                      [&](int row, float logit) { weights[row] = logit; });
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kGateThreads) {
    float powers[kBranches], most = weights[c], sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kBranches; ++k) most = fmaxf(most, weights[k * channels + c]);
#pragma unroll
    for (int k = 0; k < kBranches; ++k) sum += powers[k] = expf(weights[k * channels + c] - most);
#pragma unroll
    for (int k = 0; k < kBranches; ++k) weights[k * channels + c] = powers[k] / sum;
  }
}

struct SplitGateBackward {
  const float* terms;  // of the weights' gradient, [part][image][branch][channel]
  int parts, channels, hidden_size;
  int64_t batch;
  SplitGateArguments arguments;
  float *dlogits, *dinner, *da;
  SplitGateFactors factors;
};

// From the gradient of the weights back to that of the sums; the hidden layer is computed again.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kGateThreads, 1)
    split_gate_backward_kernel(const __grid_constant__ SplitGateBackward g) {
  const int64_t image = blockIdx.x;
  const int channels = g.channels, columns = kBranches * channels;
  const float* const total = g.arguments.total + image * channels;
  const float* const weights = g.arguments.weights + image * columns;
  const auto* const weight1 = static_cast<const scalar_t*>(g.arguments.weight1);
  const auto* const weight2 = static_cast<const scalar_t*>(g.arguments.weight2);
  const auto write = [](void* to, int64_t at, float value) {
    static_cast<scalar_t*>(to)[at] = from_acc<scalar_t>(value);
  };
  float* const dlogits = g.dlogits + image * columns;
  float* const dinner = g.dinner + image * g.hidden_size;
  add_parts(g.terms + image * columns, g.parts, g.batch * columns, columns, dlogits);
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kGateThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kBranches; ++k) sum += weights[k * channels + c] * dlogits[k * channels + c];
#pragma unroll
    for (int k = 0; k < kBranches; ++k) {
      const int at = k * channels + c;
      const float gradient = weights[at] * (dlogits[at] - sum);
      dlogits[at] = gradient;
      write(g.factors.dlogits, image * columns + at, gradient);
    }
    write(g.factors.total, image * channels + c, total[c]);
  }
  multiply_rows<kVec>(weight1, g.hidden_size, channels, total, [&](int row, float inner) {
    const Activated hidden = activate<Activation::kGelu, true>(inner);
    write(g.factors.hidden, image * g.hidden_size + row, hidden.value);
    dinner[row] = hidden.slope;
  });
  __syncthreads();
  multiply_columns<kVec>(weight2, columns, g.hidden_size, dlogits, [&](int column, float dhidden) {
    const float gradient = dhidden * dinner[column];
    dinner[column] = gradient;
    write(g.factors.dinner, image * g.hidden_size + column, gradient);
  });
  multiply_columns<kVec>(weight1, g.hidden_size, channels, dinner,
                         [&](int column, float gradient) { g.da[image * channels + column] = gradient; });
}

}  // namespace mixer_kernels
