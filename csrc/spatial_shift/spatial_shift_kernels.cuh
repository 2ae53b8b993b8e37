// Device code of the spatial shift; the plan in spatial_shift_plan.h says what a line is.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/vector.cuh"
#include "spatial_shift/spatial_shift_plan.h"

namespace mixer_kernels {

// The address `bytes` further on, as one addition. The compiler would rather multiply out all eight addresses ahead of
// the loop and keep them in registers, so it is not told that the stride stays what it was.
template <typename scalar_t>
__device__ __forceinline__ scalar_t* advance(scalar_t* pointer, int64_t& bytes) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(bytes));
#endif
  using byte_t = std::conditional_t<std::is_const_v<scalar_t>, const char, char>;
  return reinterpret_cast<scalar_t*>(reinterpret_cast<byte_t*>(pointer) + bytes);
}

// Walks one segment of one line: moves y[i] = x[i + 1] for `moves` elements from in and out on, kShiftUnroll of them in
// flight. Every element of a batch is read before the first is written, and later batches read only what lies ahead, so
// in == out is allowed. is_first and is_last say whether the segment holds the line's ends.
template <typename scalar_t, int kVec, bool kAdjoint>
__device__ __forceinline__ void walk_segment(const scalar_t* in, scalar_t* out, const ShiftLines& lines, int64_t moves,
                                             bool is_first, bool is_last, int lane) {
  using vector_t = Vector<scalar_t, kVec>;
  const int lanes = 1 << lines.lane_bits;
  int64_t in_stride = lines.in_step * lanes * static_cast<int64_t>(sizeof(scalar_t));
  int64_t out_stride = lines.out_step * lanes * static_cast<int64_t>(sizeof(scalar_t));
  const scalar_t* source = in + (lane + 1) * lines.in_step;
  scalar_t* target = out + lane * lines.out_step;
  for (int64_t left = moves; left > 0; left -= kShiftUnroll * lanes) {
    const int batch = static_cast<int>(left < kShiftUnroll * lanes ? left : kShiftUnroll * lanes);
    const int count = (batch - lane + lanes - 1) >> lines.lane_bits;
    vector_t window[kShiftUnroll];
#pragma unroll
    for (int j = 0; j < kShiftUnroll; ++j) {
      if (j < count) window[j] = vector_t::load(source);
      source = advance(source, in_stride);
    }
    if constexpr (kAdjoint) {
      // The border sent its value to itself and to its neighbour, so both gradients come back.
      if (is_first && left == moves && lane == 0) window[0] = vector_t::load(in) + window[0];
    }
    if (lanes > 1) __syncwarp();
#pragma unroll
    for (int j = 0; j < kShiftUnroll; ++j) {
      if (j < count) window[j].store(target);
      target = advance(target, out_stride);
    }
  }
  if (is_last && lane == 0) {
    // Nothing comes back to the lost end in the adjoint, unless it is the border too. The shift keeps it.
    in += moves * lines.in_step;
    out += moves * lines.out_step;
    const bool is_lost = kAdjoint && lines.length > 1;
    if (is_lost || in != out) {
      vector_t border = vector_t::zero();
      if (!is_lost) border = vector_t::load(in);
      border.store(out);
    }
  }
}

// Where a segment lies.
struct ShiftPlace {
  int64_t batch, across, slot, segment;

  // The index counts channels and the other axis, then segments, then images.
  __device__ __forceinline__ ShiftPlace(const ShiftLines& lines, uint64_t index, int64_t segments) {
    const auto take = [&index](uint64_t extent) {
      const uint64_t quotient = index / extent;
      const uint64_t rest = index - quotient * extent;
      index = quotient;
      return static_cast<int64_t>(rest);
    };
    const int64_t inner = take(lines.channel_first ? lines.slots : lines.across);
    const int64_t outer = take(lines.channel_first ? lines.across : lines.slots);
    segment = take(segments);
    batch = static_cast<int64_t>(index);
    slot = lines.channel_first ? inner : outer;
    across = lines.channel_first ? outer : inner;
  }

  // Its moves: those of the last one end with the line.
  __device__ __forceinline__ int64_t moves(const ShiftLines& lines) const {
    return is_last(lines) ? lines.length - 1 - segment * lines.span : lines.span;
  }
  __device__ __forceinline__ bool is_last(const ShiftLines& lines) const { return segment == lines.segments - 1; }

  // Vectors exist only where channels are contiguous.
  __device__ __forceinline__ bool is_vector(const ShiftLines& lines) const { return slot < lines.vectors; }
  template <int kVec>
  __device__ __forceinline__ int64_t channel(const ShiftLines& lines) const {
    if (is_vector(lines)) return lines.head + slot * kVec;
    const int64_t single = slot - lines.vectors;
    return single < lines.head ? single : single + lines.vectors * kVec;
  }

  __device__ __forceinline__ int64_t offset(int64_t start, int64_t batch_stride, int64_t across_stride, int64_t step,
                                            const ShiftLines& lines) const {
    return start + batch * batch_stride + across * across_stride + segment * lines.span * step;
  }
};

// One thread (or one warp, where the line itself is contiguous) walks one segment of one line, for one vector of
// channels; blocks that run together are of different channel groups and the same pixels.
template <typename scalar_t, int kVec, bool kAdjoint>
__global__ void __launch_bounds__(kShiftThreads, kShiftBlocks)
    spatial_shift_kernel(const scalar_t* in, scalar_t* out, const __grid_constant__ ShiftLaunch launch) {
  const unsigned block = blockIdx.x / launch.groups;
  const ShiftLines& lines = launch.lines[blockIdx.x - block * launch.groups];
  const uint64_t thread = static_cast<uint64_t>(block) * kShiftThreads + threadIdx.x;
  if (thread >= lines.threads) return;

  const int lane = static_cast<int>(threadIdx.x & ((1u << lines.lane_bits) - 1));
  const ShiftPlace place(lines, thread >> lines.lane_bits, lines.segments);
  const int64_t moves = place.moves(lines), channel = place.channel<kVec>(lines);
  const bool is_first = place.segment == 0, is_last = place.is_last(lines);
  in += place.offset(lines.in_start, launch.in_batch, lines.in_across, lines.in_step, lines) +
        channel * launch.in_channel;
  out += place.offset(lines.out_start, launch.out_batch, lines.out_across, lines.out_step, lines) +
         channel * launch.out_channel;
  if constexpr (kVec > 1) {
    if (place.is_vector(lines)) {
      walk_segment<scalar_t, kVec, kAdjoint>(in, out, lines, moves, is_first, is_last, lane);
      return;
    }
  }
  walk_segment<scalar_t, 1, kAdjoint>(in, out, lines, moves, is_first, is_last, lane);
}

// Reads what a segment of at most kShiftUnroll moves takes, `width` neighbouring elements each.
template <int kWidth, bool kAdjoint, typename scalar_t, int kVec>
__device__ __forceinline__ void read_piece(Vector<scalar_t, kVec> (&window)[kShiftUnroll], const scalar_t* from,
                                           int64_t stride, int moves, bool is_first) {
  using vector_t = Vector<scalar_t, kWidth>;
  const scalar_t* source = advance(from, stride);
#pragma unroll
  for (int j = 0; j < kShiftUnroll; ++j) {
    if (j < moves) window[j].bits = vector_t::load(source).bits;
    source = advance(source, stride);
  }
  if constexpr (kAdjoint) {
    if (is_first && moves > 0) {
      const vector_t next{static_cast<typename vector_t::access_t>(window[0].bits)};
      window[0].bits = (vector_t::load(from) + next).bits;
    }
  }
}

template <int kWidth, bool kAdjoint, typename scalar_t, int kVec>
__device__ __forceinline__ void write_piece(const Vector<scalar_t, kVec> (&window)[kShiftUnroll], scalar_t* to,
                                            int64_t stride, int moves, bool is_last) {
  using vector_t = Vector<scalar_t, kWidth>;
#pragma unroll
  for (int j = 0; j < kShiftUnroll; ++j) {
    if (j < moves) vector_t{static_cast<typename vector_t::access_t>(window[j].bits)}.store(to);
    // Nothing comes back to the lost end in the adjoint.
    if (kAdjoint && j + 1 == moves && is_last) vector_t::zero().store(advance(to, stride));
    to = advance(to, stride);
  }
}

// In place: the threads of a warp hold all segments of its lines, and write when all have been read.
template <typename scalar_t, int kVec, bool kAdjoint>
__global__ void __launch_bounds__(kShiftThreads, kShiftPieceBlocks)
    spatial_shift_pieces_kernel(scalar_t* x, const __grid_constant__ ShiftLaunch launch) {
  const unsigned block = blockIdx.x / launch.groups;
  const ShiftLines& lines = launch.lines[blockIdx.x - block * launch.groups];
  const uint64_t thread = static_cast<uint64_t>(block) * kShiftThreads + threadIdx.x;
  if (thread >= lines.threads) return;  // whole warps

  // Neighbouring lanes are neighbouring lines.
  const unsigned lane = threadIdx.x % 32, line_bits = 5 - lines.piece_bits;
  const uint64_t line = (thread / 32 << line_bits) + (lane & ((1u << line_bits) - 1));
  ShiftPlace place(lines, line, 1);
  place.segment = lane >> line_bits;
  const bool is_inside = place.batch < launch.batch && place.segment < lines.segments;
  const int moves = is_inside ? static_cast<int>(place.moves(lines)) : 0;
  const bool is_first = place.segment == 0, is_last = place.is_last(lines), is_vector = place.is_vector(lines);
  x +=
      place.offset(lines.in_start, launch.in_batch, lines.in_across, lines.in_step, lines) + place.channel<kVec>(lines);
  int64_t stride = lines.in_step * static_cast<int64_t>(sizeof(scalar_t));

  Vector<scalar_t, kVec> window[kShiftUnroll];
  if (is_vector) {
    read_piece<kVec, kAdjoint>(window, x, stride, moves, is_first);
  } else {
    read_piece<1, kAdjoint>(window, x, stride, moves, is_first);
  }
  __syncwarp();
  if (is_vector) {
    write_piece<kVec, kAdjoint>(window, x, stride, moves, is_last);
  } else {
    write_piece<1, kAdjoint>(window, x, stride, moves, is_last);
  }
}

// Plans the shift and calls launch(kernel, grid, arguments...) for each kernel to run, in order.
template <typename Launch>
void run_spatial_shift(ElementType type, const void* in, const ShiftStrides& in_strides, void* out,
                       const ShiftStrides& out_strides, const ShiftShape& shape, const Direction* directions,
                       int64_t groups, bool adjoint, Launch&& launch) {
  const ShiftPlan plan =
      plan_spatial_shift(element_size(type), shape, {reinterpret_cast<uintptr_t>(in), in_strides},
                         {reinterpret_cast<uintptr_t>(out), out_strides}, directions, groups, adjoint);
  const auto run = [&](auto element, auto is_adjoint) {
    using scalar_t = decltype(element);
    constexpr bool kAdjoint = decltype(is_adjoint)::value;
    constexpr int kSize = sizeof(scalar_t);
    const auto run_all = [&](auto* kernel, auto... pointers) {
      for (const ShiftLaunch& arguments : plan.launches) {
        launch(kernel, dim3(arguments.groups * arguments.blocks), pointers..., arguments);
      }
    };
    const auto* from = static_cast<const scalar_t*>(in);
    auto* to = static_cast<scalar_t*>(out);
    if (plan.in_pieces) return run_all(&spatial_shift_pieces_kernel<scalar_t, 16 / kSize, kAdjoint>, to);
    if (plan.vec * kSize == 16) return run_all(&spatial_shift_kernel<scalar_t, 16 / kSize, kAdjoint>, from, to);
    if constexpr (kSize == 2) {
      if (plan.vec == 2) return run_all(&spatial_shift_kernel<scalar_t, 2, kAdjoint>, from, to);
    }
    run_all(&spatial_shift_kernel<scalar_t, 1, kAdjoint>, from, to);
  };
  if (adjoint) {
    dispatch_element(type, [&](auto element) { run(element, std::true_type{}); });
  } else {
    dispatch_element_bits(type, [&](auto element) { run(element, std::false_type{}); });
  }
}

}  // namespace mixer_kernels
