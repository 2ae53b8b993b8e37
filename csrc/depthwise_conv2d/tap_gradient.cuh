// The gradients of weight and bias: sums over images and pixels in parts, which sum_terms.cuh adds up.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/mma.cuh"
#include "common/warp.cuh"
#include "depthwise_conv2d/map_load.cuh"

namespace mixer_kernels {

constexpr int kTapThreads = 256;
// Taps of a thread: rows and columns of the kernel.
constexpr int kTapRows = 3;
constexpr int kTapColumns = 4;

// dweight[k] = sum over the outputs o of dz[o] * x[o * stride + k * dilation - offset], dbias = sum of dz.
struct TapGradient {
  BoxGrid grid;  // of dz
  Map x, dz;
  int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, offset_h, offset_w;
  int splits;
  float *dweight, *dbias;  // terms: [split, part][channel][tap], [split, part][channel]
  // Of a block with stride and dilation 1.
  int tap_blocks;                          // that share the kernel among them
  int parts;                               // terms of a split
  int x_slot, x_pitch, dz_slot, dz_pitch;  // in elements
  // On the floating-point units: rows of a box, a thread's each, of which there are `parts`.
  int part_rows;
  // On the tensor cores: units of a block and channel, rows of the kernel in each, how runs of outputs lie, columns
  // that a tile of x has in front of those that dz meets, and elements between blocks of 8 rows.
  int units_of_block, rows_of_unit, column_blocks, row_steps, lead, gap;

  __host__ __device__ int tap_rows() const { return (kernel_h + kTapRows - 1) / kTapRows; }
  __host__ __device__ int tap_columns() const { return (kernel_w + kTapColumns - 1) / kTapColumns; }
  // Units of a channel that a block computes.
  __host__ __device__ int units() const {
    const int all = tap_rows() * tap_columns();
    return all < kTapThreads ? all : kTapThreads;
  }
};

// Brings a box of dz and the inputs that it meets into shared memory, with zeros around, once the last has been read.
// has_zeros: the last box left them there, for it lay in the same place of another image.
template <int kThreads, typename scalar_t, typename stored_t>
__device__ __forceinline__ void load_boxes(const TapGradient& g, const Box& box, const SharedTile<stored_t>& x,
                                           const SharedTile<stored_t>& dz, bool has_zeros = false) {
  __syncthreads();
  if (!has_zeros) {
    fill_zeros<kThreads>(x.data, g.grid.box_channels * (x.slot + dz.slot) * static_cast<int>(sizeof(stored_t)));
    __syncthreads();
  }
  const Box inputs{box.image,
                   box.channel,
                   box.channels,
                   box.row - g.offset_h,
                   box.rows + g.kernel_h - 1,
                   box.column - g.offset_w - g.lead,
                   box.columns + g.kernel_w - 1 + g.lead};
  // Few at a time, for sums stay in registers.
  load_box<kThreads, scalar_t, 2>(g.x, inputs, x);
  load_box<kThreads, scalar_t, 2>(g.dz, box, dz);
  __syncthreads();
}

__device__ __forceinline__ void add_taps(float (&sums)[kTapRows][kTapColumns],
                                         const float (&more)[kTapRows][kTapColumns]) {
#pragma unroll
  for (int kh = 0; kh < kTapRows; ++kh) {
#pragma unroll
    for (int kw = 0; kw < kTapColumns; ++kw) sums[kh][kw] += more[kh][kw];
  }
}

// A block walks over its share of the boxes of some channels. A thread keeps 3 x 4 taps of one channel and walks over
// the box, or over a part of its rows: each element of dz meets 12 of x, which are in registers.
//
// dz is multiplied beyond its box, too, where it is zero: an x that is not finite may reach more taps than it should.
template <typename scalar_t>
__global__ void __launch_bounds__(kTapThreads, 2) sliding_gradient_kernel(const __grid_constant__ TapGradient g) {
  constexpr bool kSumsRows = std::is_same_v<scalar_t, float>;
  int64_t block = blockIdx.x;
  const int channel_box = static_cast<int>(block % g.grid.channel_boxes);
  block /= g.grid.channel_boxes;
  const int tap_block = static_cast<int>(block % g.tap_blocks);
  const int split = static_cast<int>(block / g.tap_blocks);

  const int thread = static_cast<int>(threadIdx.x), units = g.units();
  const int unit = tap_block * kTapThreads + thread % units;
  const int part = thread / units % g.parts, channel = thread / units / g.parts;
  const int first_kh = unit / g.tap_columns() * kTapRows, first_kw = unit % g.tap_columns() * kTapColumns;
  const bool is_used = first_kh < g.kernel_h && channel < g.grid.box_channels;

  auto* shared = dynamic_shared<float>();
  const SharedTile<float> x{shared, g.x_slot, g.x_pitch};
  const SharedTile<float> dz{shared + g.grid.box_channels * g.x_slot, g.dz_slot, g.dz_pitch};
  float sums[kTapRows][kTapColumns] = {}, bias_sum = 0.0f;
  const int64_t boxes = g.grid.boxes_of_channels();
  for (int64_t place = boxes * split / g.splits; place < boxes * (split + 1) / g.splits; ++place) {
    const Box box = g.grid.box(channel_box, place);
    load_boxes<kTapThreads, scalar_t>(g, box, x, dz);
    if (!is_used) continue;

    // Sums of a box first, in float32 of each of its rows before: long sums lose digits.
    float box_sums[kTapRows][kTapColumns] = {}, box_bias_sum = 0.0f;
    for (int r = 0; r < g.part_rows + kTapRows - 1; ++r) {
      const float* x_row = x.pixel(channel, part * g.part_rows + first_kh + r, first_kw);
      const float* dz_row = dz.pixel(channel, part * g.part_rows + r, 0);
      float window[8], ahead[4], row_sums[kTapRows][kTapColumns] = {}, row_bias_sum = 0.0f;
      auto& near_sums = kSumsRows ? row_sums : box_sums;
      float& near_bias_sum = kSumsRows ? row_bias_sum : box_bias_sum;
      load_floats(ahead, x_row);
#pragma unroll
      for (int i = 0; i < 4; ++i) window[i] = ahead[i];
      for (int column = 0; column < g.dz_pitch; column += 4) {
        load_floats(ahead, x_row + column + 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) window[4 + i] = ahead[i];
#pragma unroll
        for (int kh = 0; kh < kTapRows; ++kh) {
          // The same in all threads.
          if (r - kh < 0 || r - kh >= g.part_rows) continue;
          float gradient[4];
          load_floats(gradient, dz_row - kh * g.dz_pitch + column);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int kw = 0; kw < kTapColumns; ++kw) near_sums[kh][kw] += gradient[i] * window[i + kw];
          }
          if (kh == 0) near_bias_sum += gradient[0] + gradient[1] + (gradient[2] + gradient[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) window[i] = window[4 + i];
      }
      if constexpr (kSumsRows) {
        add_taps(box_sums, row_sums);
        box_bias_sum += row_bias_sum;
      }
    }
    add_taps(sums, box_sums);
    bias_sum += box_bias_sum;
  }

  const int x_channel = channel_box * g.grid.box_channels + channel;
  if (!is_used || x_channel >= g.grid.channels) return;
  const int64_t term = (static_cast<int64_t>(split) * g.parts + part) * g.grid.channels + x_channel;
  float* dweight = g.dweight + term * g.kernel_h * g.kernel_w;
#pragma unroll
  for (int kh = 0; kh < kTapRows; ++kh) {
#pragma unroll
    for (int kw = 0; kw < kTapColumns; ++kw) {
      if (first_kh + kh < g.kernel_h && first_kw + kw < g.kernel_w) {
        dweight[(first_kh + kh) * g.kernel_w + first_kw + kw] = sums[kh][kw];
      }
    }
  }
  if (unit == 0) g.dbias[term] = bias_sum;
}

// For every stride and dilation: a warp adds up one tap of one channel, or of 32 where channels are neighbours in
// memory, over its share of the rows of dz. It reads through the caches. The tap after the last is the bias.
template <typename scalar_t>
__global__ void __launch_bounds__(kTapThreads) direct_gradient_kernel(const __grid_constant__ TapGradient g) {
  const int taps = g.kernel_h * g.kernel_w;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t task = static_cast<int64_t>(blockIdx.x) * (kTapThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  const int tap = static_cast<int>(task % (taps + 1));
  task /= taps + 1;
  const bool along_channels = g.dz.along_channels;
  const int64_t channel_tasks = along_channels ? (g.grid.channels + 31) / 32 : g.grid.channels;
  const int channel =
      along_channels ? static_cast<int>(task % channel_tasks) * 32 + lane : static_cast<int>(task % channel_tasks);
  const int64_t split = task / channel_tasks;
  if (split >= g.splits) return;

  const int kh = tap / g.kernel_w, kw = tap % g.kernel_w;
  const int first = along_channels ? 0 : lane, step = along_channels ? 1 : 32;
  const int64_t rows = g.grid.batch * g.dz.rows;
  float sum = 0.0f;
  for (int64_t at = rows * split / g.splits; channel < g.grid.channels && at < rows * (split + 1) / g.splits; ++at) {
    const int64_t image = at / g.dz.rows;
    const int row = static_cast<int>(at - image * g.dz.rows);
    const int x_row = row * g.stride_h + kh * g.dilation_h - g.offset_h;
    if (tap < taps && (x_row < 0 || x_row >= g.x.rows)) continue;
    float row_sum = 0.0f;
    for (int column = first; column < g.dz.columns; column += step) {
      const float gradient = to_acc(*g.dz.template pixel<const scalar_t>(image, channel, row, column));
      const int x_column = column * g.stride_w + kw * g.dilation_w - g.offset_w;
      if (tap == taps) {
        row_sum += gradient;
      } else if (x_column >= 0 && x_column < g.x.columns) {
        row_sum += gradient * to_acc(*g.x.template pixel<const scalar_t>(image, channel, x_row, x_column));
      }
    }
    sum += row_sum;
  }
  if (!along_channels) sum = warp_sum(sum);
  if (channel >= g.grid.channels || (!along_channels && lane > 0)) return;
  const int64_t term = split * g.grid.channels + channel;
  if (tap == taps) {
    g.dbias[term] = sum;
  } else {
    g.dweight[term * taps + tap] = sum;
  }
}

}  // namespace mixer_kernels
