// Device code of the shifted split attention: a thread owns a vector of channels and walks a run of pixels.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "split_attention/split_walk.cuh"

namespace mixer_kernels {

struct SplitSums {
  SplitPlan plan;
  FeatureView x, dy;
  bool is_aligned;  // for vectors; which elements a thread adds up, in which order, must not depend on it
  float* terms;     // [part][image][sum][channel]
  int64_t batch;
};

// Adds up a run of pixels: all branches, or for each branch its products with dy.
template <typename scalar_t, int kVec, bool kProducts, bool kAligned>
__device__ __forceinline__ void sum_run(const SplitSums& s, const RunPlace& place,
                                        float (&sums)[kProducts ? kBranches : 1][kVec]) {
  using vector_t = Vector<scalar_t, kVec>;
  Branches<scalar_t, kVec, kAligned> branches(s.plan, s.x, place);
  Channels<scalar_t> gradients(s.plan, s.dy, place);
  // One after the other where a vector is read in pieces: they are many registers.
  constexpr int kTogether = !kAligned ? 1 : kProducts ? 2 * kSplitTogether : kSplitTogether;
  vector_t x[kTogether][kBranches], dy[kTogether];
  walk_run<kTogether>(
      s.plan, place,
      [&](int j, Pixel pixel) {
        branches.load_next(x[j], pixel);
        if constexpr (kProducts) {
          dy[j] = load_vector<kAligned, kVec>(gradients.data());
          gradients.leave(s.plan, pixel);
        }
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
__global__ void __launch_bounds__(kSplitThreads, kProducts ? 2 : 4)
    split_sums_kernel(const __grid_constant__ SplitSums s) {
  constexpr int kSums = kProducts ? kBranches : 1;
  const RunPlace place = RunPlace::of_thread<kVec>(s.plan, blockIdx.x);
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

// A block's number counted from the other end: the pass before has read the last images last, and some of their
// features are in the cache still.
__device__ __forceinline__ unsigned last_first() { return gridDim.x - 1 - blockIdx.x; }

// The weights of the branches in an image, from a channel on.
template <int kVec>
__device__ __forceinline__ void load_weights(float (&to)[kBranches][kVec], const float* weights, const SplitPlan& plan,
                                             const RunPlace& place) {
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
__global__ void __launch_bounds__(kSplitThreads, 3)
    split_combine_kernel(const __grid_constant__ SplitCombine<scalar_t> c) {
  const RunPlace place = RunPlace::of_thread<kVec>(c.plan, last_first());
  if (place.count == 0) return;
  float weights[kBranches][kVec];
  load_weights(weights, c.weights, c.plan, place);
  Branches<scalar_t, kVec, true> branches(c.plan, c.x, place);
  const int64_t pixels = static_cast<int64_t>(c.plan.height) * c.plan.width;
  scalar_t* const y = c.y + (place.image * pixels + place.first) * c.plan.channels + place.channel;
  Vector<scalar_t, kVec> x[kSplitTogether][kBranches];
  walk_run<kSplitTogether>(
      c.plan, place, [&](int j, Pixel pixel) { branches.load_next(x[j], pixel); },
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
  const RunPlace place = RunPlace::of_thread<kVec>(b.plan, last_first());
  if (place.count == 0) return;
  float weights[kBranches][kVec], da[kVec];
  load_weights(weights, b.weights, b.plan, place);
  load_floats(da, b.da + place.image * b.plan.channels + place.channel);
  Channels<scalar_t> gradients(b.plan, b.dy, place);
  Neighbour sources[kShifted], takers[kShifted];
#pragma unroll
  for (int k = 0; k < kShifted; ++k) {
    sources[k] = gradients.source(b.plan, k, place.channel);
    takers[k] = sources[k].opposite(b.plan);
  }
  const int64_t pixels = static_cast<int64_t>(b.plan.height) * b.plan.width;
  const int64_t pitch = static_cast<int64_t>(kBranches) * b.plan.channels;
  scalar_t* const dx = b.dx + (place.image * pixels + place.first) * pitch + place.channel;
  vector_t own[kSplitTogether], taken[kSplitTogether][kShifted];
  walk_run<kSplitTogether>(
      b.plan, place,
      [&](int j, Pixel pixel) {
        const scalar_t* const from = gradients.data();
#pragma unroll
        for (int k = 0; k < kShifted; ++k) {
          // Where nobody took it, its own again: a load that may be left out would be waited for here.
          taken[j][k] = vector_t::load(takers[k].is_inside(pixel) ? from + takers[k].step : from);
        }
        // Only now, or the compiler would see that it has been loaded, and choose between values.
        own[j] = vector_t::load(from);
        gradients.leave(b.plan, pixel);
      },
      [&](int j, int i, Pixel pixel) {
        float own_values[kVec];
        to_floats(own_values, own[j]);
#pragma unroll
        for (int k = 0; k < kBranches; ++k) {
          const bool is_shifted = k < kShifted;
          const bool is_kept = !is_shifted || !sources[k].is_inside(pixel);
          const bool is_taken = is_shifted && takers[k].is_inside(pixel);
          float values[kVec] = {};
          if (is_taken) to_floats(values, taken[j][k]);
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
