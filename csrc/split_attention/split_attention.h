// The shifted split attention of S2-MLPv2: what CPU and CUDA share. Plain pointers and sizes, no torch header.
#pragma once

#include <cstdint>

namespace mixer_kernels {

// x holds three branches side by side, of four groups of channels each; the first two are shifted.
constexpr int kBranches = 3, kGroups = 4;

constexpr int64_t group_start(int64_t group, int64_t channels) { return group * channels / kGroups; }

// From a pixel to another.
struct Offset {
  int64_t h, w;
};

// Which pixel a group of a branch takes its value from, "+h" the one above: the branches are shifted along
// ("+h", "-h", "+w", "-w") and ("+w", "-w", "+h", "-h"). Beyond the border it is the border's own.
constexpr Offset source_of(int branch, int group) {
  if (branch == 2) return {0, 0};
  const int64_t step = group % 2 == 0 ? -1 : 1;
  return (group < 2) == (branch == 0) ? Offset{step, 0} : Offset{0, step};
}

}  // namespace mixer_kernels
