// The last step of reductions that were split over blocks: sums in a fixed order, several arrays in one launch.
#pragma once

#include <cstdint>

#include "common/vector.cuh"

namespace mixer_kernels {

constexpr int kSumColumns = 32;
constexpr int kSumGroups = 16;
constexpr int kSumThreads = kSumColumns * kSumGroups;
constexpr int kSumTasks = 6;

// to[i] = sum over t of terms[t * stride + i].
struct SumTask {
  const float* terms;
  int64_t count, stride, width;  // terms, elements from one to the next, elements in each
  void* to;
  ElementType type;
};

struct SumLaunch {
  SumTask tasks[kSumTasks];
  int64_t blocks[kSumTasks];
  int count = 0;
  int64_t all_blocks = 0;

  void add(const SumTask& task) {
    blocks[count] = (task.width + kSumColumns - 1) / kSumColumns;
    all_blocks += blocks[count];
    tasks[count++] = task;
  }
};

// One block sums 32 neighbouring elements: a warp for every 16th term, then the first warp over the 16 partial sums.
// A template only so that several files may include it.
template <typename = void>
__global__ void __launch_bounds__(kSumThreads) sum_terms_kernel(const __grid_constant__ SumLaunch launch) {
  int64_t block = blockIdx.x;
  int which = 0;
  while (block >= launch.blocks[which]) block -= launch.blocks[which++];
  const SumTask& task = launch.tasks[which];
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns;
  const int group = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t column = block * kSumColumns + lane;

  // In float64, for the terms are large sums; the kernel waits for memory anyway.
  __shared__ double partial[kSumGroups][kSumColumns];
  double total = 0.0;
  if (column < task.width) {
    const float* term = task.terms + column;
#pragma unroll 8
    for (int64_t t = group; t < task.count; t += kSumGroups) total += term[t * task.stride];
  }
  partial[group][lane] = total;
  __syncthreads();
  if (group > 0 || column >= task.width) return;
#pragma unroll
  for (int i = 1; i < kSumGroups; ++i) total += partial[i][lane];
  const auto sum = static_cast<float>(total);
  switch (task.type) {
    case ElementType::kHalf:
      static_cast<__half*>(task.to)[column] = from_acc<__half>(sum);
      break;
    case ElementType::kBFloat16:
      static_cast<__nv_bfloat16*>(task.to)[column] = from_acc<__nv_bfloat16>(sum);
      break;
    default:
      static_cast<float*>(task.to)[column] = sum;
  }
}

}  // namespace mixer_kernels
