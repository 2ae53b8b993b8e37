// The gradients of weight and bias with stride and dilation 1 on the tensor cores.
#pragma once

#include <cstdint>

#include "depthwise_conv2d/banded_convolution.cuh"
#include "depthwise_conv2d/tap_gradient.cuh"

namespace mixer_kernels {

constexpr int kBandedGradientThreads = 256;
constexpr int kBandedGradientWarps = kBandedGradientThreads / 32;
// Rows of the kernel that a warp keeps at most: 9, as in the published models.
constexpr int kGradientRows = 9;
// Products of 16 inputs with 8 outputs, which a warp exchanges at the end.
constexpr int kProducts = kBandDepth * kBandColumns;

// Adds to sums[j], 16 inputs by 8 outputs, the products of all pairs of columns of x and dz for row j of some rows of
// the kernel, over a box. A run of 8 outputs and the 16 inputs from a step of the band on are one of 16 layers of a
// product; the runs lie as in banded_convolution.cuh. Element (i, j) belongs to column 16 step + i - j - lead of the
// kernel.
//
// dz is multiplied beyond its box, too, where it is zero: an x that is not finite may reach more taps than it should.
// Returns the sum of the thread's share of dz.
template <typename scalar_t>
__device__ __forceinline__ float multiply_box(float (&sums)[kGradientRows][4], const TapGradient& g, const scalar_t* x,
                                              const scalar_t* dz) {
  const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  const auto place_of = [&](int line, int pitch) {
    return line / g.column_blocks * (g.row_steps * pitch + g.gap) + line % g.column_blocks * kBandColumns;
  };

  // Both operands lie across: their layers are rows of memory.
  uint32_t outputs[kBandRows][2];
  const int dz_line = lane % 8 + matrix % 2 * 8;
  const scalar_t* dz_row = dz + place_of(dz_line, g.dz_pitch) + matrix / 2 * g.dz_pitch;
#pragma unroll
  for (int o = 0; o < kBandRows; o += 2) {
    if (o >= g.row_steps) break;
    uint32_t pair[4];
    ldmatrix_transposed(pair, dz_row + o * g.dz_pitch);
    outputs[o][0] = pair[0], outputs[o][1] = pair[1];
    outputs[o + 1][0] = pair[2], outputs[o + 1][1] = pair[3];
  }
  float sum = 0.0f;
#pragma unroll
  for (int o = 0; o < kBandRows; ++o) {
    if (o >= g.row_steps) break;
    float values[4];
    to_floats(values, Vector<scalar_t, 4>{outputs[o][0] | static_cast<uint64_t>(outputs[o][1]) << 32});
    sum += values[0] + values[1] + (values[2] + values[3]);
  }
  const int x_line = lane % 8 + matrix / 2 * 8;
  const scalar_t* x_row = x + place_of(x_line, g.x_pitch) + matrix % 2 * 8;
#pragma unroll
  for (int row = 0; row < kGradientRows + kBandRows - 1; ++row) {
    // The conditions are the same in all threads.
    if (row >= g.rows_of_unit + g.row_steps - 1) break;
    uint32_t inputs[4];
    ldmatrix_transposed(inputs, x_row + row * g.x_pitch + row / 8 * g.gap);
#pragma unroll
    for (int o = 0; o < kBandRows; ++o) {
      const int kh = row - o;
      if (kh < 0 || kh >= kGradientRows) continue;
      if (o < g.row_steps && kh < g.rows_of_unit) mma<scalar_t>(sums[kh], inputs, outputs[o]);
    }
  }
  return sum;
}

// A block walks over its share of the boxes of some channels. A warp keeps a few rows of the kernel of one channel, and
// of their band one step.
template <typename scalar_t>
__global__ void __launch_bounds__(kBandedGradientThreads, 2)
    banded_gradient_kernel(const __grid_constant__ TapGradient g) {
  int64_t block = blockIdx.x;
  const int channel_box = static_cast<int>(block % g.grid.channel_boxes);
  block /= g.grid.channel_boxes;
  const int tap_block = static_cast<int>(block % g.tap_blocks);
  const int split = static_cast<int>(block / g.tap_blocks);

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int channel = warp / g.units_of_block, unit = tap_block * g.units_of_block + warp % g.units_of_block;
  // The part is the step of the band.
  const int part = unit % g.parts, first_kh = unit / g.parts * g.rows_of_unit;
  const bool is_used = channel < g.grid.box_channels && first_kh < g.kernel_h;

  auto* shared = dynamic_shared<scalar_t>();
  const SharedTile<scalar_t> x{shared, g.x_slot, g.x_pitch, g.gap};
  const SharedTile<scalar_t> dz{shared + g.grid.box_channels * g.x_slot, g.dz_slot, g.dz_pitch, g.gap};
  float sums[kGradientRows][4] = {}, bias_sum = 0.0f;
  const int64_t boxes = g.grid.boxes_of_channels();
  const int64_t first = boxes * split / g.splits, end = boxes * (split + 1) / g.splits;
  for (int64_t place = first; place < end; ++place) {
    Box box = g.grid.box(channel_box, place);
    // Registers are short: what follows from the box is computed anew each time.
    make_opaque(box.channels), make_opaque(box.rows), make_opaque(box.columns);
    load_boxes<kBandedGradientThreads, scalar_t>(g, box, x, dz, place > first && g.grid.boxes_of_image() == 1);
    if (!is_used) continue;
    const float sum = multiply_box(sums, g, x.pixel(channel, first_kh, part * kBandDepth), dz.pixel(channel, 0, 0));
    if (unit == 0) bias_sum += sum;
  }
  bias_sum = warp_sum(bias_sum);

  // Adds up the diagonals in shared memory, once nobody reads the boxes.
  __syncthreads();
  const int x_channel = channel_box * g.grid.box_channels + channel;
  if (!is_used || x_channel >= g.grid.channels) return;
  float* products = dynamic_shared<float>() + warp * kProducts;
  const int64_t term = (static_cast<int64_t>(split) * g.parts + part) * g.grid.channels + x_channel;
  float* dweight = g.dweight + term * g.kernel_h * g.kernel_w;
#pragma unroll
  for (int row = 0; row < kGradientRows; ++row) {
    if (row >= g.rows_of_unit || first_kh + row >= g.kernel_h) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      products[(lane / 4 + i / 2 * 8) * kBandColumns + lane % 4 * 2 + i % 2] = sums[row][i];
    }
    __syncwarp();
    for (int kw = lane; kw < g.kernel_w; kw += 32) {
      float sum = 0.0f;
#pragma unroll
      for (int output = 0; output < kBandColumns; ++output) {
        const int input = kw + g.lead - part * kBandDepth + output;
        if (input >= 0 && input < kBandDepth) sum += products[input * kBandColumns + output];
      }
      dweight[(first_kh + row) * g.kernel_w + kw] = sum;
    }
    __syncwarp();
  }
  if (first_kh == 0 && lane == 0) g.dbias[term] = bias_sum;
}

}  // namespace mixer_kernels
