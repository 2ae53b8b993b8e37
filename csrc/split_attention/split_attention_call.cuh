// Launches of the shifted split attention.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/plan.h"
#include "common/vector_dispatch.cuh"
#include "split_attention/split_attention_kernels.cuh"
#include "split_attention/split_gate.cuh"

namespace mixer_kernels {

// In vectors of kVec elements.
template <int kVec>
SplitPlan plan_split_attention(const SplitAttentionShape& shape) {
  const int64_t vectors = shape.channels / kVec, chunks = divide_up(vectors, kSplitLanes);
  const int64_t lanes = divide_up(vectors, chunks), pixels = shape.height * shape.width;
  // No more lines than an image has runs.
  const int64_t runs = divide_up(pixels, kSplitRun), lines = std::min(kSplitThreads / lanes, runs);
  return {static_cast<int>(shape.height),
          static_cast<int>(shape.width),
          static_cast<int>(shape.channels),
          static_cast<int>(lanes),
          static_cast<int>(lines),
          static_cast<int>(chunks),
          static_cast<int>(divide_up(runs, lines))};
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

  int parts() const { return parts_; }
  int64_t terms() const { return parts_ * sums(); }

  // The terms of the sums, [part][image][sum][channel].
  template <typename Launch>
  void run(const FeatureView& dy, const FeatureView& x, float* terms, const Launch& launch) const {
    dispatch_vectors(shape_.type, true, channels_of_group(shape_), [&](auto element, auto length) {
      constexpr int kVec = decltype(length)::kVec;
      const SplitPlan plan = plan_split_attention<kVec>(shape_);
      const bool aligned = is_aligned(shape_, x) && (!kProducts || is_aligned(shape_, dy));
      launch(&split_sums_kernel<decltype(element), kVec, kProducts>, blocks_of(shape_, plan), kSplitThreads, 0,
             SplitSums{plan, x, dy, aligned, terms, shape_.batch});
    });
  }

 private:
  int64_t sums() const { return shape_.batch * (kProducts ? kBranches : 1) * shape_.channels; }

  const SplitAttentionShape& shape_;
  int parts_ = 0;
};

// Whether rows of hidden units are whole vectors. Addresses do not count, lest bits depend on them.
inline bool gate_has_vectors(const SplitAttentionShape& shape, int64_t hidden_size) {
  return hidden_size * element_size(shape.type) % 16 == 0;
}

// The sums and, by a perceptron of `hidden_size`, the weights of the branches.
class SplitGateCall {
 public:
  SplitGateCall(const SplitAttentionShape& shape, int64_t hidden_size)
      : shape_(shape), hidden_size_(hidden_size), sums_(shape) {}

  int64_t workspace_bytes() const {
    Workspace counted(nullptr);
    take_buffers(counted);
    return counted.bytes();
  }

  template <typename Launch>
  void run(const FeatureView& x, const void* weight1, const void* weight2, float* total, float* weights,
           void* workspace, const Launch& launch) const {
    Workspace memory(workspace);
    const Buffers buffers = take_buffers(memory);
    sums_.run({}, x, buffers.terms, launch);
    dispatch_vectors(
        shape_.type, gate_has_vectors(shape_, hidden_size_), shape_.channels, [&](auto element, auto length) {
          using scalar_t = decltype(element);
          launch(
              &split_gate_kernel<scalar_t, decltype(length)::kVec>, shape_.batch, kGateThreads, 0,
              SplitGate<scalar_t>{buffers.terms, sums_.parts(), static_cast<int>(shape_.channels),
                                  static_cast<int>(hidden_size_), shape_.batch, static_cast<const scalar_t*>(weight1),
                                  static_cast<const scalar_t*>(weight2), total, buffers.hidden, weights});
        });
  }

 private:
  struct Buffers {
    float *terms, *hidden;
  };
  Buffers take_buffers(Workspace& memory) const {
    return {memory.take<float>(sums_.terms()), memory.take<float>(shape_.batch * hidden_size_)};
  }

  const SplitAttentionShape& shape_;
  int64_t hidden_size_;
  SplitSumsCall<false> sums_;
};

// The gradient of the sums, from the weights' own.
class SplitGateBackwardCall {
 public:
  SplitGateBackwardCall(const SplitAttentionShape& shape, int64_t hidden_size)
      : shape_(shape), hidden_size_(hidden_size), sums_(shape) {}

  int64_t workspace_bytes() const {
    Workspace counted(nullptr);
    take_buffers(counted);
    return counted.bytes();
  }

  template <typename Launch>
  void run(const FeatureView& dy, const FeatureView& x, const SplitGateArguments& a, float* da,
           const SplitGateFactors& factors, void* workspace, const Launch& launch) const {
    Workspace memory(workspace);
    const Buffers buffers = take_buffers(memory);
    sums_.run(dy, x, buffers.terms, launch);
    dispatch_vectors(
        shape_.type, gate_has_vectors(shape_, hidden_size_), shape_.channels, [&](auto element, auto length) {
          using scalar_t = decltype(element);
          launch(&split_gate_backward_kernel<scalar_t, decltype(length)::kVec>, shape_.batch, kGateThreads, 0,
                 SplitGateBackward{buffers.terms, sums_.parts(), static_cast<int>(shape_.channels),
                                   static_cast<int>(hidden_size_), shape_.batch, a, buffers.dlogits, buffers.dinner, da,
                                   factors});
        });
  }

 private:
  struct Buffers {
    float *terms, *dlogits, *dinner;
  };
  Buffers take_buffers(Workspace& memory) const {
    return {memory.take<float>(sums_.terms()), memory.take<float>(shape_.batch * kBranches * shape_.channels),
            memory.take<float>(shape_.batch * hidden_size_)};
  }

  const SplitAttentionShape& shape_;
  int64_t hidden_size_;
  SplitSumsCall<true> sums_;
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
