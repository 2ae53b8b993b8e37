// Tiles of a map: where they lie, and how threads walk over them.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace mixer_kernels {

// A map, and how threads walk over it: whether neighbours take neighbouring channels or neighbouring columns, and
// whether each takes 16 bytes of them.
struct Map {
  MapView view;
  int rows, columns;
  bool along_channels, has_vectors;

  template <typename scalar_t>
  __device__ __forceinline__ scalar_t* pixel(int64_t image, int channel, int row, int column) const {
    return static_cast<scalar_t*>(view.data) + image * view.image_stride + channel * view.channel_stride +
           row * view.row_stride + column * view.column_stride;
  }

  // How far a pixel is from another one in front of it, above it and to the left: cheaper than two whole addresses.
  __device__ __forceinline__ int64_t distance(int channels, int rows, int columns) const {
    const auto wide = [](int count) { return static_cast<int64_t>(static_cast<uint32_t>(count)); };
    return wide(channels) * view.channel_stride + wide(rows) * view.row_stride + wide(columns) * view.column_stride;
  }
};

// Part of an image. It may reach beyond the map.
struct Box {
  int64_t image;
  int channel, channels, row, rows, column, columns;
};

// How outputs are cut into boxes of about equal size. Those of neighbouring channels follow each other.
struct BoxGrid {
  int64_t batch;
  int channels, rows, columns;                 // of the map
  int box_channels, box_rows, box_columns;     // of a box, or less at the end
  int channel_boxes, row_boxes, column_boxes;  // of an image

  __host__ __device__ int64_t boxes_of_image() const { return static_cast<int64_t>(row_boxes) * column_boxes; }
  __host__ __device__ int64_t boxes_of_channels() const { return batch * boxes_of_image(); }
  __host__ __device__ int64_t boxes() const { return boxes_of_channels() * channel_boxes; }

  // Box `place` of the given channels.
  __device__ __forceinline__ Box box(int channel_box, int64_t place) const {
    const int64_t image = place / boxes_of_image();
    const int rest = static_cast<int>(place - image * boxes_of_image());
    const int row = rest / column_boxes * box_rows, column = rest % column_boxes * box_columns;
    const int channel = channel_box * box_channels;
    return {image,
            channel,
            least(box_channels, channels - channel),
            row,
            least(box_rows, rows - row),
            column,
            least(box_columns, columns - column)};
  }

 private:
  static __device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
};

// Walks over the places of a box, `step` of them at a time along its inner dimension first; divides only once.
class BoxWalk {
 public:
  __device__ __forceinline__ BoxWalk(unsigned start, unsigned step, unsigned inner_size, unsigned middle_size)
      : inner(start % inner_size),
        middle(start / inner_size % middle_size),
        outer(start / inner_size / middle_size),
        inner_size_(inner_size),
        middle_size_(middle_size),
        inner_step_(step % inner_size),
        middle_step_(step / inner_size % middle_size),
        outer_step_(step / inner_size / middle_size) {}

  __device__ __forceinline__ void advance() {
    inner += inner_step_;
    middle += middle_step_;
    outer += outer_step_;
    if (inner >= inner_size_) {
      inner -= inner_size_;
      ++middle;
    }
    if (middle >= middle_size_) {
      middle -= middle_size_;
      ++outer;
    }
  }

  int inner, middle, outer;

 private:
  int inner_size_, middle_size_, inner_step_, middle_step_, outer_step_;
};

// The block's threads, or as a template's argument 0 where only the launch says how many.
template <int kThreads>
__device__ __forceinline__ int threads_of_block() {
  return kThreads > 0 ? kThreads : static_cast<int>(blockDim.x);
}

// The block's threads call f(channel, row, column) for the places of a box that is not empty, kVec of them at a time in
// the map's direction.
template <int kThreads, int kVec, typename F>
__device__ __forceinline__ void for_places(bool along_channels, int channels, int rows, int columns, F&& f) {
  const int inner = ((along_channels ? channels : columns) + kVec - 1) / kVec;
  const int middle = along_channels ? columns : rows, outer = along_channels ? rows : channels;
  BoxWalk walk(threadIdx.x, threads_of_block<kThreads>(), inner, middle);
  for (; walk.outer < outer; walk.advance()) {
    const int first = walk.inner * kVec;
    f(along_channels ? first : walk.outer, along_channels ? walk.outer : walk.middle,
      along_channels ? walk.middle : first);
  }
}

// The same in two steps: store(load(place), place), with kAhead loads under way before the first store.
template <int kThreads, int kVec, int kAhead, typename Load, typename Store>
__device__ __forceinline__ void for_places_ahead(bool along_channels, int channels, int rows, int columns, Load&& load,
                                                 Store&& store) {
  const int inner = ((along_channels ? channels : columns) + kVec - 1) / kVec;
  const int middle = along_channels ? columns : rows, outer = along_channels ? rows : channels;
  const auto at = [&](const BoxWalk& walk, auto&& f) {
    const int first = walk.inner * kVec;
    return f(along_channels ? first : walk.outer, along_channels ? walk.outer : walk.middle,
             along_channels ? walk.middle : first);
  };
  BoxWalk walk(threadIdx.x, threads_of_block<kThreads>(), inner, middle), ahead = walk;
#pragma unroll 1
  while (walk.outer < outer) {
    decltype(load(0, 0, 0)) values[kAhead]{};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (ahead.outer < outer) values[i] = at(ahead, load);
      ahead.advance();
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (walk.outer < outer) {
        at(walk, [&](int channel, int row, int column) { store(values[i], channel, row, column); });
      }
      walk.advance();
    }
  }
}

// Pixels in shared memory: rows of `pitch` elements with a gap after each 8, channels `slot` elements apart.
template <typename stored_t>
struct SharedTile {
  stored_t* data;
  int slot, pitch, gap = 0;

  __device__ __forceinline__ stored_t* pixel(int channel, int row, int column) const {
    return data + channel * slot + row * pitch + row / 8 * gap + column;
  }
};

}  // namespace mixer_kernels
