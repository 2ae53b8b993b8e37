// The shifted split attention of S2-MLPv2: what CPU and CUDA share. Plain pointers and sizes, no torch header.
#pragma once

#include <cstdint>

#include "common/element_type.h"

typedef struct CUstream_st* cudaStream_t;  // as CUDA declares it; CPU builds have no CUDA header

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

// On CUDA a thread takes a run of at most so many pixels, and a block takes at most so many vectors of channels.
constexpr int kSplitRun = 8, kSplitLanes = 64;

// Maps of one branch's channels, or of all branches'. Every size is at least 1; the pixels of an image and the
// channels are below 2^30, and so are images x runs x chunks of channels.
struct SplitAttentionShape {
  ElementType type;  // not double
  int64_t batch, height, width, channels;
};

// A (B, H, W, channels) tensor whose channels lie side by side; strides in elements.
struct FeatureView {
  const void* data;
  int64_t image_stride, row_stride, column_stride;
};

// What the gate's gradient is computed from: (B, C) sums, (B, 3, C) weights, both float, and the matrices.
struct SplitGateArguments {
  const float *total, *weights;
  const void *weight1, *weight2;
};

// What it leaves in the features' type for the gradients of the matrices: dweight1 = dinner^T total and dweight2 =
// dlogits^T hidden. Rows for the images.
struct SplitGateFactors {
  void *total, *hidden, *dinner, *dlogits;
};

// Bytes of device memory that they want besides.
int64_t split_attention_gate_workspace(const SplitAttentionShape& shape, int64_t hidden_size);
int64_t split_attention_bwd_gate_workspace(const SplitAttentionShape& shape, int64_t hidden_size);

// What is not a view is contiguous; the matrices and the sums behind them begin at multiples of 16 bytes. The caller
// checks for launch errors.
void split_attention_gate_cuda(const SplitAttentionShape& shape, int64_t hidden_size, const FeatureView& x,
                               const void* weight1, const void* weight2, float* total, float* weights, void* workspace,
                               cudaStream_t stream);
void split_attention_combine_cuda(const SplitAttentionShape& shape, const FeatureView& x, const float* weights, void* y,
                                  cudaStream_t stream);
void split_attention_bwd_gate_cuda(const SplitAttentionShape& shape, int64_t hidden_size, const FeatureView& dy,
                                   const FeatureView& x, const SplitGateArguments& arguments, float* da,
                                   const SplitGateFactors& factors, void* workspace, cudaStream_t stream);
void split_attention_bwd_features_cuda(const SplitAttentionShape& shape, const FeatureView& dy, const float* weights,
                                       const float* da, void* dx, cudaStream_t stream);

}  // namespace mixer_kernels
