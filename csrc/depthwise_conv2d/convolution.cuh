// What the convolving kernels share: the problem, their outputs' way from shared memory into the map, and the moments
// of a batch.
#pragma once

#include <cstdint>

#include "common/activation.cuh"
#include "common/channel_parameter.cuh"
#include "common/mma.cuh"
#include "common/warp.cuh"
#include "depthwise_conv2d/map_load.cuh"

namespace mixer_kernels {

// Means and sums of squared deviations from them, of a box and channel each, [box of channels][channel]; or null.
struct Moments {
  float *means, *deviations;
};

// y[o] = sum over the taps k of u[o * stride + k * dilation - offset] * weight[k], where u is x with spread - 1 zeros
// between its elements and zeros around them: a convolution, or the gradient of one with respect to its input, whose
// weight is flipped. Then residual + scale * act(y + bias) + shift.
struct Convolution {
  BoxGrid grid;
  Map x, y, residual;  // the residual is walked over as y is
  int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, offset_h, offset_w, spread_h, spread_w;
  bool flipped;
  const void *weight, *bias;
  ChannelParameter scale, shift;
  Activation activation;
  Moments moments;
  // Shared memory: of each channel a tile of inputs, later of outputs; then weights of all channels; then what follows
  // the products. In bytes.
  int slot, weight_slot;
  int pitch, weight_pitch, out_pitch;  // in elements
  // Of the tensor cores' path: 1 << column_shift blocks of 8 columns next to each other, steps of 16 inputs, columns
  // that a tile of inputs has in front of them, elements between its blocks of 8 rows, and images of a block.
  int column_shift, row_steps, depth_steps, lead, gap, images;
};

// The channels' weights into shared memory, flipped if need be: rows of `pitch` elements, channels `slot` apart.
template <int kThreads, typename scalar_t, typename stored_t>
__device__ __forceinline__ void load_weights(const Convolution& c, const Box& box, const SharedTile<stored_t>& to) {
  const auto* from =
      static_cast<const scalar_t*>(c.weight) + static_cast<int64_t>(box.channel) * c.kernel_h * c.kernel_w;
  for_places_ahead<kThreads, 1, kLoadsAhead>(
      false, box.channels, c.kernel_h, c.kernel_w,
      [&](int channel, int row, int column) {
        const int tap = row * c.kernel_w + column, taps = c.kernel_h * c.kernel_w;
        return from[channel * taps + (c.flipped ? taps - 1 - tap : tap)];
      },
      [&](scalar_t weight, int channel, int row, int column) {
        *to.pixel(channel, row, column) = stored_as<stored_t>(weight);
      });
}

// What follows the products of one channel; in shared memory, where every output meets it.
struct ChannelEpilogue {
  float bias, scale, shift;
};

// Brings those of a block's channels there.
template <int kThreads, typename scalar_t>
__device__ __forceinline__ const ChannelEpilogue* load_epilogues(const Convolution& c, const Box& box) {
  const ChannelParameter bias{c.bias, false};
  auto* to = reinterpret_cast<ChannelEpilogue*>(dynamic_shared<unsigned char>() +
                                                c.grid.box_channels * (c.slot + c.weight_slot));
  for (int i = static_cast<int>(threadIdx.x); i < box.channels; i += threads_of_block<kThreads>()) {
    const int channel = box.channel + i;
    to[i] = {channel_value<scalar_t>(bias, channel, 0.0f), channel_value<scalar_t>(c.scale, channel, 1.0f),
             channel_value<scalar_t>(c.shift, channel, 0.0f)};
  }
  return to;
}

// kVec neighbouring outputs from shared memory into the map.
template <int kVec, typename scalar_t>
__device__ __forceinline__ void store_outputs(const Convolution& c, const Box& box, const SharedTile<float>& from,
                                              const ChannelEpilogue* epilogues, int channel, int row, int column) {
  constexpr bool kExact = std::is_same_v<scalar_t, float>;
  const bool along_channels = c.y.along_channels;
  const float* source = from.pixel(channel, row, column);
  const int step = along_channels ? from.slot : 1;
  float values[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    values[i] = source[i * step] + epilogues[channel + (along_channels ? i : 0)].bias;
  }
  // Moments are taken of the activated values, but z is stored.
  if (c.moments.means == nullptr) {
    dispatch_activation(c.activation, [&](auto activation) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values[i] = activate<decltype(activation)::value, kExact>(values[i]).value;
    });
  }
  ChannelEpilogue epilogue = epilogues[channel];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    if (along_channels) epilogue = epilogues[channel + i];
    values[i] = epilogue.scale * values[i] + epilogue.shift;
  }
  channel += box.channel;
  row += box.row;
  column += box.column;
  if (c.residual.view.data != nullptr) {
    float past[kVec];
    load_floats(past, c.residual.template pixel<const scalar_t>(box.image, channel, row, column));
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[i] += past[i];
  }
  store_floats(c.y.template pixel<scalar_t>(box.image, channel, row, column), values);
}

// A warp for each channel of the box: two passes over the activated values, which stay in shared memory.
template <int kThreads, typename scalar_t>
__device__ __forceinline__ void store_moments(const Convolution& c, const Box& box, int64_t place,
                                              const SharedTile<float>& from, const ChannelEpilogue* epilogues) {
  constexpr bool kExact = std::is_same_v<scalar_t, float>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto count = static_cast<float>(box.rows * box.columns);
  for (int channel = static_cast<int>(threadIdx.x) / 32; channel < box.channels; channel += kThreads / 32) {
    const float bias = epilogues[channel].bias;
    float sum = 0.0f;
    for (BoxWalk walk(lane, 32, box.columns, box.rows); walk.outer == 0; walk.advance()) {
      float* value = from.pixel(channel, walk.middle, walk.inner);
      dispatch_activation(c.activation, [&](auto activation) {
        *value = activate<decltype(activation)::value, kExact>(as_stored<scalar_t>(*value + bias)).value;
      });
      sum += *value;
    }
    const float mean = warp_sum(sum) / count;
    float deviations = 0.0f;
    for (BoxWalk walk(lane, 32, box.columns, box.rows); walk.outer == 0; walk.advance()) {
      const float deviation = *from.pixel(channel, walk.middle, walk.inner) - mean;
      deviations += deviation * deviation;
    }
    deviations = warp_sum(deviations);
    if (lane == 0) {
      const int64_t at = place * c.grid.channels + box.channel + channel;
      c.moments.means[at] = mean;
      c.moments.deviations[at] = deviations;
    }
  }
}

// Ends a block of a convolving kernel, whose outputs and epilogues are in shared memory.
template <int kThreads, typename scalar_t>
__device__ __forceinline__ void finish_box(const Convolution& c, const Box& box, int64_t place,
                                           const SharedTile<float>& from, const ChannelEpilogue* epilogues) {
  __syncthreads();
  if (c.y.has_vectors) {
    constexpr int kVec = 16 / sizeof(scalar_t);
    for_places<kThreads, kVec>(c.y.along_channels, box.channels, box.rows, box.columns,
                               [&](int channel, int row, int column) {
                                 store_outputs<kVec, scalar_t>(c, box, from, epilogues, channel, row, column);
                               });
  } else {
    for_places<kThreads, 1>(c.y.along_channels, box.channels, box.rows, box.columns,
                            [&](int channel, int row, int column) {
                              store_outputs<1, scalar_t>(c, box, from, epilogues, channel, row, column);
                            });
  }
  if (c.moments.means != nullptr) {
    __syncthreads();
    store_moments<kThreads, scalar_t>(c, box, place, from, epilogues);
  }
}

constexpr int kMomentChannels = 32;
constexpr int kMomentGroups = 8;
constexpr int kMomentThreads = kMomentChannels * kMomentGroups;

// One block combines the moments of 32 channels: a warp for every 8th box, in a fixed order, in float64. Mean first,
// then squares of deviations from it, so that nothing cancels. A template only so that several files may include it.
template <typename = void>
__global__ void __launch_bounds__(kMomentThreads)
    combine_moments_kernel(const __grid_constant__ BoxGrid grid, const Moments moments, float* mean, float* var) {
  const int lane = static_cast<int>(threadIdx.x) % kMomentChannels;
  const int group = static_cast<int>(threadIdx.x) / kMomentChannels;
  const int channel = static_cast<int>(blockIdx.x) * kMomentChannels + lane;
  const bool is_inside = channel < grid.channels;
  __shared__ double partial[kMomentGroups][kMomentChannels];

  // The sum over the boxes of term(number of pixels, place in the moments).
  const auto sum_boxes = [&](auto&& term) {
    double sum = 0.0;
    for (int64_t place = group; is_inside && place < grid.boxes_of_channels(); place += kMomentGroups) {
      const Box box = grid.box(0, place);
      sum += term(static_cast<double>(box.rows * box.columns), place * grid.channels + channel);
    }
    partial[group][lane] = sum;
    __syncthreads();
    sum = 0.0;
#pragma unroll
    for (int i = 0; i < kMomentGroups; ++i) sum += partial[i][lane];
    __syncthreads();
    return sum;
  };
  const double count = static_cast<double>(grid.batch) * grid.rows * grid.columns;
  const double center = sum_boxes([&](double pixels, int64_t at) { return pixels * moments.means[at]; }) / count;
  const double deviations = sum_boxes([&](double pixels, int64_t at) {
    const double deviation = moments.means[at] - center;
    return moments.deviations[at] + pixels * deviation * deviation;
  });
  if (group > 0 || !is_inside) return;
  mean[channel] = static_cast<float>(center);
  var[channel] = static_cast<float>(deviations / count);
}

}  // namespace mixer_kernels
