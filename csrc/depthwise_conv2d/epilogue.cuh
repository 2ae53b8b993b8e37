// What follows a convolution, number by number: in training, where BatchNorm's statistics come in between.
#pragma once

#include <cstdint>

#include "common/activation.cuh"
#include "common/channel_parameter.cuh"
#include "common/warp.cuh"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace mixer_kernels {

constexpr int kEpilogueThreads = 256;

// A dense map as a matrix: in channels_last a row is a pixel and a column a channel; else a row is a channel of an
// image and a column a pixel of it.
struct MapMatrix {
  int64_t rows, columns;
  int channels;
  bool channels_last;

  // Of the element in a row and column; the next column's is `channel_step()` further.
  __device__ __forceinline__ int channel(int64_t row, int64_t column) const {
    return static_cast<int>(channels_last ? column : row % channels);
  }
  __device__ __forceinline__ int channel_step() const { return channels_last ? 1 : 0; }
};

// kVec neighbours of one row.
struct MatrixPlace {
  int64_t at;  // from the matrix's beginning
  int channel;
};

// The place of this thread, behind the matrix's end for those left over.
template <int kVec>
__device__ __forceinline__ MatrixPlace place_in(const MapMatrix& matrix) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kEpilogueThreads + threadIdx.x;
  const int64_t pieces = matrix.columns / kVec;
  const int64_t row = piece / pieces;
  return {piece * kVec, matrix.channel(row, (piece - row * pieces) * kVec)};
}

template <typename scalar_t>
struct EpilogueForward {
  MapMatrix matrix;
  const scalar_t *z, *residual;  // residual may be null
  Activation activation;
  ChannelParameter scale, shift;
  scalar_t* y;
};

// y = residual + scale * act(z) + shift; a thread computes kVec neighbours.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kEpilogueThreads)
    epilogue_forward_kernel(const __grid_constant__ EpilogueForward<scalar_t> e) {
  constexpr bool kExact = std::is_same_v<scalar_t, float>;
  const MatrixPlace place = place_in<kVec>(e.matrix);
  if (place.at >= e.matrix.rows * e.matrix.columns) return;
  const int step = e.matrix.channel_step();
  float values[kVec], past[kVec] = {};
  load_floats(values, e.z + place.at);
  if (e.residual != nullptr) load_floats(past, e.residual + place.at);
  dispatch_activation(e.activation, [&](auto activation) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[i] = activate<decltype(activation)::value, kExact>(values[i]).value;
  });
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const int channel = place.channel + i * step;
    values[i] = past[i] + (channel_value<scalar_t>(e.scale, channel, 1.0f) * values[i] +
                           channel_value<scalar_t>(e.shift, channel, 0.0f));
  }
  store_floats(e.y + place.at, values);
}

template <typename scalar_t>
struct EpilogueBackward {
  MapMatrix matrix;
  const scalar_t *dy, *z;
  Activation activation;
  ChannelParameter c0, c1, c2;
  scalar_t* dz;
};

// dz = (c0 * dy + c1 * act(z) + c2) * act'(z); a thread computes kVec neighbours.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kEpilogueThreads)
    epilogue_backward_kernel(const __grid_constant__ EpilogueBackward<scalar_t> e) {
  constexpr bool kExact = std::is_same_v<scalar_t, float>;
  const MatrixPlace place = place_in<kVec>(e.matrix);
  if (place.at >= e.matrix.rows * e.matrix.columns) return;
  const int step = e.matrix.channel_step();
  float values[kVec], gradients[kVec], slopes[kVec];
  load_floats(values, e.z + place.at);
  load_floats(gradients, e.dy + place.at);
  dispatch_activation(e.activation, [&](auto activation) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const Activated activated = activate<decltype(activation)::value, kExact>(values[i]);
      values[i] = activated.value;
      slopes[i] = activated.slope;
    }
  });
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const int channel = place.channel + i * step;
    const float gradient = channel_value<scalar_t>(e.c0, channel, 1.0f) * gradients[i] +
                           channel_value<scalar_t>(e.c1, channel, 0.0f) * values[i] +
                           channel_value<scalar_t>(e.c2, channel, 0.0f);
    gradients[i] = gradient * slopes[i];
  }
  store_floats(e.dz + place.at, gradients);
}

template <typename scalar_t>
struct EpilogueSums {
  MapMatrix matrix;
  const scalar_t *dy, *z;
  bool is_aligned;  // for vectors; which elements a thread adds up, in which order, must not depend on it
  Activation activation;
  ChannelParameter center;
  int64_t splits;               // of the rows in channels_last, else of a row's columns
  float *dy_terms, *act_terms;  // [image,][split][channel]
};

// Adds dy and dy * (act(z) - center) of kVec neighbours to sums of a few.
template <typename scalar_t, int kVec>
__device__ __forceinline__ void add_gradients(const EpilogueSums<scalar_t>& e, int64_t at, const float (&centers)[kVec],
                                              float (&dy_sums)[kVec], float (&act_sums)[kVec]) {
  constexpr bool kExact = std::is_same_v<scalar_t, float>;
  float values[kVec], gradients[kVec];
  if (e.is_aligned) {
    load_floats(values, e.z + at);
    load_floats(gradients, e.dy + at);
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      values[i] = to_acc(e.z[at + i]);
      gradients[i] = to_acc(e.dy[at + i]);
    }
  }
  dispatch_activation(e.activation, [&](auto activation) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[i] = activate<decltype(activation)::value, kExact>(values[i]).value;
  });
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    dy_sums[i] += gradients[i];
    act_sums[i] += gradients[i] * (values[i] - centers[i]);
  }
}

// The sums of planes: a warp adds up one split of one channel of one image.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kEpilogueThreads)
    sum_planes_kernel(const __grid_constant__ EpilogueSums<scalar_t> e) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * (kEpilogueThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  const int64_t row = task / e.splits, split = task - row * e.splits;
  if (row >= e.matrix.rows) return;
  const int channel = e.matrix.channel(row, 0);
  const float center = channel_value<scalar_t>(e.center, channel, 0.0f);
  float centers[kVec], dy_sums[kVec] = {}, act_sums[kVec] = {};
#pragma unroll
  for (int i = 0; i < kVec; ++i) centers[i] = center;
  const int64_t pieces = e.matrix.columns / kVec, end = pieces * (split + 1) / e.splits;
  for (int64_t piece = pieces * split / e.splits + lane; piece < end; piece += 32) {
    add_gradients<scalar_t, kVec>(e, row * e.matrix.columns + piece * kVec, centers, dy_sums, act_sums);
  }
#pragma unroll
  for (int i = 1; i < kVec; ++i) {
    dy_sums[0] += dy_sums[i];
    act_sums[0] += act_sums[i];
  }
  const float dy_sum = warp_sum(dy_sums[0]), act_sum = warp_sum(act_sums[0]);
  if (lane > 0) return;
  const int64_t term = (row / e.matrix.channels * e.splits + split) * e.matrix.channels + channel;
  e.dy_terms[term] = dy_sum;
  e.act_terms[term] = act_sum;
}

constexpr int kSumLanes = 32;  // vectors of channels that a block sums
constexpr int kSumLines = kEpilogueThreads / kSumLanes;

// The sums of pixels: a block adds up one split of the pixels for 32 vectors of channels, a warp every 8th pixel.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kEpilogueThreads)
    sum_pixels_kernel(const __grid_constant__ EpilogueSums<scalar_t> e) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes, line = static_cast<int>(threadIdx.x) / kSumLanes;
  const int64_t channel_blocks = (e.matrix.columns + kSumLanes * kVec - 1) / (kSumLanes * kVec);
  const int64_t split = blockIdx.x / channel_blocks;
  const int channel = static_cast<int>((blockIdx.x - split * channel_blocks) * kSumLanes + lane) * kVec;
  const bool is_inside = channel < e.matrix.columns;
  float centers[kVec] = {}, dy_sums[kVec] = {}, act_sums[kVec] = {};
  if (is_inside) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) centers[i] = channel_value<scalar_t>(e.center, channel + i, 0.0f);
    const int64_t end = e.matrix.rows * (split + 1) / e.splits;
    for (int64_t row = e.matrix.rows * split / e.splits + line; row < end; row += kSumLines) {
      add_gradients<scalar_t, kVec>(e, row * e.matrix.columns + channel, centers, dy_sums, act_sums);
    }
  }
  __shared__ float partial[2][kSumLines][kSumLanes][kVec + 1];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    partial[0][line][lane][i] = dy_sums[i];
    partial[1][line][lane][i] = act_sums[i];
  }
  __syncthreads();
  // The first two warps finish one of the two sums each.
  if (line >= 2 || !is_inside) return;
  float* to = (line == 0 ? e.dy_terms : e.act_terms) + split * e.matrix.channels + channel;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    float sum = 0.0f;
    for (int other = 0; other < kSumLines; ++other) sum += partial[line][other][lane][i];
    to[i] = sum;
  }
}

}  // namespace mixer_kernels
