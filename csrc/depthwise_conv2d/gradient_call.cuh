// The gradients of one weight and bias: which kernel computes their terms, with which boxes and shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/sum_terms.cuh"
#include "depthwise_conv2d/banded_gradient.cuh"
#include "depthwise_conv2d/map_plan.cuh"
#include "depthwise_conv2d/tap_gradient.cuh"

namespace mixer_kernels {

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
    dispatch_up_to_float(a_.type, [&](auto element) {
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
  // Four blocks for each multiprocessor, if there are so many shares.
  int splits_of(int64_t blocks, int64_t shares) const {
    return static_cast<int>(std::clamp<int64_t>(4 * a_.multiprocessors / blocks, 1, shares));
  }

  // Cuts dz, or says that one channel's box does not fit. `bytes`: of an element in shared memory.
  bool plan_boxes(Path path, int64_t useful_channels, Extent box, int64_t bytes, int64_t room = kGoodShared) {
    const int64_t bytes_of_channel = (static_cast<int64_t>(g_.x_slot) + g_.dz_slot) * bytes;
    if (bytes_of_channel > kMostShared) return false;
    path_ = path;
    const int64_t vec = 16 / element_size(a_.type);
    g_.grid = plan_grid(a_.batch, a_.channels, a_.out,
                        channels_of_box(a_.channels, useful_channels, bytes_of_channel, vec, room), box);
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
    // Where neighbours are channels, blocks of several of them, each with one unit, rather than blocks of all units.
    const bool by_channels = g_.x.along_channels && units > kBandedGradientWarps / 2;
    g_.tap_blocks = to_int(by_channels ? units : divide_up(units, kBandedGradientWarps));
    g_.units_of_block = to_int(divide_up(units, g_.tap_blocks));
    // A unit's rows must begin where a block of 8 of them does.
    g_.gap = row_units == 1 || g_.rows_of_unit % 8 == 0 ? plan.gap() : 0;
    g_.x_pitch = plan.input_pitch(), g_.dz_pitch = plan.output_pitch();
    const int64_t x_rows = plan.rows + row_units * g_.rows_of_unit - 1;
    g_.x_slot = to_int(x_rows * g_.x_pitch + x_rows / 8 * g_.gap);
    // Rows of dz are read in pairs.
    g_.dz_slot = to_int((plan.rows + 1) * g_.dz_pitch + plan.rows / 8 * g_.gap);
    if (!plan_boxes(Path::kBanded, kBandedGradientWarps / g_.units_of_block, box, 2, kMostShared)) return false;
    g_.lead = plan.lead(g_.offset_w, kernel);  // the floating-point units have none
    return true;
  }

  bool plan_sliding() {
    const Extent kernel = a_.geometry.kernel, box{even_part(a_.out.h, 32), even_part(a_.out.w, 32)};
    const int64_t all_units = static_cast<int64_t>(g_.tap_rows()) * g_.tap_columns();
    g_.tap_blocks = to_int(divide_up(all_units, kTapThreads));
    // A vector of channels, or more where these have few rows, then parts of the rows, until all threads have something
    // to do.
    const int64_t fit = std::max<int64_t>(kTapThreads / all_units, 1), vec = 16 / element_size(a_.type);
    const int64_t useful = std::min(fit, std::max(vec, fit / box.h));
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

}  // namespace mixer_kernels
