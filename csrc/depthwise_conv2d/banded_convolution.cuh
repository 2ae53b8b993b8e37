// The convolution with stride and dilation 1 on the tensor cores.
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/opaque.cuh"
#include "depthwise_conv2d/convolution.cuh"

namespace mixer_kernels {

constexpr int kMostBandedThreads = 256;
constexpr int kBandColumns = 8;  // outputs next to each other that share a band
constexpr int kBandLines = 16;   // runs of such outputs in a product
constexpr int kBandRows = 8;     // rows of outputs that a thread keeps
constexpr int kBandDepth = 16;   // inputs of a product
constexpr int kBandBorder = 8;   // zeros in front of the weights of a channel; kBandColumns - 1 are read

// The band of one row of the kernel, inputs 16 s to 16 s + 15 by 8 outputs: element (i, j) is weight[16 s + i - j], or
// zero. `row` points to the weight of input 0 and output 0; at least 7 zeros lie in front of it and between rows.
template <typename scalar_t>
__device__ __forceinline__ void load_band(uint32_t (&band)[2], const scalar_t* row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* at = reinterpret_cast<const uint16_t*>(row) + lane % 4 * 2 - lane / 4;
  band[0] = at[0] | static_cast<uint32_t>(at[1]) << 16;
  band[1] = at[8] | static_cast<uint32_t>(at[9]) << 16;
}

// Multiplies one channel. A product takes 16 runs of 8 outputs, which lie side by side in 1 << column_shift columns
// and, below each other, row_steps rows apart. Of each row of inputs, a step of 16 columns is read once and meets all
// rows of the kernel: the sums for the rows between the runs stay in registers. kHeight: the kernel's, with 8 rows
// between the runs, so that the compiler knows which products there are; or 0 for any.
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
  const int rows_of_8 = kBandRows * c.pitch + c.gap;
  const scalar_t* first = inputs + (line >> c.column_shift) * (row_steps * c.pitch + c.gap) +
                          (line & ((1 << c.column_shift) - 1)) * kBandColumns + lane / kBandLines * 8;
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
        ldmatrix(lines, input + begin / kBandRows * rows_of_8 + i * c.pitch);
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

// Where a thread's sums belong: sums[o][2 h + i] to row row(h) + o and column column(h) + i of the box.
struct BandPlace {
  int column_shift, row_steps;

  __device__ __forceinline__ int row(int half) const { return (line(half) >> column_shift) * row_steps; }
  __device__ __forceinline__ int column(int half) const {
    return (line(half) & ((1 << column_shift) - 1)) * kBandColumns + static_cast<int>(threadIdx.x) % 4 * 2;
  }
  // Of a thread's rows, those that the box has.
  __device__ __forceinline__ int rows(int half, const Box& box) const {
    const int rest = box.rows - row(half);
    return rest < row_steps ? rest : row_steps;
  }

 private:
  static __device__ __forceinline__ int line(int half) { return static_cast<int>(threadIdx.x) % 32 / 4 + 8 * half; }
};

// Calls f(value) for those of a thread's values that are outputs of the box.
template <typename F>
__device__ __forceinline__ void for_outputs(const float (&values)[kBandRows][4], const Convolution& c, const Box& box,
                                            F&& f) {
  const BandPlace place{c.column_shift, c.row_steps};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int rows = place.rows(i / 2, box), column = place.column(i / 2) + i % 2;
#pragma unroll
    for (int o = 0; o < kBandRows; ++o) {
      if (o < rows && column < box.columns) f(values[o][i]);
    }
  }
}

// The moments of a channel's activated values, which a warp has in its registers: two passes.
__device__ __forceinline__ void store_moments(const float (&values)[kBandRows][4], const Convolution& c, const Box& box,
                                              int64_t at) {
  float sum = 0.0f, deviations = 0.0f;
  for_outputs(values, c, box, [&](float value) { sum += value; });
  const float mean = warp_sum(sum) / static_cast<float>(box.rows * box.columns);
  for_outputs(values, c, box, [&](float value) { deviations += (value - mean) * (value - mean); });
  deviations = warp_sum(deviations);
  if (threadIdx.x % 32 == 0) {
    c.moments.means[at] = mean;
    c.moments.deviations[at] = deviations;
  }
}

__device__ __forceinline__ void activate_all(float (&values)[kBandRows][4], Activation activation) {
  dispatch_activation(activation, [&](auto tag) {
#pragma unroll
    for (int i = 0; i < kBandRows * 4; ++i) {
      values[i / 4][i % 4] = activate<decltype(tag)::value, false>(values[i / 4][i % 4]).value;
    }
  });
}

// Everything but the residual that follows the products of one channel.
template <typename scalar_t>
__device__ __forceinline__ void finish_sums(float (&sums)[kBandRows][4], const Convolution& c, const Box& box,
                                            const ChannelEpilogue& epilogue, int64_t moments_at) {
#pragma unroll
  for (int i = 0; i < kBandRows * 4; ++i) sums[i / 4][i % 4] += epilogue.bias;
  // Moments are taken of the activated values, but z is stored.
  if (c.moments.means != nullptr) {
    float values[kBandRows][4];
#pragma unroll
    for (int i = 0; i < kBandRows * 4; ++i) values[i / 4][i % 4] = as_stored<scalar_t>(sums[i / 4][i % 4]);
    activate_all(values, c.activation);
    store_moments(values, c, box, moments_at);
  } else {
    activate_all(sums, c.activation);
  }
#pragma unroll
  for (int i = 0; i < kBandRows * 4; ++i) {
    sums[i / 4][i % 4] = epilogue.scale * sums[i / 4][i % 4] + epilogue.shift;
  }
}

// The outputs of a channel into a map that has vectors along the columns, two of them at a time. The residual is read
// as a whole before that.
template <typename scalar_t>
__device__ __forceinline__ void store_sums(float (&sums)[kBandRows][4], const Convolution& c, const Box& box,
                                           int channel) {
  using pair_t = Vector<scalar_t, 2>;
  const BandPlace place{c.column_shift, c.row_steps};
  // f(half, row, pointer into the map) for the pairs of outputs.
  const auto for_pairs = [&](const Map& map, auto&& f) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int rows = place.column(half) < box.columns ? place.rows(half, box) : 0;
      auto* pixel =
          map.template pixel<scalar_t>(box.image, channel, box.row + place.row(half), box.column + place.column(half));
#pragma unroll
      for (int o = 0; o < kBandRows; ++o) {
        if (o < rows) f(half, o, pixel);
        pixel += map.view.row_stride;
      }
    }
  };
  if (c.residual.view.data != nullptr) {
    pair_t past[2][kBandRows]{};
    for_pairs(c.residual, [&](int half, int o, const scalar_t* from) { past[half][o] = pair_t::load(from); });
#pragma unroll
    for (int i = 0; i < 2 * kBandRows; ++i) {
      float pair[2];
      to_floats(pair, past[i % 2][i / 2]);
      sums[i / 2][i % 2 * 2] += pair[0], sums[i / 2][i % 2 * 2 + 1] += pair[1];
    }
  }
  for_pairs(c.y, [&](int half, int o, scalar_t* to) {
    const float pair[2] = {sums[o][2 * half], sums[o][2 * half + 1]};
    store_floats(to, pair);
  });
}

// The outputs of a channel into shared memory, for maps of any other kind.
__device__ __forceinline__ void stage_sums(const float (&sums)[kBandRows][4], const Convolution& c,
                                           const SharedTile<float>& to, int channel) {
  const BandPlace place{c.column_shift, c.row_steps};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* pixel = to.pixel(channel, place.row(half), place.column(half));
#pragma unroll
    for (int o = 0; o < kBandRows; ++o) {
      if (o >= c.row_steps) break;
      const float pair[2] = {sums[o][2 * half], sums[o][2 * half + 1]};
      store_floats(pixel + o * to.pitch, pair);
    }
  }
}

// And from there into the map, kVec neighbouring channels, or one output, at a time.
template <int kVec, typename scalar_t>
__device__ __forceinline__ void store_staged(const Convolution& c, const Box& box, const SharedTile<float>& from) {
  using vector_t = Vector<scalar_t, kVec>;
  auto* y = c.y.template pixel<scalar_t>(box.image, box.channel, box.row, box.column);
  const scalar_t* residual = nullptr;
  if (c.residual.view.data != nullptr) {
    residual = c.residual.template pixel<const scalar_t>(box.image, box.channel, box.row, box.column);
  }
  for_places_ahead<0, kVec, kLoadsAhead>(
      kVec > 1 || c.y.along_channels, box.channels, box.rows, box.columns,
      [&](int channel, int row, int column) {
        return residual == nullptr ? vector_t::zero()
                                   : vector_t::load(residual + c.residual.distance(channel, row, column));
      },
      [&](const vector_t& past, int channel, int row, int column) {
        const float* source = from.pixel(channel, row, column);
        float values[kVec];
        to_floats(values, past);
#pragma unroll
        for (int i = 0; i < kVec; ++i) values[i] += source[i * from.slot];
        store_floats(y + c.y.distance(channel, row, column), values);
      });
}

// A block computes the same box of outputs in several images, each warp one channel after the other.
template <typename scalar_t>
__global__ void __launch_bounds__(kMostBandedThreads, 2)
    banded_convolution_kernel(const __grid_constant__ Convolution c) {
  const int block = static_cast<int>(blockIdx.x) / c.grid.channel_boxes;
  const int boxes = static_cast<int>(c.grid.boxes_of_image());
  Box box = c.grid.box(static_cast<int>(blockIdx.x) % c.grid.channel_boxes, block % boxes);
  constexpr int kSize = sizeof(scalar_t), kVec = 16 / kSize;
  auto* shared = dynamic_shared<scalar_t>();
  const SharedTile<scalar_t> inputs{shared, c.slot / kSize, c.pitch, c.gap};
  const SharedTile<scalar_t> weights{shared + c.grid.box_channels * inputs.slot, c.weight_slot / kSize, c.weight_pitch};
  const SharedTile<float> outputs{reinterpret_cast<float*>(shared), c.slot / 4, c.out_pitch};
  fill_zeros<0>(shared, c.grid.box_channels * (c.slot + c.weight_slot));
  __syncthreads();
  load_weights<0, scalar_t>(c, box,
                            SharedTile<scalar_t>{weights.data + kBandBorder + c.lead, weights.slot, weights.pitch});
  const ChannelEpilogue* epilogues = load_epilogues<0, scalar_t>(c, box);

  const bool is_staged = c.y.along_channels || !c.y.has_vectors;
  const int64_t left = c.grid.batch - block / boxes * static_cast<int64_t>(c.images);
  box.image = c.grid.batch - left;
  for (int i = 0; i < c.images && i < left; ++i, ++box.image) {
    if (is_staged && i > 0) {
      __syncthreads();
      fill_zeros<0>(shared, c.grid.box_channels * c.slot);
      __syncthreads();
    }
    // Registers are short: what follows from the box is computed anew in each image.
    make_opaque(box.channels), make_opaque(box.rows), make_opaque(box.columns);
    const int columns_before = c.offset_w + c.lead;
    load_box<0, scalar_t>(c.x,
                          {box.image, box.channel, box.channels, box.row - c.offset_h, box.rows + c.kernel_h - 1,
                           box.column - columns_before, box.columns + c.kernel_w - 1 + c.lead},
                          inputs);
    __syncthreads();
    for (int channel = static_cast<int>(threadIdx.x) / 32; channel < box.channels;
         channel += static_cast<int>(blockDim.x) / 32) {
      float sums[kBandRows][4] = {};
      const scalar_t *input = inputs.pixel(channel, 0, 0), *weight = weights.pixel(channel, 0, 0);
      const int height = c.row_steps == kBandRows ? c.kernel_h : 0;
      if (height == 9) {
        multiply_channel<9>(sums, c, input, weight);
      } else if (height == 7) {
        multiply_channel<7>(sums, c, input, weight);
      } else if (height == 31) {
        multiply_channel<31>(sums, c, input, weight);
      } else {
        multiply_channel<0>(sums, c, input, weight);
      }
      finish_sums<scalar_t>(sums, c, box, epilogues[channel],
                            (box.image * boxes + block % boxes) * c.grid.channels + box.channel + channel);
      if (is_staged) {
        // Outputs take the place of the inputs, which nobody but this warp reads.
        __syncwarp();
        stage_sums(sums, c, outputs, channel);
      } else {
        store_sums<scalar_t>(sums, c, box, box.channel + channel);
      }
    }
    __syncthreads();
    if (!is_staged) continue;
    if (c.y.has_vectors) {
      store_staged<kVec, scalar_t>(c, box, outputs);
    } else {
      store_staged<1, scalar_t>(c, box, outputs);
    }
  }
}

}  // namespace mixer_kernels
