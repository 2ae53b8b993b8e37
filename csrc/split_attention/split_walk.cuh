// How the CUDA kernels of the shifted split attention go over the pixels, and what they read there.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "split_attention/split_attention.h"

namespace mixer_kernels {

constexpr int kSplitThreads = 256;
constexpr int kSplitTogether = 2;  // pixels that a thread has in flight

// How the channels and pixels of an image are dealt out. A block takes `lanes` vectors of channels and `lines` runs of
// pixels; all blocks stand in a row: the chunks of channels of a part of the pixels, the parts of an image, the images.
// A vector never lies in two groups.
struct SplitPlan {
  int height, width, channels;
  int lanes, lines;
  int chunks;
  int64_t parts;
};

struct Pixel {
  int h, w;
};

// What a thread of a block works on.
struct SplitPlace {
  int64_t image, part;
  int64_t first;  // pixel
  int count;      // pixels, 0 for a thread that is left over
  int lane, line, channel;

  template <int kVec>
  static __device__ __forceinline__ SplitPlace of_thread(const SplitPlan& plan) {
    SplitPlace place;
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t block = blockIdx.x, part = block / plan.chunks;
    place.image = part / plan.parts;
    place.part = part - place.image * plan.parts;
    place.line = thread / plan.lanes;
    place.lane = thread - place.line * plan.lanes;
    const int64_t channel = ((block - part * plan.chunks) * plan.lanes + place.lane) * kVec;
    place.channel = static_cast<int>(channel);
    place.first = (place.part * plan.lines + place.line) * kSplitRun;
    const int64_t left = static_cast<int64_t>(plan.height) * plan.width - place.first;
    const bool is_inside = place.line < plan.lines && channel < plan.channels && left > 0;
    place.count = !is_inside ? 0 : left < kSplitRun ? static_cast<int>(left) : kSplitRun;
    return place;
  }
};

// Calls load(j, pixel) for the next few pixels of a run, then use(j, i, pixel) for each, where it is the run's i-th.
template <typename Load, typename Use>
__device__ __forceinline__ void walk_run(const SplitPlan& plan, const SplitPlace& place, Load&& load, Use&& use) {
  const int64_t row = place.first / plan.width;
  Pixel next{static_cast<int>(row), static_cast<int>(place.first - row * plan.width)};
  for (int begin = 0; begin < place.count; begin += kSplitTogether) {
    Pixel pixels[kSplitTogether];
#pragma unroll
    for (int j = 0; j < kSplitTogether; ++j) {
      pixels[j] = next;
      if (++next.w == plan.width) next = {next.h + 1, 0};
      if (begin + j < place.count) load(j, pixels[j]);
    }
#pragma unroll
    for (int j = 0; j < kSplitTogether; ++j) {
      if (begin + j < place.count) use(j, begin + j, pixels[j]);
    }
  }
}

// From a pixel to a neighbour, or to itself.
struct Neighbour {
  int h, w;
  int64_t step;  // in memory, in elements

  __device__ __forceinline__ bool is_inside(const SplitPlan& plan, Pixel pixel) const {
    return static_cast<unsigned>(pixel.h + h) < static_cast<unsigned>(plan.height) &&
           static_cast<unsigned>(pixel.w + w) < static_cast<unsigned>(plan.width);
  }
};

// An image's channels from one on, with where each branch takes them from.
template <typename scalar_t>
struct Channels {
  const scalar_t* data;
  int64_t row_stride, column_stride;

  __device__ __forceinline__ Channels(const FeatureView& view, int64_t image, int channel)
      : data(static_cast<const scalar_t*>(view.data) + image * view.image_stride + channel),
        row_stride(view.row_stride),
        column_stride(view.column_stride) {}

  __device__ __forceinline__ const scalar_t* at(Pixel pixel) const {
    return data + pixel.h * row_stride + pixel.w * column_stride;
  }

  __device__ __forceinline__ Neighbour source(const SplitPlan& plan, int branch, int channel) const {
    int group = 0;
    while (group + 1 < kGroups && channel >= group_start(group + 1, plan.channels)) ++group;
    const Offset offset = source_of(branch, group);
    return {static_cast<int>(offset.h), static_cast<int>(offset.w), offset.h * row_stride + offset.w * column_stride};
  }
};

// kVec neighbouring elements, one by one if they are not aligned.
template <bool kAligned, int kVec, typename scalar_t>
__device__ __forceinline__ Vector<scalar_t, kVec> load_vector(const scalar_t* from) {
  using vector_t = Vector<scalar_t, kVec>;
  if constexpr (kAligned) {
    return vector_t::load(from);
  } else {
    vector_t vector = vector_t::zero();
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const typename vector_t::access_t element = Vector<scalar_t, 1>::load(from + i).bits;
      vector.bits |= element << (8 * sizeof(scalar_t) * i);
    }
    return vector;
  }
}

// The branches of x at a pixel, two of them shifted.
template <typename scalar_t, int kVec, bool kAligned>
class Branches {
 public:
  using vector_t = Vector<scalar_t, kVec>;

  __device__ __forceinline__ Branches(const SplitPlan& plan, const FeatureView& x, const SplitPlace& place)
      : plan_(plan), channels_(x, place.image, place.channel) {
#pragma unroll
    for (int k = 0; k < kBranches - 1; ++k) sources_[k] = channels_.source(plan, k, place.channel);
  }

  __device__ __forceinline__ void load(vector_t (&to)[kBranches], Pixel pixel) const {
    const scalar_t* const own = channels_.at(pixel);
#pragma unroll
    for (int k = 0; k < kBranches; ++k) {
      const scalar_t* from = own + static_cast<int64_t>(k) * plan_.channels;
      // Beyond the border it is the border's own.
      if (k < kBranches - 1 && sources_[k].is_inside(plan_, pixel)) from += sources_[k].step;
      to[k] = load_vector<kAligned, kVec>(from);
    }
  }

 private:
  const SplitPlan& plan_;
  Channels<scalar_t> channels_;
  Neighbour sources_[kBranches - 1];
};

}  // namespace mixer_kernels
