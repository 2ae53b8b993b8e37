// Device code of the shifted split attention: a thread owns a vector of channels and walks a run of pixels.
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

struct SplitSums {
  SplitPlan plan;
  FeatureView x, dy;
  bool is_aligned;  // for vectors; which elements a thread adds up, in which order, must not depend on it
  float* terms;     // [part][image][sum][channel]
  int64_t batch;
};

// Adds up a run of pixels: all branches, or for each branch its products with dy.
template <typename scalar_t, int kVec, bool kProducts, bool kAligned>
__device__ __forceinline__ void sum_run(const SplitSums& s, const SplitPlace& place,
                                        float (&sums)[kProducts ? kBranches : 1][kVec]) {
  using vector_t = Vector<scalar_t, kVec>;
  const Branches<scalar_t, kVec, kAligned> branches(s.plan, s.x, place);
  const Channels<scalar_t> gradients(s.dy, place.image, place.channel);
  vector_t x[kSplitTogether][kBranches], dy[kSplitTogether];
  walk_run(
      s.plan, place,
      [&](int j, Pixel pixel) {
        branches.load(x[j], pixel);
        if constexpr (kProducts) dy[j] = load_vector<kAligned, kVec>(gradients.at(pixel));
      },
      [&](int j, int, Pixel) {
        float values[kBranches][kVec], gradient[kVec];
#pragma unroll
        for (int k = 0; k < kBranches; ++k) to_floats(values[k], x[j][k]);
        if constexpr (kProducts) to_floats(gradient, dy[j]);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if constexpr (kProducts) {
#pragma unroll
            for (int k = 0; k < kBranches; ++k) sums[k][i] += gradient[i] * values[k][i];
          } else {
            sums[0][i] += values[0][i] + values[1][i] + values[2][i];
          }
        }
      });
}

// The sum over the pixels of all branches, or for each branch of its products with dy; a block adds up one part.
template <typename scalar_t, int kVec, bool kProducts>
__global__ void __launch_bounds__(kSplitThreads, kProducts ? 2 : 3)
    split_sums_kernel(const __grid_constant__ SplitSums s) {
  constexpr int kSums = kProducts ? kBranches : 1;
  const SplitPlace place = SplitPlace::of_thread<kVec>(s.plan);
  float sums[kSums][kVec] = {};
  if (place.count > 0) {
    if (kVec == 1 || s.is_aligned) {
      sum_run<scalar_t, kVec, kProducts, true>(s, place, sums);
    } else {
      sum_run<scalar_t, kVec, kProducts, false>(s, place, sums);
    }
  }
  // One element more than a vector has, for the banks.
  __shared__ float partial[kSums][kSplitThreads][kVec + 1];
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) partial[k][threadIdx.x][i] = sums[k][i];
  }
  __syncthreads();

  const int first = place.channel - place.lane * kVec;
  const int left = s.plan.channels - first, most = s.plan.lanes * kVec;
  const int channels = left < most ? left : most;
  float* const terms = s.terms + (place.part * s.batch + place.image) * kSums * s.plan.channels + first;
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kSplitThreads) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      // In double, for there may be as many lines as threads.
      double sum = 0.0;
      for (int line = 0; line < s.plan.lines; ++line) sum += partial[k][line * s.plan.lanes + c / kVec][c % kVec];
      terms[static_cast<int64_t>(k) * s.plan.channels + c] = static_cast<float>(sum);
    }
  }
}

// The weights of the branches in an image, from a channel on.
template <int kVec>
__device__ __forceinline__ void load_weights(float (&to)[kBranches][kVec], const float* weights, const SplitPlan& plan,
                                             const SplitPlace& place) {
#pragma unroll
  for (int k = 0; k < kBranches; ++k) {
    load_floats(to[k], weights + (place.image * kBranches + k) * plan.channels + place.channel);
  }
}

template <typename scalar_t>
struct SplitCombine {
  SplitPlan plan;
  FeatureView x;
  const float* weights;
  scalar_t* y;
};

// y = sum over the branches of weights * branch; a thread computes a run of pixels.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kSplitThreads)
    split_combine_kernel(const __grid_constant__ SplitCombine<scalar_t> c) {
  const SplitPlace place = SplitPlace::of_thread<kVec>(c.plan);
  if (place.count == 0) return;
  float weights[kBranches][kVec];
  load_weights(weights, c.weights, c.plan, place);
  const Branches<scalar_t, kVec, true> branches(c.plan, c.x, place);
  const int64_t pixels = static_cast<int64_t>(c.plan.height) * c.plan.width;
  scalar_t* const y = c.y + (place.image * pixels + place.first) * c.plan.channels + place.channel;
  Vector<scalar_t, kVec> x[kSplitTogether][kBranches];
  walk_run(
      c.plan, place, [&](int j, Pixel pixel) { branches.load(x[j], pixel); },
      [&](int j, int i, Pixel) {
        float sum[kVec] = {}, values[kVec];
#pragma unroll
        for (int k = 0; k < kBranches; ++k) {
          to_floats(values, x[j][k]);
#pragma unroll
          for (int lane = 0; lane < kVec; ++lane) sum[lane] += weights[k][lane] * values[lane];
        }
        store_floats(y + static_cast<int64_t>(i) * c.plan.channels, sum);
      });
}

template <typename scalar_t>
struct SplitBackwardFeatures {
  SplitPlan plan;
  FeatureView dy;
  const float *weights, *da;
  scalar_t* dx;
};

// dx = adjoint shift of weights * dy + da for each branch; a thread computes a run of pixels, and gathers for each what
// those pixels give back that took it: its neighbour against the shift, and at the border that was kept itself, too.
template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kSplitThreads, 2)
    split_backward_features_kernel(const __grid_constant__ SplitBackwardFeatures<scalar_t> b) {
  constexpr int kShifted = kBranches - 1;
  using vector_t = Vector<scalar_t, kVec>;
  const SplitPlace place = SplitPlace::of_thread<kVec>(b.plan);
  if (place.count == 0) return;
  float weights[kBranches][kVec], da[kVec];
  load_weights(weights, b.weights, b.plan, place);
  load_floats(da, b.da + place.image * b.plan.channels + place.channel);
  const Channels<scalar_t> gradients(b.dy, place.image, place.channel);
  Neighbour sources[kShifted], takers[kShifted];
#pragma unroll
  for (int k = 0; k < kShifted; ++k) {
    sources[k] = gradients.source(b.plan, k, place.channel);
    takers[k] = {-sources[k].h, -sources[k].w, -sources[k].step};
  }
  const int64_t pixels = static_cast<int64_t>(b.plan.height) * b.plan.width;
  const int64_t pitch = static_cast<int64_t>(kBranches) * b.plan.channels;
  scalar_t* const dx = b.dx + (place.image * pixels + place.first) * pitch + place.channel;
  vector_t own[kSplitTogether], taken[kSplitTogether][kShifted];
  walk_run(
      b.plan, place,
      [&](int j, Pixel pixel) {
        const scalar_t* const from = gradients.at(pixel);
        own[j] = vector_t::load(from);
#pragma unroll
        for (int k = 0; k < kShifted; ++k) {
          taken[j][k] = vector_t::zero();
          if (takers[k].is_inside(b.plan, pixel)) taken[j][k] = vector_t::load(from + takers[k].step);
        }
      },
      [&](int j, int i, Pixel pixel) {
        float own_values[kVec];
        to_floats(own_values, own[j]);
#pragma unroll
        for (int k = 0; k < kBranches; ++k) {
          const bool is_shifted = k < kShifted;
          const bool is_kept = !is_shifted || !sources[k].is_inside(b.plan, pixel);
          const bool is_taken = is_shifted && takers[k].is_inside(b.plan, pixel);
          float values[kVec] = {};
          if (is_shifted) to_floats(values, taken[j][k]);
          const float times = static_cast<float>(is_kept) + static_cast<float>(is_taken);
#pragma unroll
          for (int lane = 0; lane < kVec; ++lane) {
            if (is_kept) values[lane] += own_values[lane];
            values[lane] = weights[k][lane] * values[lane] + times * da[lane];
            // Whatever the weights and da are.
            if (!is_kept && !is_taken) values[lane] = 0.0f;
          }
          store_floats(dx + i * pitch + static_cast<int64_t>(k) * b.plan.channels, values);
        }
      });
}

}  // namespace mixer_kernels
