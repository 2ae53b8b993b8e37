// How the pixels of a map come into shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/vector.cuh"
#include "depthwise_conv2d/map_tile.cuh"

namespace mixer_kernels {

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
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += threads_of_block<kThreads>()) {
    vector_t::zero().store(static_cast<float*>(shared) + 4 * i);
  }
}

// A vector's bits into shared memory, kBytes at a time.
template <int kBytes, typename bits_t>
__device__ __forceinline__ void store_pieces(void* to, bits_t bits) {
  using piece_t = typename AccessOf<kBytes>::type;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(bits)) / kBytes; ++i) {
    static_cast<piece_t*>(to)[i] = static_cast<piece_t>(bits >> (8 * kBytes * i));
  }
}

constexpr int kLoadsAhead = 4;  // of a thread

// Brings `inside`, the part of a box that exists, into the box's tile: of a map whose vectors lie along the columns.
// Threads, a power of two, lie side by side along a row, then along the rows, then along the channels; each takes the
// same place of several channels.
template <int kThreads, typename scalar_t, int kAhead, typename stored_t>
__device__ __forceinline__ void load_rows(const Map& map, const Box& box, const Box& inside,
                                          const SharedTile<stored_t>& to) {
  constexpr int kVec = 16 / sizeof(scalar_t);
  // Vectors begin at multiples of their length, in front of the box if need be.
  const int begin = inside.column / kVec * kVec, end = inside.column + inside.columns;
  int shift = 0;  // of the vectors in a row that threads take side by side
  while (shift < 5 && (kVec << shift) < end - begin) ++shift;
  int row_shift = 0;  // the same of rows
  while ((1 << row_shift) < inside.rows && 2 << (shift + row_shift) <= threads_of_block<kThreads>()) ++row_shift;
  const int groups = threads_of_block<kThreads>() >> (shift + row_shift);  // of threads, by channel
  const int alignment = (begin - box.column) % kVec;                       // the same in all threads
#pragma unroll 1
  for (int column = begin + (static_cast<int>(threadIdx.x) & ((1 << shift) - 1)) * kVec; column < end;
       column += kVec << shift) {
    // How many of the vector's elements lie in front of the box, and up to its end.
    const int before = inside.column - column, count = end - column;
    const bool is_whole = before <= 0 && count >= kVec && alignment % 2 == 0;
    const auto store = [&](stored_t* target, const Vector<scalar_t, kVec>& vector) {
      if constexpr (sizeof(stored_t) == 2) {
        if (is_whole) {
          if (alignment == 0) return store_pieces<16>(target, vector.bits);
          if (alignment % 4 == 0) return store_pieces<8>(target, vector.bits);
          return store_pieces<4>(target, vector.bits);
        }
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (i >= before && i < count) {
          target[i] = stored_as<stored_t>(element_of<scalar_t>(vector.bits >> (8 * sizeof(scalar_t) * i)));
        }
      }
    };
#pragma unroll 1
    for (int row = (static_cast<int>(threadIdx.x) >> shift) & ((1 << row_shift) - 1); row < inside.rows;
         row += 1 << row_shift) {
      const int first = static_cast<int>(threadIdx.x) >> (shift + row_shift);
      const auto* source =
          map.template pixel<const scalar_t>(inside.image, inside.channel + first, inside.row + row, column);
      stored_t* target = to.pixel(first, inside.row + row - box.row, column - box.column);
#pragma unroll 1
      for (int channel = first; channel < inside.channels; channel += kAhead * groups) {
        Vector<scalar_t, kVec> vectors[kAhead]{};
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (channel + i * groups < inside.channels) vectors[i] = Vector<scalar_t, kVec>::load(source);
          source += groups * map.view.channel_stride;
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (channel + i * groups < inside.channels) store(target, vectors[i]);
          target += groups * to.slot;
        }
      }
    }
  }
}

// The same of a map whose vectors are channels. A thread takes two pixels next to each other, whose elements of 16 bits
// make words of shared memory; zeros where one of them is outside.
template <int kThreads, typename scalar_t, int kAhead, typename stored_t>
__device__ __forceinline__ void load_pixels(const Map& map, const Box& box, const Box& inside,
                                            const SharedTile<stored_t>& to) {
  constexpr int kVec = 16 / sizeof(scalar_t), kPixels = sizeof(stored_t) == 2 ? 2 : 1;
  struct Pixels {
    Vector<scalar_t, kVec> vectors[kPixels];
  };
  const int begin = (inside.column - box.column) / kPixels * kPixels;  // in the tile
  const int columns = inside.column + inside.columns - box.column - begin;
  const auto* from = map.template pixel<const scalar_t>(inside.image, inside.channel, inside.row, inside.column);
  for_places_ahead<kThreads, kVec, kAhead>(
      true, inside.channels, inside.rows, (columns + kPixels - 1) / kPixels,
      [&](int channel, int row, int pixel) {
        Pixels pixels;
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          const int column = box.column + begin + pixel * kPixels + i - inside.column;
          pixels.vectors[i] = column >= 0 && column < inside.columns
                                  ? Vector<scalar_t, kVec>::load(from + map.distance(0, row, column) + channel)
                                  : Vector<scalar_t, kVec>::zero();
        }
        return pixels;
      },
      [&](const Pixels& pixels, int channel, int row, int pixel) {
        stored_t* target = to.pixel(channel, inside.row + row - box.row, begin + pixel * kPixels);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const auto element = [&](int of) { return pixels.vectors[of].bits >> (8 * sizeof(scalar_t) * i); };
          if constexpr (kPixels == 2) {
            const uint32_t low = static_cast<uint16_t>(element(0)), high = static_cast<uint16_t>(element(1));
            Vector<stored_t, 2>{low | high << 16}.store(target + i * to.slot);
          } else {
            target[i * to.slot] = stored_as<stored_t>(element_of<scalar_t>(element(0)));
          }
        }
      });
}

// Brings what a box and the map have in common into shared memory; the rest stays what it was: zeros, in tiles of 16
// bits, whose pitch is even.
template <int kThreads, typename scalar_t, int kAhead = kLoadsAhead, typename stored_t>
__device__ __forceinline__ void load_box(const Map& map, const Box& box, const SharedTile<stored_t>& to) {
  const int first_row = box.row > 0 ? box.row : 0, first_column = box.column > 0 ? box.column : 0;
  const int end_row = box.row + box.rows < map.rows ? box.row + box.rows : map.rows;
  const int end_column = box.column + box.columns < map.columns ? box.column + box.columns : map.columns;
  if (first_row >= end_row || first_column >= end_column) return;
  const Box inside{
      box.image, box.channel, box.channels, first_row, end_row - first_row, first_column, end_column - first_column};
  if (map.has_vectors && map.along_channels) {
    load_pixels<kThreads, scalar_t, kAhead>(map, box, inside, to);
  } else if (map.has_vectors) {
    load_rows<kThreads, scalar_t, kAhead>(map, box, inside, to);
  } else {
    const auto* from = map.template pixel<const scalar_t>(inside.image, inside.channel, inside.row, inside.column);
    for_places_ahead<kThreads, 1, kAhead>(
        map.along_channels, inside.channels, inside.rows, inside.columns,
        [&](int channel, int row, int column) { return from[map.distance(channel, row, column)]; },
        [&](scalar_t value, int channel, int row, int column) {
          *to.pixel(channel, inside.row + row - box.row, inside.column + column - box.column) =
              stored_as<stored_t>(value);
        });
  }
}

}  // namespace mixer_kernels
