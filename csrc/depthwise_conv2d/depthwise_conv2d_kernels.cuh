// The depthwise convolution's launches: which kernels run, over which boxes, with which shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/plan.h"
#include "common/sum_terms.cuh"
#include "depthwise_conv2d/banded_convolution.cuh"
#include "depthwise_conv2d/banded_gradient.cuh"
#include "depthwise_conv2d/convolution_plan.h"
#include "depthwise_conv2d/direct_convolution.cuh"
#include "depthwise_conv2d/epilogue.cuh"
#include "depthwise_conv2d/sliding_convolution.cuh"
#include "depthwise_conv2d/tap_gradient.cuh"

namespace mixer_kernels {

// Calls f with a value of the C++ type of the maps.
template <typename F>
void dispatch_map_type(ElementType type, F&& f) {
  switch (type) {
    case ElementType::kHalf:
      return f(__half{});
    case ElementType::kBFloat16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

// A map as the kernels walk over it.
inline Map plan_map(const MapView& view, ElementType type, int64_t batch, int64_t channels, Extent extent) {
  const bool along_channels = is_along_channels(view, channels);
  return {view, static_cast<int>(extent.h), static_cast<int>(extent.w), along_channels,
          has_vectors(view, element_size(type), batch, channels, extent, along_channels)};
}

inline BoxGrid plan_grid(int64_t batch, int64_t channels, Extent map, int64_t box_channels, Extent box) {
  return {batch,
          static_cast<int>(channels),
          static_cast<int>(map.h),
          static_cast<int>(map.w),
          static_cast<int>(box_channels),
          static_cast<int>(box.h),
          static_cast<int>(box.w),
          static_cast<int>(divide_up(channels, box_channels)),
          static_cast<int>(divide_up(map.h, box.h)),
          static_cast<int>(divide_up(map.w, box.w))};
}

// Vectors must not cross from one box into the next.
inline bool fits_vectors(const BoxGrid& grid, bool along_channels, int64_t vec) {
  return along_channels ? grid.channel_boxes == 1 || grid.box_channels % vec == 0
                        : grid.column_boxes == 1 || grid.box_columns % vec == 0;
}

// Which kernels run: through the caches, on the floating-point units, on the tensor cores.
enum class Path { kDirect, kSliding, kBanded };

// Narrow kernels leave the bands of the tensor cores' path almost empty.
inline bool is_wide(Extent kernel) {
  constexpr int64_t kNarrow = 5;
  return kernel.w >= kNarrow && kernel.h * kernel.w >= kNarrow * kNarrow;
}

// How runs of 8 outputs of a box make 16 lines of a product, and how many steps of 16 inputs they reach over.
struct BandPlan {
  int column_blocks, row_steps, depth_steps;
  int64_t rows;  // of outputs

  BandPlan(Extent box, Extent kernel)
      : column_blocks(box.w <= 8    ? 1
                      : box.w <= 16 ? 2
                                    : 4),
        row_steps(to_int(divide_up(box.h * column_blocks, kBandLines))),
        depth_steps(to_int(divide_up(kernel.w + kBandColumns - 1, kBandDepth))),
        rows(static_cast<int64_t>(kBandLines) / column_blocks * row_steps) {}

  int input_pitch() const { return kBandColumns * (column_blocks - 1) + kBandDepth * depth_steps; }
  int output_pitch() const { return kBandColumns * column_blocks; }
};

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
    dispatch_map_type(a_.type, [&](auto element) {
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
        launch(&banded_convolution_kernel<scalar_t>, c_.grid.boxes(), kBandedThreads, shared, c_);
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

  // Cuts the outputs, or says that one channel's box does not fit.
  bool plan_boxes(Path path, int64_t useful_channels, Extent box) {
    if (bytes_of_channel() > kMostShared) return false;
    path_ = path;
    const int64_t vec = 16 / element_size(a_.type);
    c_.grid = plan_grid(a_.batch, a_.channels, a_.out,
                        channels_of_box(a_.channels, useful_channels, bytes_of_channel(), vec), box);
    return true;
  }

  bool plan_banded() {
    const Extent box{even_part(a_.out.h, 32), even_part(a_.out.w, 32)};
    const BandPlan plan(box, a_.geometry.kernel);
    c_.column_blocks = plan.column_blocks, c_.row_steps = plan.row_steps, c_.depth_steps = plan.depth_steps;
    c_.pitch = plan.input_pitch(), c_.out_pitch = plan.output_pitch();
    c_.weight_pitch = kBandBorder + kBandDepth * c_.depth_steps;
    c_.slot = to_int(std::max((plan.rows + a_.geometry.kernel.h - 1) * c_.pitch * 2, plan.rows * c_.out_pitch * 4));
    c_.weight_slot = to_int(a_.geometry.kernel.h * c_.weight_pitch * 2);
    // Where neighbours are channels, 16 of them are a sector of memory. Else few are enough for four warps.
    return plan_boxes(Path::kBanded, c_.x.along_channels ? 16 : 8, box);
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

// The gradients of weight and bias.
class TapGradientCall {
 public:
  TapGradientCall(const WeightGradientArguments& arguments, void* base) : a_(arguments), workspace_(base) {
    const Geometry& g = a_.geometry;
    const Extent dilation{g.kernel.h > 1 ? g.dilation.h : 1, g.kernel.w > 1 ? g.dilation.w : 1};
    g_.x = plan_map(a_.x, a_.type, a_.batch, a_.channels, a_.in);
    g_.dz = plan_map(a_.dz, a_.type, a_.batch, a_.channels, a_.out);
    g_.kernel_h = to_int(g.kernel.h), g_.kernel_w = to_int(g.kernel.w);
    g_.stride_h = to_int(g.stride.h), g_.stride_w = to_int(g.stride.w);
    g_.dilation_h = to_int(dilation.h), g_.dilation_w = to_int(dilation.w);
    g_.offset_h = to_int(g.padding.h), g_.offset_w = to_int(g.padding.w);
    const bool is_plain = std::max({g.stride.h, g.stride.w, dilation.h, dilation.w}) == 1;
    const bool is_banded = element_size(a_.type) == 2 && is_wide(g.kernel);
    if (!is_plain || !((is_banded && plan_banded()) || plan_sliding())) plan_direct();
    terms_ = static_cast<int64_t>(g_.splits) * g_.parts;
    taps_ = a_.channels * g.kernel.h * g.kernel.w;
    g_.dweight = workspace_.take<float>(terms_ * taps_);
    g_.dbias = workspace_.take<float>(terms_ * a_.channels);
  }

  int64_t workspace_bytes() const { return workspace_.bytes(); }

  template <typename Launch>
  void run(const Launch& launch) const {
    dispatch_map_type(a_.type, [&](auto element) {
      using scalar_t = decltype(element);
      const int64_t blocks = static_cast<int64_t>(g_.grid.channel_boxes) * g_.tap_blocks * g_.splits;
      const int64_t elements = static_cast<int64_t>(g_.grid.box_channels) * (g_.x_slot + g_.dz_slot);
      if (path_ == Path::kDirect) {
        const int64_t tasks = channel_tasks() * (static_cast<int64_t>(g_.kernel_h) * g_.kernel_w + 1) * g_.splits;
        launch(&direct_gradient_kernel<scalar_t>, divide_up(tasks, kTapThreads / 32), kTapThreads, 0, g_);
      } else if (path_ == Path::kSliding) {
        launch(&sliding_gradient_kernel<scalar_t>, blocks, kTapThreads, elements * 4, g_);
      } else if constexpr (sizeof(scalar_t) == 2) {
        constexpr int64_t kLeast = kBandedGradientWarps * kProducts * 4;
        launch(&banded_gradient_kernel<scalar_t>, blocks, kBandedGradientThreads, std::max(elements * 2, kLeast), g_);
      }
    });
    SumLaunch sums;
    sums.add({g_.dweight, terms_, taps_, taps_, a_.dweight, a_.type});
    sums.add({g_.dbias, terms_, a_.channels, a_.channels, a_.dbias, a_.type});
    launch(&sum_terms_kernel<>, sums.all_blocks, kSumThreads, 0, sums);
  }

 private:
  // Two waves of blocks, if there are so many shares.
  int splits_of(int64_t blocks, int64_t shares) const {
    return static_cast<int>(std::clamp<int64_t>(4 * a_.multiprocessors / blocks, 1, shares));
  }

  // Cuts dz, or says that one channel's box does not fit. In bytes of an element in shared memory.
  bool plan_boxes(Path path, int64_t useful_channels, Extent box, int64_t bytes) {
    const int64_t bytes_of_channel = (static_cast<int64_t>(g_.x_slot) + g_.dz_slot) * bytes;
    if (bytes_of_channel > kMostShared) return false;
    path_ = path;
    const int64_t vec = 16 / element_size(a_.type);
    g_.grid = plan_grid(a_.batch, a_.channels, a_.out,
                        std::min({a_.channels, useful_channels, kMostShared / bytes_of_channel}), box);
    g_.x.has_vectors &= !g_.x.along_channels || fits_vectors(g_.grid, true, vec);
    g_.dz.has_vectors &= !g_.dz.along_channels || fits_vectors(g_.grid, true, vec);
    g_.splits = splits_of(static_cast<int64_t>(g_.grid.channel_boxes) * g_.tap_blocks, g_.grid.boxes_of_channels());
    return true;
  }

  bool plan_banded() {
    const Extent kernel = a_.geometry.kernel, box{even_part(a_.out.h, 32), even_part(a_.out.w, 32)};
    const BandPlan plan(box, kernel);
    g_.column_blocks = plan.column_blocks, g_.row_steps = plan.row_steps;
    g_.parts = plan.depth_steps;
    const int64_t row_units = divide_up(kernel.h, kGradientRows);
    g_.rows_of_unit = to_int(divide_up(kernel.h, row_units));
    const int64_t units = row_units * g_.parts;
    g_.tap_blocks = to_int(divide_up(units, kBandedGradientWarps));
    g_.units_of_block = to_int(divide_up(units, g_.tap_blocks));
    g_.x_pitch = plan.input_pitch(), g_.dz_pitch = plan.output_pitch();
    g_.x_slot = to_int((plan.rows + row_units * g_.rows_of_unit - 1) * g_.x_pitch);
    // Rows of dz are read in pairs.
    g_.dz_slot = to_int((plan.rows + 1) * g_.dz_pitch);
    return plan_boxes(Path::kBanded, kBandedGradientWarps / g_.units_of_block, box, 2);
  }

  bool plan_sliding() {
    const Extent kernel = a_.geometry.kernel, box{even_part(a_.out.h, 32), even_part(a_.out.w, 32)};
    const int64_t all_units = static_cast<int64_t>(g_.tap_rows()) * g_.tap_columns();
    g_.tap_blocks = to_int(divide_up(all_units, kTapThreads));
    // Channels first, then parts of their rows, until all threads have something to do.
    const int64_t fit = std::max<int64_t>(kTapThreads / all_units, 1);
    const int64_t vec = 16 / element_size(a_.type), useful = std::min(fit, vec);
    g_.dz_pitch = to_int(round_up(box.w, 4));
    g_.x_pitch = to_int(g_.dz_pitch + round_up(kernel.w, 4));
    g_.parts = to_int(std::min(fit / std::min(useful, a_.channels), box.h));
    g_.part_rows = to_int(divide_up(box.h, g_.parts));
    g_.parts = to_int(divide_up(box.h, g_.part_rows));
    const int64_t rows = static_cast<int64_t>(g_.parts) * g_.part_rows;
    g_.x_slot = to_int((rows + round_up(kernel.h, kTapRows) - 1) * g_.x_pitch);
    g_.dz_slot = to_int(rows * g_.dz_pitch);
    return plan_boxes(Path::kSliding, useful, box, 4);
  }

  void plan_direct() {
    path_ = Path::kDirect;
    g_.grid = plan_grid(a_.batch, a_.channels, a_.out, 1, a_.out);
    g_.parts = 1;
    const int64_t warps = channel_tasks() * (static_cast<int64_t>(g_.kernel_h) * g_.kernel_w + 1);
    g_.splits = splits_of(divide_up(warps, kTapThreads / 32), a_.batch * a_.out.h);
  }

  int64_t channel_tasks() const { return g_.dz.along_channels ? divide_up(a_.channels, 32) : a_.channels; }

  const WeightGradientArguments& a_;
  Workspace workspace_;
  TapGradient g_{};
  Path path_{};
  int64_t terms_ = 0, taps_ = 0;
};

inline MapMatrix matrix_of(const EpilogueArguments& a) {
  const int64_t columns = a.channels_last ? a.channels : a.pixels;
  return {a.batch * a.channels * a.pixels / columns, columns, static_cast<int>(a.channels), a.channels_last};
}

// Calls f with the element type and the length of vectors that rows and the given pointers allow.
template <int kVec_>
struct VectorLength {
  static constexpr int kVec = kVec_;
};
template <typename F>
void dispatch_vectors(const EpilogueArguments& a, std::initializer_list<const void*> pointers, F&& f) {
  dispatch_map_type(a.type, [&](auto element) {
    constexpr int kVec = 16 / sizeof(element);
    bool has_vectors = matrix_of(a).columns % kVec == 0;
    for (const void* pointer : pointers) has_vectors = has_vectors && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    if (has_vectors) {
      f(element, VectorLength<kVec>{});
    } else {
      f(element, VectorLength<1>{});
    }
  });
}

template <typename Launch>
void run_epilogue_forward(const EpilogueArguments& a, const ChannelParameter& scale, const ChannelParameter& shift,
                          const void* residual, void* y, const Launch& launch) {
  dispatch_vectors(a, {a.z, residual, y}, [&](auto element, auto length) {
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
  dispatch_vectors(a, {a.z, dy, dz}, [&](auto element, auto length) {
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
    constexpr int64_t kPixels = 2048, kRows = 256;
    splits_ = a_.channels_last ? divide_up(a_.batch * a_.pixels, kRows) : divide_up(a_.pixels, kPixels);
    terms_ = a_.channels_last ? splits_ : splits_ * a_.batch;
    dy_terms_ = workspace_.take<float>(terms_ * a_.channels);
    act_terms_ = workspace_.take<float>(terms_ * a_.channels);
  }

  int64_t workspace_bytes() const { return workspace_.bytes(); }

  template <typename Launch>
  void run(const void* dy, const ChannelParameter& center, float* sum_dy, float* sum_dy_act,
           const Launch& launch) const {
    dispatch_vectors(a_, {a_.z, dy}, [&](auto element, auto length) {
      using scalar_t = decltype(element);
      constexpr int kVec = decltype(length)::kVec;
      const EpilogueSums<scalar_t> e{matrix_of(a_),
                                     static_cast<const scalar_t*>(dy),
                                     static_cast<const scalar_t*>(a_.z),
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
