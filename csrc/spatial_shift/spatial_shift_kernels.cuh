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
  uint64_t rest = thread >> lines.lane_bits;
  const auto take = [&rest](uint64_t extent) {
    const uint64_t quotient = rest / extent;
    const uint64_t index = rest - quotient * extent;
    rest = quotient;
    return static_cast<int64_t>(index);
  };
  const int64_t inner = take(lines.channel_first ? lines.slots : lines.across);
  const int64_t outer = take(lines.channel_first ? lines.across : lines.slots);
  const int64_t segment = take(lines.segments);
  const int64_t batch = static_cast<int64_t>(rest);
  const int64_t slot = lines.channel_first ? inner : outer;
  const int64_t across = lines.channel_first ? outer : inner;

  const int64_t begin = segment * lines.span;
  const bool is_first = segment == 0;
  const bool is_last = segment == lines.segments - 1;
  const int64_t moves = is_last ? lines.length - 1 - begin : lines.span;
  in += lines.in_start + batch * launch.in_batch + across * lines.in_across + begin * lines.in_step;
  out += lines.out_start + batch * launch.out_batch + across * lines.out_across + begin * lines.out_step;
  if constexpr (kVec > 1) {
    if (slot < lines.vectors) {
      // Vectors exist only where channels are contiguous.
      const int64_t channel = lines.head + slot * kVec;
      walk_segment<scalar_t, kVec, kAdjoint>(in + channel, out + channel, lines, moves, is_first, is_last, lane);
      return;
    }
  }
  const int64_t single = slot - lines.vectors;
  const int64_t channel = single < lines.head ? single : single + lines.vectors * kVec;
  walk_segment<scalar_t, 1, kAdjoint>(in + channel * launch.in_channel, out + channel * launch.out_channel, lines,
                                      moves, is_first, is_last, lane);
}

// Plans the shift and calls launch(kernel, grid, in, out, arguments) for each kernel to run, in order.
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
    auto* kernel = &spatial_shift_kernel<scalar_t, 1, kAdjoint>;
    if (plan.vec * kSize == 16) kernel = &spatial_shift_kernel<scalar_t, 16 / kSize, kAdjoint>;
    if constexpr (kSize == 2) {
      if (plan.vec == 2) kernel = &spatial_shift_kernel<scalar_t, 2, kAdjoint>;
    }
    for (size_t i = 0; i < plan.launches.size(); ++i) {
      launch(kernel, dim3(plan.launches[i].groups * plan.launches[i].blocks), static_cast<const scalar_t*>(in),
             static_cast<scalar_t*>(out), plan.launches[i]);
    }
  };
  if (adjoint) {
    dispatch_element(type, [&](auto element) { run(element, std::true_type{}); });
  } else {
    dispatch_element_bits(type, [&](auto element) { run(element, std::false_type{}); });
  }
}

}  // namespace mixer_kernels
