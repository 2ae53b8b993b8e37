// How the CUDA kernels of the shifted split attention go over the pixels, and what they read there.
#pragma once

#include <cstdint>

#include "common/opaque.cuh"
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
  int chunks, parts;
};

struct Pixel {
  int h, w;
};

// What a thread of a block works on.
struct RunPlace {
  int64_t image;
  int part;
  int first, count;  // pixels, none for a thread that is left over
  int lane, line, channel;

  template <int kVec>
  static __device__ __forceinline__ RunPlace of_thread(const SplitPlan& plan, unsigned block) {
    RunPlace place;
    const int thread = static_cast<int>(threadIdx.x);
    const unsigned chunks = plan.chunks, parts = plan.parts, part = block / chunks;
    place.image = part / parts;
    place.part = static_cast<int>(part % parts);
    place.line = thread / plan.lanes;
    place.lane = thread - place.line * plan.lanes;
    const int64_t channel = (static_cast<int64_t>(block % chunks) * plan.lanes + place.lane) * kVec;
    place.channel = static_cast<int>(channel);
    const int run = place.part * plan.lines + place.line;
    const int left = plan.height * plan.width - run * kSplitRun;
    const bool is_inside = place.line < plan.lines && channel < plan.channels && left > 0;
    place.first = run * kSplitRun;
    place.count = !is_inside ? 0 : left < kSplitRun ? left : kSplitRun;
    return place;
  }
};

// Calls load(j, pixel) for the next kTogether pixels of a run, then use(j, i, pixel) for each, the run's i-th.
template <int kTogether, typename Load, typename Use>
__device__ __forceinline__ void walk_run(const SplitPlan& plan, const RunPlace& place, Load&& load, Use&& use) {
  Pixel next{place.first / plan.width, place.first % plan.width};
#pragma unroll 1
  for (int begin = 0; begin < place.count; begin += kTogether) {
    Pixel pixels[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      pixels[j] = next;
      if (++next.w == plan.width) next = {next.h + 1, 0};
      if (begin + j < place.count) load(j, pixels[j]);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (begin + j < place.count) use(j, begin + j, pixels[j]);
    }
  }
}

// From a pixel to a neighbour on one axis.
struct Neighbour {
  bool along_h;
  int border;    // the row or column whose pixels have no such neighbour
  int64_t step;  // in memory, in elements

  __device__ __forceinline__ bool is_inside(Pixel pixel) const { return (along_h ? pixel.h : pixel.w) != border; }
  __device__ __forceinline__ Neighbour opposite(const SplitPlan& plan) const {
    return {along_h, border > 0 ? 0 : (along_h ? plan.height : plan.width) - 1, -step};
  }
};

// An image's channels from one on, at one pixel of a run after the other.
template <typename scalar_t>
class Channels {
 public:
  __device__ __forceinline__ Channels(const SplitPlan& plan, const FeatureView& view, const RunPlace& place)
      : row_stride_(view.row_stride),
        column_stride_(view.column_stride),
        new_row_(view.row_stride - (plan.width - 1) * view.column_stride) {
    const int row = place.first / plan.width, column = place.first % plan.width;
    // Computed once: the compiler would rather do it again for every pixel.
    make_opaque(new_row_);
    data_ = static_cast<const scalar_t*>(view.data) + place.image * view.image_stride + row * row_stride_ +
            column * column_stride_ + place.channel;
  }

  __device__ __forceinline__ const scalar_t* data() const { return data_; }
  __device__ __forceinline__ void leave(const SplitPlan& plan, Pixel pixel) {
    data_ += pixel.w == plan.width - 1 ? new_row_ : column_stride_;
  }

  // Where a branch takes these channels from.
  __device__ __forceinline__ Neighbour source(const SplitPlan& plan, int branch, int channel) const {
    int group = 0;
#pragma unroll
    for (int i = 1; i < kGroups; ++i) group += channel >= group_start(i, plan.channels);
    const Offset offset = source_of(branch, group);
    const bool along_h = offset.h != 0, is_before = offset.h + offset.w < 0;
    const int64_t stride = along_h ? row_stride_ : column_stride_;
    Neighbour source{along_h, is_before ? 0 : (along_h ? plan.height : plan.width) - 1, is_before ? -stride : stride};
    make_opaque(source.border);
    make_opaque(source.step);
    return source;
  }

 private:
  const scalar_t* data_;
  int64_t row_stride_, column_stride_, new_row_;
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

// The branches of x, two of them shifted, at one pixel of a run after the other.
template <typename scalar_t, int kVec, bool kAligned>
class Branches {
 public:
  using vector_t = Vector<scalar_t, kVec>;

  __device__ __forceinline__ Branches(const SplitPlan& plan, const FeatureView& x, const RunPlace& place)
      : plan_(plan), channels_(plan, x, place) {
#pragma unroll
    for (int k = 0; k < kBranches - 1; ++k) sources_[k] = channels_.source(plan, k, place.channel);
  }

  __device__ __forceinline__ void load_next(vector_t (&to)[kBranches], Pixel pixel) {
#pragma unroll
    for (int k = 0; k < kBranches; ++k) {
      const scalar_t* from = channels_.data() + static_cast<int64_t>(k) * plan_.channels;
      // Beyond the border it is the border's own.
      if (k < kBranches - 1 && sources_[k].is_inside(pixel)) from += sources_[k].step;
      to[k] = load_vector<kAligned, kVec>(from);
    }
    channels_.leave(plan_, pixel);
  }

 private:
  const SplitPlan& plan_;
  Channels<scalar_t> channels_;
  Neighbour sources_[kBranches - 1];
};

}  // namespace mixer_kernels
