// The convolution with stride and dilation 1 on the floating-point units.
#pragma once

#include <cstdint>

#include "depthwise_conv2d/convolution.cuh"

namespace mixer_kernels {

constexpr int kSlidingThreads = 256;
// Outputs of a thread: rows and columns.
constexpr int kSlidingRows = 8;
constexpr int kSlidingColumns = 4;

// Adds the products of kTaps taps of one row of the kernel with one row of inputs.
template <int kTaps>
__device__ __forceinline__ void add_products(float (&sums)[kSlidingColumns], const float (&window)[8],
                                             const float (&weights)[4]) {
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
    for (int i = 0; i < kSlidingColumns; ++i) sums[i] += window[tap + i] * weights[tap];
  }
}

// A block computes a box of outputs, each thread 8 x 4 of one channel. It walks down the rows of inputs with a window
// of 8 columns, and each input meets all of the 8 rows of outputs that it reaches. kWidth: the kernel's, or 0 for any.
template <typename scalar_t, int kWidth>
__global__ void __launch_bounds__(kSlidingThreads, 2)
    sliding_convolution_kernel(const __grid_constant__ Convolution c) {
  const int64_t place = blockIdx.x / c.grid.channel_boxes;
  const Box box = c.grid.box(static_cast<int>(blockIdx.x % c.grid.channel_boxes), place);
  auto* shared = dynamic_shared<float>();
  const SharedTile<float> inputs{shared, c.slot / 4, c.pitch};
  const SharedTile<float> weights{shared + c.grid.box_channels * (c.slot / 4), c.weight_slot / 4, c.weight_pitch};
  fill_zeros<kSlidingThreads>(shared, c.grid.box_channels * c.slot);
  __syncthreads();
  load_box<kSlidingThreads, scalar_t>(
      c.x,
      {box.image, box.channel, box.channels, box.row - c.offset_h, box.rows + c.kernel_h - 1, box.column - c.offset_w,
       box.columns + c.kernel_w - 1},
      inputs);
  load_weights<kSlidingThreads, scalar_t>(c, box, weights);
  const ChannelEpilogue* epilogues = load_epilogues<kSlidingThreads, scalar_t>(c, box);
  __syncthreads();

  const int width = kWidth > 0 ? kWidth : c.kernel_w;
  const int columns = (c.grid.box_columns + kSlidingColumns - 1) / kSlidingColumns;
  const int rows = (c.grid.box_rows + kSlidingRows - 1) / kSlidingRows;
  const int column = static_cast<int>(threadIdx.x) % columns * kSlidingColumns;
  const int row = static_cast<int>(threadIdx.x) / columns % rows * kSlidingRows;
  const int channel = static_cast<int>(threadIdx.x) / columns / rows;
  float sums[kSlidingRows][kSlidingColumns] = {};
  if (channel < box.channels) {
    const float* weight = weights.pixel(channel, 0, 0);
    for (int r = 0; r < kSlidingRows + c.kernel_h - 1; ++r) {
      const float* input = inputs.pixel(channel, row + r, column);
      float window[8], ahead[4];
      load_floats(ahead, input);
#pragma unroll
      for (int i = 0; i < 4; ++i) window[i] = ahead[i];
#pragma unroll
      for (int kw = 0; kw < width; kw += 4) {
        load_floats(ahead, input + kw + 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) window[4 + i] = ahead[i];
#pragma unroll
        for (int o = 0; o < kSlidingRows; ++o) {
          // The same in all threads.
          const int kh = r - o;
          if (kh < 0 || kh >= c.kernel_h) continue;
          float taps[4];
          load_floats(taps, weight + kh * c.weight_pitch + kw);
          // Not with zeros beyond the kernel: there may be infinities in the window.
          const int left = width - kw;
          if (left >= 4) {
            add_products<4>(sums[o], window, taps);
          } else if (left == 3) {
            add_products<3>(sums[o], window, taps);
          } else if (left == 2) {
            add_products<2>(sums[o], window, taps);
          } else {
            add_products<1>(sums[o], window, taps);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) window[i] = window[4 + i];
      }
    }
  }
  // Outputs take the place of the inputs, once nobody reads these.
  __syncthreads();
  const SharedTile<float> outputs{shared, c.slot / 4, c.out_pitch};
  if (channel < box.channels) {
#pragma unroll
    for (int o = 0; o < kSlidingRows; ++o) store_floats(outputs.pixel(channel, row + o, column), sums[o]);
  }
  finish_box<kSlidingThreads, scalar_t>(c, box, place, outputs, epilogues);
}

}  // namespace mixer_kernels
