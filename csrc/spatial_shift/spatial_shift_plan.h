// How the CUDA spatial shift cuts its work into lines: host code, free of CUDA, so that the launcher and the host
// emulator run the same plan.
//
// A line is what moves together: the elements along the moving axis at one image, one position of the other axis and
// one vector of channels. Seen from the end that loses its element, every direction is the same, y[i] = x[i + 1] with
// the last element kept, only the sign of the step differs; the adjoint is the same walk from the other end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/plan.h"
#include "spatial_shift/spatial_shift.h"

namespace mixer_kernels {

constexpr int kShiftThreads = 256;
constexpr int kShiftBlocks = 3;  // of a multiprocessor at once; a fourth would cost spills
// Elements of a line that a thread has in flight. At 16 bytes each and 24 warps a multiprocessor that is 96 KB, several
// times what latency times bandwidth asks for.
constexpr int kShiftUnroll = 8;
// In place, a line of at most 2^kShiftPieceBits segments is moved by neighbouring threads of one warp.
constexpr int kShiftPieceBits = 3, kShiftPieceBlocks = 4;
// The groups of one launch travel as a kernel argument, of which CUDA takes 4 KB everywhere.
constexpr int kShiftGroups = 16;

// The lines of one channel group. Offsets and strides in elements.
struct ShiftLines {
  int64_t in_start, out_start;    // the first element of the first line
  int64_t in_step, out_step;      // from one element of a line to the next
  int64_t in_across, out_across;  // from one line to its neighbour on the other axis
  int64_t length, across;
  int64_t head, vectors, slots;  // channels: `head` single ones, then `vectors` vectors, the rest single again
  int64_t span, segments;        // the line's length - 1 moves are cut into segments of `span`
  uint64_t threads;
  int32_t lane_bits;   // threads that share a segment: 1 (0 bits) or a warp (5 bits)
  int32_t piece_bits;  // in pieces: a warp moves 2^piece_bits segments of each of its lines
  bool channel_first;  // neighbouring threads run over the channels, else over the other axis
};

struct ShiftLaunch {
  ShiftLines lines[kShiftGroups];
  uint32_t groups, blocks;  // the grid: blocks of every group, group by group in turn
  int64_t batch;
  int64_t in_batch, out_batch, in_channel, out_channel;
};
static_assert(sizeof(ShiftLaunch) < 4096, "a kernel takes at most 4 KB of arguments");

struct ShiftPlan {
  std::vector<ShiftLaunch> launches;
  int vec = 1;             // elements in a vector
  bool in_pieces = false;  // in place, all segments of a line are read before any is written
};

struct ShiftView {
  uintptr_t address;
  ShiftStrides strides;
};

// Whether every line starts at the same place within `bytes` in both views, so that aligned vectors exist.
inline bool shift_lines_align(int bytes, int size, const ShiftShape& shape, const ShiftView& in, const ShiftView& out) {
  const auto whole = [&](int64_t extent, int64_t stride) { return extent == 1 || stride * size % bytes == 0; };
  const auto view_aligns = [&](const ShiftStrides& s) {
    return s.c == 1 && whole(shape.batch, s.b) && whole(shape.height, s.h) && whole(shape.width, s.w);
  };
  return in.address % bytes == out.address % bytes && view_aligns(in.strides) && view_aligns(out.strides);
}

// Cuts channels [first, first + count) at the aligned addresses.
inline void cut_channels(ShiftLines& lines, uintptr_t address, int64_t first, int64_t count, int vec, int size) {
  lines.head = 0;
  lines.vectors = 0;
  if (vec > 1) {
    const int64_t element = static_cast<int64_t>(address / size) + first;
    lines.head = std::min(count, (vec - element % vec) % vec);
    lines.vectors = (count - lines.head) / vec;
  }
  lines.slots = count - lines.vectors * (vec - 1);
}

inline ShiftPlan plan_spatial_shift(int size, const ShiftShape& shape, const ShiftView& in, const ShiftView& out,
                                    const Direction* directions, int64_t groups, bool adjoint) {
  ShiftPlan plan;
  if (shape.batch == 0 || shape.height == 0 || shape.width == 0 || shape.channels == 0) return plan;

  // 16 bytes are one load of the widest kind; 4 still let a warp read whole 128-byte lines of a half type. A group
  // that is too narrow for a vector is no reason to read the others in pieces, so one vector anywhere is enough.
  const auto group_start = [&](int64_t group) { return group * shape.channels / groups; };
  for (const int bytes : {16, 4}) {
    if (bytes <= size || !shift_lines_align(bytes, size, shape, in, out)) continue;
    for (int64_t group = 0; group < groups && plan.vec == 1; ++group) {
      ShiftLines lines{};
      cut_channels(lines, in.address, group_start(group), group_start(group + 1) - group_start(group), bytes / size,
                   size);
      if (lines.vectors > 0) plan.vec = bytes / size;
    }
    if (plan.vec > 1) break;
  }

  // Where fewer bytes than 16 move together, a warp with several lines would touch too many cache lines.
  const int64_t most_moves = kShiftUnroll << kShiftPieceBits;
  const bool in_place = in.address == out.address;
  plan.in_pieces = in_place && plan.vec * size == 16 && std::max(shape.height, shape.width) - 1 <= most_moves;

  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group_start(group);
    const int64_t count = group_start(group + 1) - first;
    if (count == 0) continue;
    const Direction direction = directions[group];
    const bool along_h = direction == Direction::kPlusH || direction == Direction::kMinusH;
    const bool plus = direction == Direction::kPlusH || direction == Direction::kPlusW;

    ShiftLines lines{};
    cut_channels(lines, in.address, first, count, plan.vec, size);
    lines.length = along_h ? shape.height : shape.width;
    lines.across = along_h ? shape.width : shape.height;
    lines.in_step = along_h ? in.strides.h : in.strides.w;
    lines.out_step = along_h ? out.strides.h : out.strides.w;
    lines.in_across = along_h ? in.strides.w : in.strides.h;
    lines.out_across = along_h ? out.strides.w : out.strides.h;
    lines.in_start = first * in.strides.c;
    lines.out_start = first * out.strides.c;

    // Neighbouring threads follow the smallest stride, so that a warp touches few cache lines: along the channels,
    // across the lines, or along the line itself, which then takes a warp. Judged by the output, because an expanded
    // input has strides of zero.
    const auto reach = [](int64_t extent, int64_t stride) { return extent == 1 ? INT64_MAX : stride; };
    const int64_t channel = reach(count, out.strides.c);
    const int64_t across = reach(lines.across, lines.out_across);
    lines.channel_first = channel <= across;
    const bool along_line = reach(lines.length, lines.out_step) < std::min(channel, across);
    // A short line would leave lanes idle.
    lines.lane_bits = along_line && lines.length > kShiftUnroll && !plan.in_pieces ? 5 : 0;

    // "+h" loses its last row and is walked from there; the adjoint is walked from the other end.
    if (plus != adjoint) {
      lines.in_start += (lines.length - 1) * lines.in_step;
      lines.out_start += (lines.length - 1) * lines.out_step;
      lines.in_step = -lines.in_step;
      lines.out_step = -lines.out_step;
    }

    // A long line in place is walked in order by one thread or one warp. Otherwise segments are independent, or as even
    // as the pieces of a warp can be.
    const int64_t moves = std::max<int64_t>(lines.length - 1, 1);
    lines.span = in_place ? moves : kShiftUnroll << lines.lane_bits;
    if (plan.in_pieces) {
      while (kShiftUnroll << lines.piece_bits < moves) ++lines.piece_bits;
      lines.span = divide_up(moves, int64_t{1} << lines.piece_bits);
    }
    lines.segments = divide_up(moves, lines.span);
    const int64_t count_of_lines = shape.batch * lines.across * lines.slots;
    if (plan.in_pieces) {
      lines.threads = static_cast<uint64_t>(divide_up(count_of_lines, 32 >> lines.piece_bits)) * 32;
    } else {
      lines.threads = static_cast<uint64_t>(count_of_lines * lines.segments) << lines.lane_bits;
    }

    if (plan.launches.empty() || plan.launches.back().groups == kShiftGroups) {
      ShiftLaunch launch{};
      launch.batch = shape.batch;
      launch.in_batch = in.strides.b;
      launch.out_batch = out.strides.b;
      launch.in_channel = in.strides.c;
      launch.out_channel = out.strides.c;
      plan.launches.push_back(launch);
    }
    ShiftLaunch& launch = plan.launches.back();
    launch.lines[launch.groups++] = lines;
    // A grid of 2^31 - 1 blocks is more than the elements of any memory need.
    launch.blocks = std::max(launch.blocks, static_cast<uint32_t>((lines.threads + kShiftThreads - 1) / kShiftThreads));
  }
  return plan;
}

}  // namespace mixer_kernels
