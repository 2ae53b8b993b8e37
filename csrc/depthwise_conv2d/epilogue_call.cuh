// Launches of what follows a convolution.
#pragma once

#include <cstdint>

#include "common/sum_terms.cuh"
#include "common/vector_dispatch.cuh"
#include "depthwise_conv2d/epilogue.cuh"
#include "depthwise_conv2d/map_plan.cuh"

namespace mixer_kernels {

inline MapMatrix matrix_of(const EpilogueArguments& a) {
  const int64_t columns = a.channels_last ? a.channels : a.pixels;
  return {a.batch * a.channels * a.pixels / columns, columns, static_cast<int>(a.channels), a.channels_last};
}

template <typename Launch>
void run_epilogue_forward(const EpilogueArguments& a, const ChannelParameter& scale, const ChannelParameter& shift,
                          const void* residual, void* y, const Launch& launch) {
  dispatch_vectors(a.type, are_aligned({a.z, residual, y}), matrix_of(a).columns, [&](auto element, auto length) {
    using scalar_t = decltype(element);
    constexpr int kVec = decltype(length)::kVec;
    const MapMatrix matrix = matrix_of(a);
    const EpilogueForward<scalar_t> e{
        matrix, static_cast<const scalar_t*>(a.z), static_cast<const scalar_t*>(residual), a.activation, scale,
        shift,  static_cast<scalar_t*>(y)};
    launch(&epilogue_forward_kernel<scalar_t, kVec>, divide_up(matrix.rows * (matrix.columns / kVec), kEpilogueThreads),
           kEpilogueThreads, 0, e);
  });
}

template <typename Launch>
void run_epilogue_backward(const EpilogueArguments& a, const void* dy, const ChannelParameter& c0,
                           const ChannelParameter& c1, const ChannelParameter& c2, void* dz, const Launch& launch) {
  dispatch_vectors(a.type, are_aligned({a.z, dy, dz}), matrix_of(a).columns, [&](auto element, auto length) {
    using scalar_t = decltype(element);
    constexpr int kVec = decltype(length)::kVec;
    const MapMatrix matrix = matrix_of(a);
    const EpilogueBackward<scalar_t> e{
        matrix, static_cast<const scalar_t*>(dy), static_cast<const scalar_t*>(a.z), a.activation, c0, c1,
        c2,     static_cast<scalar_t*>(dz)};
    launch(&epilogue_backward_kernel<scalar_t, kVec>,
           divide_up(matrix.rows * (matrix.columns / kVec), kEpilogueThreads), kEpilogueThreads, 0, e);
  });
}

// The sums of dy and of dy * (act(z) - center).
class EpilogueSumsCall {
 public:
  EpilogueSumsCall(const EpilogueArguments& arguments, void* base) : a_(arguments), workspace_(base) {
    // Long enough to outweigh what a sum takes to finish, and short enough for its digits.
    constexpr int64_t kPixels = 2048;
    const int64_t rows = a_.type == ElementType::kFloat ? 64 : 256;
    splits_ = a_.channels_last ? divide_up(a_.batch * a_.pixels, rows) : divide_up(a_.pixels, kPixels);
    terms_ = a_.channels_last ? splits_ : splits_ * a_.batch;
    dy_terms_ = workspace_.take<float>(terms_ * a_.channels);
    act_terms_ = workspace_.take<float>(terms_ * a_.channels);
  }

  int64_t workspace_bytes() const { return workspace_.bytes(); }

  template <typename Launch>
  void run(const void* dy, const ChannelParameter& center, float* sum_dy, float* sum_dy_act,
           const Launch& launch) const {
    dispatch_vectors(a_.type, true, matrix_of(a_).columns, [&](auto element, auto length) {
      using scalar_t = decltype(element);
      constexpr int kVec = decltype(length)::kVec;
      const EpilogueSums<scalar_t> e{matrix_of(a_),
                                     static_cast<const scalar_t*>(dy),
                                     static_cast<const scalar_t*>(a_.z),
                                     are_aligned({a_.z, dy}),
                                     a_.activation,
                                     center,
                                     splits_,
                                     dy_terms_,
                                     act_terms_};
      if (a_.channels_last) {
        launch(&sum_pixels_kernel<scalar_t, kVec>, divide_up(a_.channels, kSumLanes * kVec) * splits_, kEpilogueThreads,
               0, e);
      } else {
        launch(&sum_planes_kernel<scalar_t, kVec>, divide_up(a_.batch * a_.channels * splits_, kEpilogueThreads / 32),
               kEpilogueThreads, 0, e);
      }
    });
    SumLaunch sums;
    sums.add({dy_terms_, terms_, a_.channels, a_.channels, sum_dy, ElementType::kFloat});
    sums.add({act_terms_, terms_, a_.channels, a_.channels, sum_dy_act, ElementType::kFloat});
    launch(&sum_terms_kernel<>, sums.all_blocks, kSumThreads, 0, sums);
  }

 private:
  const EpilogueArguments& a_;
  Workspace workspace_;
  int64_t splits_ = 0, terms_ = 0;
  float *dy_terms_ = nullptr, *act_terms_ = nullptr;
};

}  // namespace mixer_kernels
