// Tiles of a map: where they lie, and how their pixels come into shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/mma.cuh"
#include "common/vector.cuh"
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
  __device__ __forceinline__ BoxWalk(int start, int step, int inner_size, int middle_size)
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

// The block's threads call f(channel, row, column) for the places of a box that is not empty, kVec of them at a time in
// the map's direction.
template <int kThreads, int kVec, typename F>
__device__ __forceinline__ void for_places(bool along_channels, int channels, int rows, int columns, F&& f) {
  const int inner = ((along_channels ? channels : columns) + kVec - 1) / kVec;
  const int middle = along_channels ? columns : rows, outer = along_channels ? rows : channels;
  BoxWalk walk(static_cast<int>(threadIdx.x), kThreads, inner, middle);
  for (; walk.outer < outer; walk.advance()) {
    const int first = walk.inner * kVec;
    f(along_channels ? first : walk.outer, along_channels ? walk.outer : walk.middle,
      along_channels ? walk.middle : first);
  }
}

// Pixels in shared memory: rows of `pitch` elements, channels `slot` elements apart.
template <typename stored_t>
struct SharedTile {
  stored_t* data;
  int slot, pitch;

  __device__ __forceinline__ stored_t* pixel(int channel, int row, int column) const {
    return data + channel * slot + row * pitch + column;
  }
};

template <typename stored_t, typename scalar_t>
__device__ __forceinline__ stored_t stored_as(scalar_t value) {
  if constexpr (std::is_same_v<stored_t, scalar_t>) {
    return value;
  } else {
    return to_acc(value);
  }
}

// Zeros in the first `bytes` of shared memory, a multiple of 16.
template <int kThreads>
__device__ __forceinline__ void fill_zeros(void* shared, int bytes) {
  using vector_t = Vector<float, 4>;
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kThreads) {
    vector_t::zero().store(static_cast<float*>(shared) + 4 * i);
  }
}

// Brings what a box and the map have in common into shared memory; the rest stays what it was.
template <int kThreads, typename scalar_t, typename stored_t>
__device__ __forceinline__ void load_box(const Map& map, const Box& box, const SharedTile<stored_t>& to) {
  const int first_row = box.row > 0 ? box.row : 0, first_column = box.column > 0 ? box.column : 0;
  const int end_row = box.row + box.rows < map.rows ? box.row + box.rows : map.rows;
  const int end_column = box.column + box.columns < map.columns ? box.column + box.columns : map.columns;
  const int rows = end_row - first_row;
  if (rows <= 0 || first_column >= end_column) return;
  if (map.has_vectors) {
    constexpr int kVec = 16 / sizeof(scalar_t);
    // Vectors along the columns begin at multiples of their length, in front of the box if need be.
    const int begin = map.along_channels ? first_column : first_column / kVec * kVec;
    const int step = map.along_channels ? to.slot : 1;
    for_places<kThreads, kVec>(
        map.along_channels, box.channels, rows, end_column - begin, [&](int channel, int row, int column) {
          const auto bits = Vector<scalar_t, kVec>::load(
              map.template pixel<scalar_t>(box.image, box.channel + channel, first_row + row, begin + column));
          // How many of the vector's elements lie in front of the box, and up to its end.
          const int before = map.along_channels ? 0 : first_column - begin - column;
          const int end = map.along_channels ? box.channels - channel : end_column - begin - column;
          stored_t* target = to.pixel(channel, first_row + row - box.row, begin + column - box.column);
          if constexpr (sizeof(stored_t) == 2) {
            // Two elements at a time where that is possible.
            if (!map.along_channels && before <= 0 && end >= kVec && reinterpret_cast<uintptr_t>(target) % 4 == 0) {
#pragma unroll
              for (int i = 0; i < kVec; i += 2) {
                Vector<stored_t, 2>{static_cast<uint32_t>(bits.bits >> (16 * i))}.store(target + i);
              }
              return;
            }
          }
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            if (i >= before && i < end) {
              target[i * step] = stored_as<stored_t>(element_of<scalar_t>(bits.bits >> (8 * sizeof(scalar_t) * i)));
            }
          }
        });
  } else {
    for_places<kThreads, 1>(
        map.along_channels, box.channels, rows, end_column - first_column, [&](int channel, int row, int column) {
          *to.pixel(channel, first_row + row - box.row, first_column + column - box.column) = stored_as<stored_t>(
              *map.template pixel<scalar_t>(box.image, box.channel + channel, first_row + row, first_column + column));
        });
  }
}

}  // namespace mixer_kernels
