// Copies of matrices whose rows lie badly for 16-byte accesses, several in one launch.
#pragma once

#include <cstdint>

#include "common/vector.cuh"

namespace mixer_kernels {

constexpr int kPackTile = 32;
constexpr int kPackThreads = 256;
constexpr int kPackTasks = 5;

// (batch, rows, columns) from any strides to rows of a pitch, with zeros in what is left of them. Strides in elements;
// a transpose swaps them.
struct PackTask {
  const void* from;
  int64_t batch_stride, row_stride, column_stride;
  void* to;
  int64_t batch, rows, columns, pitch;
};

struct PackLaunch {
  PackTask tasks[kPackTasks];
  int64_t blocks[kPackTasks];
  int count = 0;
  int64_t all_blocks = 0;

  void add(const PackTask& task) {
    const auto tiles = [](int64_t extent) { return (extent + kPackTile - 1) / kPackTile; };
    blocks[count] = task.batch * tiles(task.rows) * tiles(task.pitch);
    all_blocks += blocks[count];
    tasks[count++] = task;
  }
};

// One block moves 32 x 32 elements through shared memory: it reads along the closer of the two dimensions and writes
// along the rows.
template <typename bits_t>
__global__ void __launch_bounds__(kPackThreads) pack_kernel(const __grid_constant__ PackLaunch launch) {
  int64_t block = blockIdx.x;
  int which = 0;
  while (block >= launch.blocks[which]) block -= launch.blocks[which++];
  const PackTask& task = launch.tasks[which];
  const int64_t row_tiles = (task.rows + kPackTile - 1) / kPackTile;
  const int64_t column_tiles = (task.pitch + kPackTile - 1) / kPackTile;
  const int64_t image = block / column_tiles / row_tiles;
  const int64_t row = block / column_tiles % row_tiles * kPackTile;
  const int64_t column = block % column_tiles * kPackTile;

  // One column more, so that a column of the tile meets every bank.
  __shared__ bits_t tile[kPackTile][kPackTile + 1];
  const int lane = static_cast<int>(threadIdx.x) % kPackTile;
  const int line = static_cast<int>(threadIdx.x) / kPackTile;
  constexpr int kLines = kPackThreads / kPackTile;
  const bool along_rows = task.column_stride <= task.row_stride;
  const auto* from = static_cast<const bits_t*>(task.from) + image * task.batch_stride;
#pragma unroll
  for (int i = line; i < kPackTile; i += kLines) {
    const int r = along_rows ? i : lane, c = along_rows ? lane : i;
    const bool inside = row + r < task.rows && column + c < task.columns;
    tile[r][c] = inside ? from[(row + r) * task.row_stride + (column + c) * task.column_stride] : bits_t{};
  }
  __syncthreads();
  auto* to = static_cast<bits_t*>(task.to) + (image * task.rows + row) * task.pitch + column;
#pragma unroll
  for (int i = line; i < kPackTile; i += kLines) {
    if (row + i < task.rows && column + lane < task.pitch) to[i * task.pitch + lane] = tile[i][lane];
  }
}

}  // namespace mixer_kernels
