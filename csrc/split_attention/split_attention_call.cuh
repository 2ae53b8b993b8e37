// Launches of the shifted split attention.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/plan.h"
#include "common/sum_terms.cuh"
#include "common/vector_dispatch.cuh"
#include "split_attention/split_attention_kernels.cuh"

namespace mixer_kernels {

// In vectors of kVec elements.
template <int kVec>
SplitPlan plan_split_attention(const SplitAttentionShape& shape) {
  const int64_t vectors = shape.channels / kVec, chunks = divide_up(vectors, kSplitLanes);
  const int64_t lanes = divide_up(vectors, chunks), pixels = shape.height * shape.width;
  // No more lines than an image has runs.
  const int64_t runs = divide_up(pixels, kSplitRun), lines = std::min(kSplitThreads / lanes, runs);
  return {static_cast<int>(shape.height), static_cast<int>(shape.width), static_cast<int>(shape.channels),
          static_cast<int>(lanes),        static_cast<int>(lines),       static_cast<int>(chunks),
          divide_up(runs, lines)};
}

inline int64_t blocks_of(const SplitAttentionShape& shape, const SplitPlan& plan) {
  return shape.batch * plan.parts * plan.chunks;
}

// What vectors have to divide: the channels that move together, where all groups have as many.
inline int64_t channels_of_group(const SplitAttentionShape& shape) {
  return shape.channels % kGroups == 0 ? shape.channels / kGroups : 1;
}

// Whether vectors of 16 bytes lie at aligned addresses in every pixel.
inline bool is_aligned(const SplitAttentionShape& shape, const FeatureView& view) {
  const int64_t size = element_size(shape.type);
  const auto whole = [&](int64_t extent, int64_t stride) { return extent == 1 || stride * size % 16 == 0; };
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && whole(shape.batch, view.image_stride) &&
         whole(shape.height, view.row_stride) && whole(shape.width, view.column_stride);
}

// The sums over the pixels of all branches, or for each branch of its products with dy.
template <bool kProducts>
class SplitSumsCall {
 public:
  explicit SplitSumsCall(const SplitAttentionShape& shape) : shape_(shape) {
    dispatch_vectors(shape_.type, true, channels_of_group(shape_),
                     [&](auto, auto length) { parts_ = plan_split_attention<decltype(length)::kVec>(shape_).parts; });
  }

  // One part needs no further sum.
  int64_t workspace_bytes() const { return parts_ == 1 ? 0 : parts_ * sums() * static_cast<int64_t>(sizeof(float)); }

  template <typename Launch>
  void run(const FeatureView& dy, const FeatureView& x, float* to, void* workspace, const Launch& launch) const {
    float* const terms = parts_ == 1 ? to : static_cast<float*>(workspace);
    dispatch_vectors(shape_.type, true, channels_of_group(shape_), [&](auto element, auto length) {
      constexpr int kVec = decltype(length)::kVec;
      const SplitPlan plan = plan_split_attention<kVec>(shape_);
      const bool aligned = is_aligned(shape_, x) && (!kProducts || is_aligned(shape_, dy));
      launch(&split_sums_kernel<decltype(element), kVec, kProducts>, blocks_of(shape_, plan), kSplitThreads, 0,
             SplitSums{plan, x, dy, aligned, terms, shape_.batch});
    });
    if (parts_ == 1) return;
    SumLaunch sum;
    sum.add({terms, parts_, sums(), sums(), to, ElementType::kFloat});
    launch(&sum_terms_kernel<>, sum.all_blocks, kSumThreads, 0, sum);
  }

 private:
  int64_t sums() const { return shape_.batch * (kProducts ? kBranches : 1) * shape_.channels; }

  const SplitAttentionShape& shape_;
  int64_t parts_ = 0;
};

template <typename Launch>
void run_split_combine(const SplitAttentionShape& shape, const FeatureView& x, const float* weights, void* y,
                       const Launch& launch) {
  const bool aligned = is_aligned(shape, x) && are_aligned({weights, y});
  dispatch_vectors(shape.type, aligned, channels_of_group(shape), [&](auto element, auto length) {
    using scalar_t = decltype(element);
    constexpr int kVec = decltype(length)::kVec;
    const SplitPlan plan = plan_split_attention<kVec>(shape);
    launch(&split_combine_kernel<scalar_t, kVec>, blocks_of(shape, plan), kSplitThreads, 0,
           SplitCombine<scalar_t>{plan, x, weights, static_cast<scalar_t*>(y)});
  });
}

template <typename Launch>
void run_split_backward_features(const SplitAttentionShape& shape, const FeatureView& dy, const float* weights,
                                 const float* da, void* dx, const Launch& launch) {
  const bool aligned = is_aligned(shape, dy) && are_aligned({weights, da, dx});
  dispatch_vectors(shape.type, aligned, channels_of_group(shape), [&](auto element, auto length) {
    using scalar_t = decltype(element);
    constexpr int kVec = decltype(length)::kVec;
    const SplitPlan plan = plan_split_attention<kVec>(shape);
    launch(&split_backward_features_kernel<scalar_t, kVec>, blocks_of(shape, plan), kSplitThreads, 0,
           SplitBackwardFeatures<scalar_t>{plan, dy, weights, da, static_cast<scalar_t*>(dx)});
  });
}

}  // namespace mixer_kernels
