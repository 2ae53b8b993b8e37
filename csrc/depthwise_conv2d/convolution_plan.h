// How the outputs of a convolution are cut into blocks, and which kernel computes them. Host code, no CUDA header.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/plan.h"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace mixer_kernels {

// Shared memory of a block: what every GPU from sm_80 on has, and what leaves room for three blocks on the large ones.
constexpr int64_t kMostShared = 99 * 1024;
constexpr int64_t kGoodShared = 72 * 1024;

constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Sizes as the kernels count them. A step that is larger only ever meets a factor of 0.
inline int to_int(int64_t value) {
  return static_cast<int>(std::min<int64_t>(value, std::numeric_limits<int32_t>::max()));
}

// The most equal parts of at most `most`; several are multiples of 8, for the sake of 16-byte accesses.
inline int64_t even_part(int64_t size, int64_t most) {
  return size <= most ? size : round_up(divide_up(size, divide_up(size, most)), 8);
}

// Whether neighbouring channels lie closer together than neighbouring columns.
inline bool is_along_channels(const MapView& view, int64_t channels) {
  return channels > 1 && view.channel_stride <= view.column_stride;
}

// Whether a map consists of aligned pieces of 16 bytes along one direction.
inline bool has_vectors(const MapView& view, int size, int64_t batch, int64_t channels, Extent extent,
                        bool along_channels) {
  const int64_t vec = 16 / size;
  // A stride over a single element may be anything.
  const auto is_whole = [&](int64_t count, int64_t stride) { return count == 1 || stride % vec == 0; };
  const bool is_contiguous =
      along_channels ? view.channel_stride == 1 && channels % vec == 0 && is_whole(extent.w, view.column_stride)
                     : view.column_stride == 1 && extent.w % vec == 0 && is_whole(channels, view.channel_stride);
  return is_contiguous && is_whole(batch, view.image_stride) && is_whole(extent.h, view.row_stride) &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// How many channels a block takes: as many as are useful and fit, whole vectors where there are any.
inline int64_t channels_of_box(int64_t channels, int64_t useful, int64_t bytes_of_channel, int64_t vec) {
  const int64_t fit = std::max<int64_t>(std::min(useful, kGoodShared / bytes_of_channel), 1);
  return std::min(channels, fit >= vec ? fit / vec * vec : fit);
}

}  // namespace mixer_kernels
