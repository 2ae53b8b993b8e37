// How the CPU kernels cut images into tasks: a task is a tile of channels of one image.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace mixer_kernels {

constexpr int64_t kStripRows = 16;         // of a tile of AMX: products write as many
constexpr int64_t kGradientColumns = 128;  // of a tile in backward: sums of gradients are read and written once a tile

inline int64_t whole_strips(int64_t rows) { return (rows + kStripRows - 1) / kStripRows * kStripRows; }

struct Tiling {
  int64_t batch, channels, columns;  // of a tile

  Tiling(int64_t images, int64_t width, int64_t widest) : batch(images), channels(width), columns(widest) {
    // Narrow tiles leave threads less time without work.
    while (columns > kNarrowest && 8 * slowest_thread(columns / 2) < 7 * slowest_thread(columns)) columns /= 2;
  }

  int64_t per_image() const { return (channels + columns - 1) / columns; }
  int64_t tasks() const { return batch * per_image(); }

 private:
  static constexpr int64_t kNarrowest = 32;

  // Columns that the thread with the most tasks works on.
  int64_t slowest_thread(int64_t width) const {
    const int64_t tiles = batch * ((channels + width - 1) / width), threads = at::get_num_threads();
    return (tiles + threads - 1) / threads * std::min(width, channels);
  }
};

}  // namespace mixer_kernels
