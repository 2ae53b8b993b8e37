// One convolution: which kernel computes it, with which boxes and shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "depthwise_conv2d/banded_convolution.cuh"
#include "depthwise_conv2d/direct_convolution.cuh"
#include "depthwise_conv2d/map_plan.cuh"
#include "depthwise_conv2d/sliding_convolution.cuh"

namespace mixer_kernels {

// A convolution, or the gradient of one with respect to its input.
class ConvolutionCall {
 public:
  ConvolutionCall(const ConvolutionArguments& arguments, void* base) : a_(arguments), workspace_(base) {
    const Geometry& g = a_.geometry;
    const Extent dilation{g.kernel.h > 1 ? g.dilation.h : 1, g.kernel.w > 1 ? g.dilation.w : 1};
    const Extent one{1, 1}, stride = a_.is_gradient ? one : g.stride, spread = a_.is_gradient ? g.stride : one;
    Extent offset = g.padding;
    if (a_.is_gradient) {
      offset = {(g.kernel.h - 1) * dilation.h - g.padding.h, (g.kernel.w - 1) * dilation.w - g.padding.w};
    }
    c_.x = plan_map(a_.x, a_.type, a_.batch, a_.channels, a_.in);
    c_.kernel_h = to_int(g.kernel.h), c_.kernel_w = to_int(g.kernel.w);
    c_.stride_h = to_int(stride.h), c_.stride_w = to_int(stride.w);
    c_.dilation_h = to_int(dilation.h), c_.dilation_w = to_int(dilation.w);
    c_.offset_h = to_int(offset.h), c_.offset_w = to_int(offset.w);
    c_.spread_h = to_int(spread.h), c_.spread_w = to_int(spread.w);
    c_.flipped = a_.is_gradient;
    c_.weight = a_.weight, c_.bias = a_.bias;
    c_.scale = a_.scale, c_.shift = a_.shift;
    c_.activation = a_.activation;

    const bool is_plain = std::max({g.stride.h, g.stride.w, dilation.h, dilation.w}) == 1;
    const bool is_banded = element_size(a_.type) == 2 && is_wide(g.kernel);
    if (!is_plain || !((is_banded && plan_banded()) || plan_sliding())) plan_direct();
    plan_outputs();
    if (a_.mean != nullptr) {
      const int64_t count = c_.grid.boxes_of_channels() * a_.channels;
      c_.moments.means = workspace_.template take<float>(count);
      c_.moments.deviations = workspace_.template take<float>(count);
    }
  }

  int64_t workspace_bytes() const { return workspace_.bytes(); }

  template <typename Launch>
  void run(const Launch& launch) const {
    dispatch_up_to_float(a_.type, [&](auto element) {
      using scalar_t = decltype(element);
      const int64_t shared = c_.grid.box_channels * bytes_of_channel();
      if (path_ == Path::kDirect) {
        launch(&direct_convolution_kernel<scalar_t>, c_.grid.boxes(), kDirectThreads, shared, c_);
      } else if (path_ == Path::kSliding) {
        auto* kernel = &sliding_convolution_kernel<scalar_t, 0>;
        if constexpr (sizeof(scalar_t) == 4) {
          if (c_.kernel_w == 7) kernel = &sliding_convolution_kernel<scalar_t, 7>;
          if (c_.kernel_w == 9) kernel = &sliding_convolution_kernel<scalar_t, 9>;
        }
        launch(kernel, c_.grid.boxes(), kSlidingThreads, shared, c_);
      } else if constexpr (sizeof(scalar_t) == 2) {
        const int64_t blocks = c_.grid.boxes() / a_.batch * divide_up(a_.batch, c_.images);
        const int threads = c_.grid.box_channels > kFewChannels ? kMostBandedThreads : 32 * kFewChannels;
        launch(&banded_convolution_kernel<scalar_t>, blocks, threads, shared, c_);
      }
    });
    if (a_.mean != nullptr) {
      launch(&combine_moments_kernel<>, divide_up(a_.channels, kMomentChannels), kMomentThreads, 0, c_.grid, c_.moments,
             a_.mean, a_.var);
    }
  }

 private:
  int64_t bytes_of_channel() const {
    return static_cast<int64_t>(c_.slot) + c_.weight_slot + static_cast<int64_t>(sizeof(ChannelEpilogue));
  }

  static constexpr int kFewChannels = 4;  // on the tensor cores: of a block of four warps

  // Cuts the outputs, or says that one channel's box does not fit.
  bool plan_boxes(Path path, int64_t useful_channels, Extent box, int64_t room = kGoodShared) {
    if (bytes_of_channel() > kMostShared) return false;
    path_ = path;
    const int64_t vec = 16 / element_size(a_.type);
    c_.grid = plan_grid(a_.batch, a_.channels, a_.out,
                        channels_of_box(a_.channels, useful_channels, bytes_of_channel(), vec, room), box);
    return true;
  }

  // Plans the tensor cores' path with boxes of at most `rows` rows, which it returns.
  Extent plan_bands(int64_t rows) {
    const Extent box{even_part(a_.out.h, rows), even_part(a_.out.w, 32)}, kernel = a_.geometry.kernel;
    const BandPlan plan(box, kernel);
    c_.column_shift = plan.column_shift, c_.row_steps = plan.row_steps, c_.depth_steps = plan.depth_steps;
    c_.lead = plan.lead(c_.offset_w, kernel), c_.gap = plan.gap();
    c_.pitch = plan.input_pitch(), c_.out_pitch = plan.output_pitch();
    c_.weight_pitch = kBandDepth * c_.depth_steps;
    const int64_t input_rows = plan.rows + kernel.h - 1;
    c_.slot = to_int(std::max((input_rows * c_.pitch + input_rows / 8 * c_.gap) * 2, plan.rows * c_.out_pitch * 4));
    c_.weight_slot = to_int((kBandBorder + kernel.h * c_.weight_pitch) * 2);
    return box;
  }

  bool plan_banded() {
    Extent box = plan_bands(32);
    // Where neighbours are channels, 16 of them are a sector of memory, and a vector is the least. Else a warp's each.
    int64_t useful = kFewChannels;
    if (c_.x.along_channels || is_along_channels(a_.y, a_.channels)) {
      if (8 * bytes_of_channel() > kMostShared && a_.channels % 8 == 0) {
        box = plan_bands(16);  // rather than no vectors
        if (8 * bytes_of_channel() > kMostShared) box = plan_bands(32);
      }
      useful = 16 * bytes_of_channel() <= kGoodShared ? 16 : 8 * bytes_of_channel() <= kMostShared ? 8 : kFewChannels;
    }
    if (!plan_boxes(Path::kBanded, useful, box, kMostShared)) return false;
    // Several images of a block share its weights, as long as there are blocks enough to spread evenly.
    constexpr int64_t kBlocksEach = 24;
    c_.images = to_int(std::min(a_.batch, divide_up(c_.grid.boxes(), kBlocksEach * a_.multiprocessors)));
    return true;
  }

  bool plan_sliding() {
    const Extent box{even_part(a_.out.h, 32), even_part(a_.out.w, 32)}, kernel = a_.geometry.kernel;
    const int64_t rows = round_up(box.h, kSlidingRows), columns = round_up(box.w, kSlidingColumns);
    c_.pitch = to_int(columns + round_up(kernel.w, 4));
    c_.out_pitch = to_int(columns);
    c_.weight_pitch = to_int(round_up(kernel.w, 4));
    c_.slot = to_int((rows + kernel.h - 1) * c_.pitch * 4);
    c_.weight_slot = to_int(kernel.h * c_.weight_pitch * 4);
    const int64_t threads = rows / kSlidingRows * (columns / kSlidingColumns);  // of a channel
    return plan_boxes(Path::kSliding, kSlidingThreads / threads, box);
  }

  void plan_direct() {
    // 1024 outputs of neighbouring channels or pixels.
    const int64_t width = is_along_channels(a_.y, a_.channels) ? 4 : 32;
    const Extent box{even_part(a_.out.h, width), even_part(a_.out.w, width)};
    c_.out_pitch = to_int(box.w);
    c_.slot = to_int(round_up(box.h * box.w, 4) * 4);
    c_.weight_slot = 0;
    plan_boxes(Path::kDirect, std::max<int64_t>(1024 / (box.h * box.w), 1), box);
  }

  void plan_outputs() {
    const int64_t vec = 16 / element_size(a_.type);
    c_.y = plan_map(a_.y, a_.type, a_.batch, a_.channels, a_.out);
    c_.residual = plan_map(a_.residual, a_.type, a_.batch, a_.channels, a_.out);
    const bool residual_has_vectors =
        a_.residual.data == nullptr || (c_.residual.has_vectors && c_.residual.along_channels == c_.y.along_channels);
    c_.y.has_vectors &= residual_has_vectors && fits_vectors(c_.grid, c_.y.along_channels, vec);
    // Vectors along the columns begin where they like in x, for they are cut off at the box.
    c_.x.has_vectors &= !c_.x.along_channels || fits_vectors(c_.grid, true, vec);
  }

  const ConvolutionArguments& a_;
  Workspace workspace_;
  Convolution c_{};
  Path path_{};
};

}  // namespace mixer_kernels
