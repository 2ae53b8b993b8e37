// The convolution with stride and dilation 1 on the tensor cores.
#pragma once

#include <cstdint>

#include "depthwise_conv2d/convolution.cuh"

namespace mixer_kernels {

constexpr int kBandedThreads = 128;
constexpr int kBandColumns = 8;  // outputs next to each other that share a band
constexpr int kBandLines = 16;   // runs of such outputs in a product
constexpr int kBandRows = 8;     // rows of outputs that a thread keeps
constexpr int kBandDepth = 16;   // inputs of a product
constexpr int kBandBorder = 8;   // zeros in front of each row of weights; kBandColumns - 1 are read

// The band of one row of the kernel, inputs 16 s to 16 s + 15 by 8 outputs: element (i, j) is weight[16 s + i - j], or
// zero. `row` points to the weight of input 0 and output 0, zeros lie around the kernel.
template <typename scalar_t>
__device__ __forceinline__ void load_band(uint32_t (&band)[2], const scalar_t* row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* at = reinterpret_cast<const uint16_t*>(row) + lane % 4 * 2 - lane / 4;
  band[0] = at[0] | static_cast<uint32_t>(at[1]) << 16;
  band[1] = at[8] | static_cast<uint32_t>(at[9]) << 16;
}

// Multiplies one channel. A product takes 16 runs of 8 outputs, which lie side by side in `column_blocks` columns and,
// below each other, row_steps rows apart. Of each row of inputs, a step of 16 columns is read once and meets all rows
// of the kernel: the sums for the rows between the runs stay in registers. kHeight: the kernel's, with 8 rows between
// the runs, so that the compiler knows which products there are; or 0 for any.
//
// Zeros outside the band are multiplied, too: an input that is not finite makes those outputs NaN that lie in its run
// or a neighbouring one within the band's depth, further than the kernel reaches.
template <int kHeight, typename scalar_t>
__device__ __forceinline__ void multiply_channel(float (&sums)[kBandRows][4], const Convolution& c,
                                                 const scalar_t* inputs, const scalar_t* weights) {
  const int height = kHeight > 0 ? kHeight : c.kernel_h, row_steps = kHeight > 0 ? kBandRows : c.row_steps;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Lane l names a row of ldmatrix: run l % 16, the first or second 8 of the 16 inputs.
  const int line = lane % kBandLines;
  const scalar_t* first = inputs + line / c.column_blocks * row_steps * c.pitch +
                          line % c.column_blocks * kBandColumns + lane / kBandLines * 8;
#pragma unroll 1
  for (int step = 0; step < c.depth_steps; ++step) {
    uint32_t bands[kBandRows][2];  // of rows of the kernel modulo 8
    const scalar_t* input = first + step * kBandDepth;
    const scalar_t* weight = weights + kBandBorder + step * kBandDepth;
    // Products of 8 rows of inputs from `begin` on. The conditions are the same in all threads.
    const auto multiply_rows = [&](int begin, auto is_inside) {
      constexpr bool kInside = decltype(is_inside)::value;
#pragma unroll
      for (int i = 0; i < kBandRows; ++i) {
        const int row = begin + i;
        if (!kInside && row >= row_steps + height - 1) break;
        if (kInside || row < height) load_band(bands[i], weight + row * c.weight_pitch);
        uint32_t lines[4];
        ldmatrix(lines, input + row * c.pitch);
#pragma unroll
        for (int o = 0; o < kBandRows; ++o) {
          const int kh = row - o;
          if (kInside || (o < row_steps && kh >= 0 && kh < height)) mma<scalar_t>(sums[o], lines, bands[(i - o) & 7]);
        }
      }
    };
    if constexpr (kHeight > 0) {
#pragma unroll
      for (int begin = 0; begin < kBandRows + kHeight - 1; begin += kBandRows) {
        multiply_rows(begin, std::false_type{});
      }
    } else {
      for (int begin = 0; begin < row_steps + height - 1; begin += kBandRows) {
        if (row_steps == kBandRows && begin >= kBandRows && begin + kBandRows <= height) {
          multiply_rows(begin, std::true_type{});
        } else {
          multiply_rows(begin, std::false_type{});
        }
      }
    }
  }
}

// A block computes a box of outputs, each warp one channel after the other.
template <typename scalar_t>
__global__ void __launch_bounds__(kBandedThreads, 4) banded_convolution_kernel(const __grid_constant__ Convolution c) {
  const int64_t place = blockIdx.x / c.grid.channel_boxes;
  const Box box = c.grid.box(static_cast<int>(blockIdx.x % c.grid.channel_boxes), place);
  constexpr int kSize = sizeof(scalar_t);
  auto* shared = dynamic_shared<scalar_t>();
  const SharedTile<scalar_t> inputs{shared, c.slot / kSize, c.pitch};
  const SharedTile<scalar_t> weights{shared + c.grid.box_channels * inputs.slot, c.weight_slot / kSize, c.weight_pitch};
  const SharedTile<float> outputs{reinterpret_cast<float*>(shared), c.slot / 4, c.out_pitch};
  fill_zeros<kBandedThreads>(shared, c.grid.box_channels * (c.slot + c.weight_slot));
  __syncthreads();
  load_box<kBandedThreads, scalar_t>(c.x,
                                     {box.image, box.channel, box.channels, box.row - c.offset_h,
                                      box.rows + c.kernel_h - 1, box.column - c.offset_w, box.columns + c.kernel_w - 1},
                                     inputs);
  load_weights<kBandedThreads, scalar_t>(c, box,
                                         SharedTile<scalar_t>{weights.data + kBandBorder, weights.slot, weights.pitch});
  const ChannelEpilogue* epilogues = load_epilogues<kBandedThreads, scalar_t>(c, box);
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int channel = static_cast<int>(threadIdx.x) / 32; channel < box.channels; channel += kBandedThreads / 32) {
    float sums[kBandRows][4] = {};
    const scalar_t *input = inputs.pixel(channel, 0, 0), *weight = weights.pixel(channel, 0, 0);
    if (c.kernel_h == 9 && c.row_steps == kBandRows) {
      multiply_channel<9>(sums, c, input, weight);
    } else if (c.kernel_h == 7 && c.row_steps == kBandRows) {
      multiply_channel<7>(sums, c, input, weight);
    } else {
      multiply_channel<0>(sums, c, input, weight);
    }
    // Outputs take the place of the inputs, which nobody but this warp reads.
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int line = lane / 4 + 8 * half;
      const int row = line / c.column_blocks * c.row_steps;
      float* to = outputs.pixel(channel, row, line % c.column_blocks * kBandColumns + lane % 4 * 2);
#pragma unroll
      for (int o = 0; o < kBandRows; ++o) {
        if (o >= c.row_steps) break;
        const float pair[2] = {sums[o][2 * half], sums[o][2 * half + 1]};
        store_floats(to + o * c.out_pitch, pair);
      }
    }
  }
  finish_box<kBandedThreads, scalar_t>(c, box, place, outputs, epilogues);
}

}  // namespace mixer_kernels
