// How maps are walked over and cut into boxes, and which kernels take them: host code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/plan.h"
#include "depthwise_conv2d/banded_convolution.cuh"

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
inline int64_t channels_of_box(int64_t channels, int64_t useful, int64_t bytes_of_channel, int64_t vec,
                               int64_t room = kGoodShared) {
  const int64_t fit = std::max<int64_t>(std::min(useful, room / bytes_of_channel), 1);
  return std::min(channels, fit >= vec ? fit / vec * vec : fit);
}

// A map as the kernels walk over it.
inline Map plan_map(const MapView& view, ElementType type, int64_t batch, int64_t channels, Extent extent) {
  const bool along_channels = is_along_channels(view, channels);
  return {view, static_cast<int>(extent.h), static_cast<int>(extent.w), along_channels,
          has_vectors(view, element_size(type), batch, channels, extent, along_channels)};
}

inline BoxGrid plan_grid(int64_t batch, int64_t channels, Extent map, int64_t box_channels, Extent box) {
  return {batch,
          static_cast<int>(channels),
          static_cast<int>(map.h),
          static_cast<int>(map.w),
          static_cast<int>(box_channels),
          static_cast<int>(box.h),
          static_cast<int>(box.w),
          static_cast<int>(divide_up(channels, box_channels)),
          static_cast<int>(divide_up(map.h, box.h)),
          static_cast<int>(divide_up(map.w, box.w))};
}

// Vectors must not cross from one box into the next.
inline bool fits_vectors(const BoxGrid& grid, bool along_channels, int64_t vec) {
  return along_channels ? grid.channel_boxes == 1 || grid.box_channels % vec == 0
                        : grid.column_boxes == 1 || grid.box_columns % vec == 0;
}

// Which kernels run: through the caches, on the floating-point units, on the tensor cores.
enum class Path { kDirect, kSliding, kBanded };

// Narrow kernels leave the bands of the tensor cores' path almost empty.
inline bool is_wide(Extent kernel) {
  constexpr int64_t kNarrow = 5;
  return kernel.w >= kNarrow && kernel.h * kernel.w >= kNarrow * kNarrow;
}

// How runs of 8 outputs of a box make 16 lines of a product, and how many steps of 16 inputs they reach over.
struct BandPlan {
  int column_shift, column_blocks;  // the blocks are 1 << column_shift
  int row_steps, depth_steps;
  int64_t rows;  // of outputs

  BandPlan(Extent box, Extent kernel)
      : column_shift(box.w <= 8    ? 0
                     : box.w <= 16 ? 1
                                   : 2),
        column_blocks(1 << column_shift),
        row_steps(to_int(divide_up(box.h * column_blocks, kBandLines))),
        depth_steps(to_int(divide_up(kernel.w + kBandColumns - 1, kBandDepth))),
        rows(static_cast<int64_t>(kBandLines) / column_blocks * row_steps) {}

  // Elements after each 8 rows, so that the lines of an ldmatrix, 8 rows apart, lie in different banks.
  int gap() const { return row_steps == kBandRows ? kBandColumns * column_blocks : 0; }
  // Columns of zero weights in front of the kernel, so that inputs of a row whose first one has column -offset go into
  // shared memory in the largest pieces: as many as the band has left over.
  int lead(int offset, Extent kernel) const {
    const int most = kBandDepth * depth_steps - to_int(kernel.w) - (kBandColumns - 1);
    for (int piece = 8; piece > 1; piece /= 2) {
      const int lead = (piece - (offset % piece + piece) % piece) % piece;
      if (lead <= most) return lead;
    }
    return 0;
  }

  int input_pitch() const { return kBandColumns * (column_blocks - 1) + kBandDepth * depth_steps; }
  int output_pitch() const { return kBandColumns * column_blocks; }
};

}  // namespace mixer_kernels
