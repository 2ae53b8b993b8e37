// Maps of pixels as the CPU kernels take them, and how they are cut into tasks.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "common/rows.h"
#include "depthwise_conv2d/depthwise_conv2d_binding.h"

namespace mixer_kernels {

// A (B, C, H, W) tensor, any strides.
template <typename scalar_t>
struct Map {
  scalar_t* data = nullptr;
  int64_t image_step = 0, channel_step = 0, row_step = 0, column_step = 0;

  Map() = default;
  explicit Map(const at::Tensor& t)
      : data(elements_of<scalar_t>(t)),
        image_step(t.stride(0)),
        channel_step(t.stride(1)),
        row_step(t.stride(2)),
        column_step(t.stride(3)) {}
  explicit Map(const OptionalTensor& t) : Map(t ? Map(*t) : Map()) {}

  scalar_t* pixel(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return data + image * image_step + channel * channel_step + row * row_step + column * column_step;
  }
};

// Pixels [row, row + rows) x [column, column + columns) of some channels of an image.
struct TileOfMap {
  int64_t image, channel, channels, row, rows, column, columns;
};

// A task is a tile of one image and one block of channels; the tasks of a block follow each other.
class TileGrid {
 public:
  TileGrid(int64_t batch, int64_t channels, int64_t block, Extent map, Extent tile)
      : batch_(batch), channels_(channels), block_(block), map_(map), tile_(tile) {}

  // Tiles as even as they can be, of at most 32 x 32 pixels.
  static Extent tile(Extent map) { return {even_part(map.h), even_part(map.w)}; }

  int64_t channels() const { return channels_; }
  int64_t block() const { return block_; }
  int64_t blocks() const { return parts(channels_, block_); }
  int64_t tasks_of_block() const { return batch_ * parts(map_.h, tile_.h) * parts(map_.w, tile_.w); }
  int64_t tasks() const { return blocks() * tasks_of_block(); }

  // The task that is the index-th where the blocks of channels of an image follow each other: where its channels are
  // side by side, they share its pages.
  int64_t by_image(int64_t index) const { return index % blocks() * tasks_of_block() + index / blocks(); }

  TileOfMap operator[](int64_t index) const {
    const int64_t down = parts(map_.h, tile_.h), across = parts(map_.w, tile_.w);
    const int64_t column = index % across * tile_.w, row = index / across % down * tile_.h;
    const int64_t image = index / across / down % batch_, channel = index / tasks_of_block() * block_;
    return {image,
            channel,
            std::min(block_, channels_ - channel),
            row,
            std::min(tile_.h, map_.h - row),
            column,
            std::min(tile_.w, map_.w - column)};
  }

 private:
  static int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }
  static int64_t even_part(int64_t size) {
    constexpr int64_t kMost = 32;
    return parts(size, parts(size, kMost));
  }

  int64_t batch_, channels_, block_;
  Extent map_, tile_;
};

}  // namespace mixer_kernels
