// What the bindings of both devices share: the checks that protect memory, and the registration of the ops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "common/arguments.h"
#include "common/output.h"
#include "depthwise_conv2d/geometry.h"

namespace mixer_kernels {

inline Geometry check_geometry(c10::IntArrayRef kernel, c10::IntArrayRef stride, c10::IntArrayRef padding,
                               c10::IntArrayRef dilation) {
  constexpr auto op = "depthwise_conv2d";
  const auto is_positive_pair = [](c10::IntArrayRef pair) { return pair.size() == 2 && pair[0] > 0 && pair[1] > 0; };
  TORCH_CHECK_VALUE(is_positive_pair(kernel), op, ": kernel_size must be two positive numbers, got ", kernel);
  TORCH_CHECK_VALUE(is_positive_pair(stride), op, ": stride must be two positive numbers, got ", stride);
  TORCH_CHECK_VALUE(is_positive_pair(dilation), op, ": dilation must be two positive numbers, got ", dilation);
  TORCH_CHECK_VALUE(padding.size() == 4 && *std::min_element(padding.begin(), padding.end()) >= 0, op,
                    ": padding must be four numbers that are not negative, got ", padding);
  // So that no product of two sizes overflows.
  constexpr int64_t kMost = int64_t{1} << 24;
  const auto is_below = [](int64_t number) { return number < kMost; };
  const bool is_small = std::all_of(stride.begin(), stride.end(), is_below) &&
                        std::all_of(padding.begin(), padding.end(), is_below) &&
                        std::all_of(dilation.begin(), dilation.end(), is_below) &&
                        is_below((kernel[0] - 1) * dilation[0]) && is_below((kernel[1] - 1) * dilation[1]);
  TORCH_CHECK_VALUE(is_small, op, ": stride, padding and dilation * (kernel_size - 1) must be below 2**24, got ",
                    stride, ", ", padding, " and ", dilation, " for a kernel ", kernel);
  return {{kernel[0], kernel[1]}, {stride[0], stride[1]}, {dilation[0], dilation[1]}, {padding[0], padding[2]}};
}

// The kernel's sizes, of a weight (C, 1, KH, KW).
inline c10::IntArrayRef kernel_of(const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 4, "depthwise_conv2d: weight must have 4 dimensions (C, 1, KH, KW), got shape ",
                    weight.sizes());
  return weight.sizes().slice(2);
}

inline void check_map(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, "depthwise_conv2d: ", name, " must have 4 dimensions (B, C, H, W), got shape ",
                    x.sizes());
}

inline Extent size_of(const at::Tensor& x) { return {x.size(2), x.size(3)}; }

inline Extent convolved_size(Extent x, const Geometry& geometry, c10::IntArrayRef padding) {
  const auto size = [](int64_t size, int64_t before, int64_t after, int64_t taps, int64_t stride, int64_t dilation) {
    const int64_t room = size + before + after - dilation * (taps - 1) - 1;
    TORCH_CHECK_VALUE(room >= 0, "depthwise_conv2d: x must reach, with its padding, over the kernel, got size ", size);
    return room / stride + 1;
  };
  const auto& [kernel, stride, dilation, unused] = geometry;
  return {size(x.h, padding[0], padding[1], kernel.h, stride.h, dilation.h),
          size(x.w, padding[2], padding[3], kernel.w, stride.w, dilation.w)};
}

// An uninitialised map in the memory format of x.
inline at::Tensor empty_map(const at::Tensor& x, Extent size) {
  return in_huge_pages(at::empty({x.size(0), x.size(1), size.h, size.w}, x.options(), x.suggest_memory_format()));
}

inline at::Tensor empty_sums(const at::Tensor& x) {
  return at::empty({x.size(1)}, x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
}

// Checks a map, x or a gradient, against a kernel.
inline Geometry check_convolution(const char* name, const at::Tensor& x, const at::Tensor& weight,
                                  const OptionalTensor& bias, c10::IntArrayRef stride, c10::IntArrayRef padding,
                                  c10::IntArrayRef dilation) {
  constexpr auto op = "depthwise_conv2d";
  check_map(name, x);
  const Geometry geometry = check_geometry(kernel_of(weight), stride, padding, dilation);
  check_argument(op, "weight", weight, x, x.scalar_type(), {x.size(1), 1, geometry.kernel.h, geometry.kernel.w});
  if (bias) check_argument(op, "bias", *bias, x, x.scalar_type(), {x.size(1)});
  return geometry;
}

// The kernels of a device:
//   forward(x, weight, bias, scale, shift, residual, geometry, activation, y)
//   statistics(x, weight, bias, geometry, activation, z, mean, var)
//   backward_input(dz, weight, residual, geometry, dx)
//   backward_weight(dz, x, geometry, dweight, dbias)
//   epilogue_forward(z, scale, shift, residual, activation, y)
//   epilogue_sums(dy, z, center, activation, sum_dy, sum_dy_act)
//   epilogue_backward(dy, z, c0, c1, c2, activation, dz)
template <typename Kernels>
void bind_depthwise_conv2d(torch::Library& m) {
  constexpr auto op = "depthwise_conv2d";
  m.impl("depthwise_conv2d_fwd",
         [](const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
            const OptionalTensor& shift, const OptionalTensor& residual, c10::IntArrayRef stride,
            c10::IntArrayRef padding, c10::IntArrayRef dilation, int64_t activation) {
           const Geometry geometry = check_convolution("x", x, weight, bias, stride, padding, dilation);
           check_channel_parameter(op, "scale", scale, x, 1);
           check_channel_parameter(op, "shift", shift, x, 1);
           at::Tensor y = empty_map(x, convolved_size(size_of(x), geometry, padding));
           if (residual) check_argument(op, "residual", *residual, x, x.scalar_type(), y.sizes());
           if (y.numel() > 0) Kernels::forward(x, weight, bias, scale, shift, residual, geometry, activation, y);
           return y;
         });
  m.impl("depthwise_conv2d_statistics",
         [](const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, c10::IntArrayRef stride,
            c10::IntArrayRef padding, c10::IntArrayRef dilation, int64_t activation) {
           const Geometry geometry = check_convolution("x", x, weight, bias, stride, padding, dilation);
           at::Tensor z = empty_map(x, convolved_size(size_of(x), geometry, padding));
           at::Tensor mean = empty_sums(x), var = empty_sums(x);
           if (z.numel() > 0) {
             Kernels::statistics(x, weight, bias, geometry, activation, z, mean, var);
           } else {
             mean.zero_();
             var.zero_();
           }
           return std::tuple(z, mean, var);
         });
  m.impl("depthwise_conv2d_bwd_input",
         [](const at::Tensor& dz, const at::Tensor& weight, const OptionalTensor& residual, int64_t height,
            int64_t width, c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation) {
           const Geometry geometry = check_convolution("dz", dz, weight, {}, stride, padding, dilation);
           const Extent size = convolved_size({height, width}, geometry, padding);
           check_argument(op, "dz", dz, dz, dz.scalar_type(), {dz.size(0), dz.size(1), size.h, size.w});
           at::Tensor dx = empty_map(dz, {height, width});
           if (residual) check_argument(op, "residual", *residual, dz, dz.scalar_type(), dx.sizes());
           if (dx.numel() > 0) Kernels::backward_input(dz, weight, residual, geometry, dx);
           return dx;
         });
  m.impl("depthwise_conv2d_bwd_weight",
         [](const at::Tensor& dz, const at::Tensor& x, c10::IntArrayRef kernel, c10::IntArrayRef stride,
            c10::IntArrayRef padding, c10::IntArrayRef dilation) {
           check_map("x", x);
           const Geometry geometry = check_geometry(kernel, stride, padding, dilation);
           const Extent size = convolved_size(size_of(x), geometry, padding);
           check_argument(op, "dz", dz, x, x.scalar_type(), {x.size(0), x.size(1), size.h, size.w});
           at::Tensor dweight = at::empty({x.size(1), 1, kernel[0], kernel[1]}, x.options());
           at::Tensor dbias = at::empty({x.size(1)}, x.options());
           if (dz.numel() > 0) {
             Kernels::backward_weight(dz, x, geometry, dweight, dbias);
           } else {
             dweight.zero_();
             dbias.zero_();
           }
           return std::tuple(dweight, dbias);
         });
  m.impl("depthwise_epilogue_fwd", [](const at::Tensor& z, const OptionalTensor& scale, const OptionalTensor& shift,
                                      const OptionalTensor& residual, int64_t activation) {
    check_map("z", z);
    check_channel_parameter(op, "scale", scale, z, 1);
    check_channel_parameter(op, "shift", shift, z, 1);
    if (residual) check_argument(op, "residual", *residual, z, z.scalar_type(), z.sizes());
    at::Tensor y = empty_map(z, size_of(z));
    if (y.numel() > 0) Kernels::epilogue_forward(z, scale, shift, residual, activation, y);
    return y;
  });
  m.impl("depthwise_epilogue_sums",
         [](const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& center, int64_t activation) {
           check_map("z", z);
           check_argument(op, "dy", dy, z, z.scalar_type(), z.sizes());
           check_channel_parameter(op, "center", center, z, 1);
           at::Tensor sum_dy = empty_sums(z), sum_dy_act = empty_sums(z);
           if (z.numel() > 0) {
             Kernels::epilogue_sums(dy, z, center, activation, sum_dy, sum_dy_act);
           } else {
             sum_dy.zero_();
             sum_dy_act.zero_();
           }
           return std::tuple(sum_dy, sum_dy_act);
         });
  m.impl("depthwise_epilogue_bwd", [](const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& c0,
                                      const OptionalTensor& c1, const OptionalTensor& c2, int64_t activation) {
    check_map("z", z);
    check_argument(op, "dy", dy, z, z.scalar_type(), z.sizes());
    for (const OptionalTensor& coefficient : {c0, c1, c2})
      check_channel_parameter(op, "coefficient", coefficient, z, 1);
    at::Tensor dz = empty_map(z, size_of(z));
    if (dz.numel() > 0) Kernels::epilogue_backward(dy, z, c0, c1, c2, activation, dz);
    return dz;
  });
}

}  // namespace mixer_kernels
