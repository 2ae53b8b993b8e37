// The convolution for every stride and dilation: reads its inputs through the caches.
#pragma once

#include <cstdint>

#include "depthwise_conv2d/convolution.cuh"

namespace mixer_kernels {

constexpr int kDirectThreads = 256;

// Where output `at` of one dimension meets x with tap k; negative where there is no element.
__device__ __forceinline__ int input_of(int at, int k, int stride, int dilation, int offset, int spread, int size) {
  const int place = at * stride + k * dilation - offset;
  if (place < 0) return -1;
  if (spread == 1) return place < size ? place : -1;
  const int element = place / spread;
  return element * spread == place && element < size ? element : -1;
}

// A block computes a box of outputs, each thread one at a time; neighbours lie next to each other in memory.
template <typename scalar_t>
__global__ void __launch_bounds__(kDirectThreads, 4) direct_convolution_kernel(const __grid_constant__ Convolution c) {
  const int64_t place = blockIdx.x / c.grid.channel_boxes;
  const Box box = c.grid.box(static_cast<int>(blockIdx.x % c.grid.channel_boxes), place);
  const SharedTile<float> outputs{dynamic_shared<float>(), c.slot / 4, c.out_pitch};
  const ChannelEpilogue* epilogues = load_epilogues<kDirectThreads, scalar_t>(c, box);
  const int taps = c.kernel_h * c.kernel_w;
  for_places<kDirectThreads, 1>(
      c.y.along_channels, box.channels, box.rows, box.columns, [&](int channel, int row, int column) {
        const int x_channel = box.channel + channel;
        const auto* weight = static_cast<const scalar_t*>(c.weight) + static_cast<int64_t>(x_channel) * taps;
        float sum = 0.0f;
        for (int kh = 0; kh < c.kernel_h; ++kh) {
          const int x_row = input_of(box.row + row, kh, c.stride_h, c.dilation_h, c.offset_h, c.spread_h, c.x.rows);
          if (x_row < 0) continue;
          for (int kw = 0; kw < c.kernel_w; ++kw) {
            const int x_column =
                input_of(box.column + column, kw, c.stride_w, c.dilation_w, c.offset_w, c.spread_w, c.x.columns);
            if (x_column < 0) continue;
            const int tap = kh * c.kernel_w + kw;
            sum += to_acc(*c.x.template pixel<const scalar_t>(box.image, x_channel, x_row, x_column)) *
                   to_acc(weight[c.flipped ? taps - 1 - tap : tap]);
          }
        }
        *outputs.pixel(channel, row, column) = sum;
      });
  finish_box<kDirectThreads, scalar_t>(c, box, place, outputs, epilogues);
}

}  // namespace mixer_kernels
