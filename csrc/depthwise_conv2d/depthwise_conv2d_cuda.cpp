// Binds the CUDA launchers of the depthwise convolution to its ops.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/cuda_binding.h"
#include "common/element_type_of.h"
#include "depthwise_conv2d/depthwise_conv2d.h"
#include "depthwise_conv2d/depthwise_conv2d_binding.h"

namespace mixer_kernels {
namespace {

constexpr auto kOp = "depthwise_conv2d";

// The kernels count pixels along a dimension, channels, boxes and blocks in 32 bits.
void check_kernels(const at::Tensor& x, const at::Tensor& y, const Geometry& geometry = {}) {
  TORCH_CHECK_TYPE(x.scalar_type() != at::kDouble, kOp, ": x must have dtype float32, float16 or bfloat16 on CUDA, ",
                   "got ", x.scalar_type());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  for (const at::Tensor& map : {x, y}) {
    const int64_t boxes = ((map.size(2) + 3) / 4) * ((map.size(3) + 3) / 4);
    const int64_t largest = std::max({map.size(1), map.size(2), map.size(3)});
    TORCH_CHECK_VALUE(largest < kMost && boxes <= kMost / std::max<int64_t>(map.size(0) * map.size(1), 1), kOp,
                      ": x must have fewer than 2^30 rows, columns, channels and boxes, got shape ", map.sizes());
  }
  const auto& [kernel, unused_stride, unused_dilation, padding] = geometry;
  TORCH_CHECK_VALUE(std::max(padding.h, padding.w) < kMost && kernel.h * kernel.w < kMost, kOp,
                    ": kernel and padding must have fewer than 2^30 numbers, got (", kernel.h, ", ", kernel.w,
                    ") and (", padding.h, ", ", padding.w, ")");
}

MapView map_of(const at::Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}
MapView output_map(const at::Tensor& t) {
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

ChannelParameter parameter(const at::Tensor& t) { return {data_of(t), t.defined() && t.scalar_type() == at::kFloat}; }

void convolve(const at::Tensor& x, ConvolutionArguments arguments) {
  arguments.multiprocessors = multiprocessors_of(x);
  const at::Tensor workspace = empty_workspace(x, depthwise_conv2d_workspace(arguments));
  depthwise_conv2d_cuda(arguments, workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// A dense map, and how its numbers lie.
EpilogueArguments epilogue_of(const at::Tensor& z, at::MemoryFormat format, int64_t activation) {
  return {element_type_of(z, kOp),
          z.size(0),
          z.size(1),
          z.size(2) * z.size(3),
          format == at::MemoryFormat::ChannelsLast,
          z.const_data_ptr(),
          static_cast<Activation>(activation)};
}

struct CudaKernels {
  static void forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& residual,
                      const Geometry& geometry, int64_t activation, const at::Tensor& y) {
    check_kernels(x, y, geometry);
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor taps = weight.contiguous(), biases = contiguous(bias);
    const at::Tensor scales = contiguous(scale), shifts = contiguous(shift);
    convolve(x, {.type = element_type_of(x, kOp),
                 .batch = x.size(0),
                 .channels = x.size(1),
                 .in = size_of(x),
                 .out = size_of(y),
                 .geometry = geometry,
                 .is_gradient = false,
                 .x = map_of(x),
                 .weight = taps.const_data_ptr(),
                 .bias = data_of(biases),
                 .scale = parameter(scales),
                 .shift = parameter(shifts),
                 .residual = residual ? map_of(*residual) : MapView{},
                 .activation = static_cast<Activation>(activation),
                 .y = output_map(y),
                 .mean = nullptr,
                 .var = nullptr});
  }

  static void statistics(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                         const Geometry& geometry, int64_t activation, const at::Tensor& z, const at::Tensor& mean,
                         const at::Tensor& var) {
    check_kernels(x, z, geometry);
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor taps = weight.contiguous(), biases = contiguous(bias);
    convolve(x, {.type = element_type_of(x, kOp),
                 .batch = x.size(0),
                 .channels = x.size(1),
                 .in = size_of(x),
                 .out = size_of(z),
                 .geometry = geometry,
                 .is_gradient = false,
                 .x = map_of(x),
                 .weight = taps.const_data_ptr(),
                 .bias = data_of(biases),
                 .scale = {},
                 .shift = {},
                 .residual = {},
                 .activation = static_cast<Activation>(activation),
                 .y = output_map(z),
                 .mean = mean.mutable_data_ptr<float>(),
                 .var = var.mutable_data_ptr<float>()});
  }

  static void backward_input(const at::Tensor& dz, const at::Tensor& weight, const OptionalTensor& residual,
                             const Geometry& geometry, const at::Tensor& dx) {
    check_kernels(dz, dx, geometry);
    const c10::cuda::CUDAGuard guard(dz.device());
    const at::Tensor taps = weight.contiguous();
    convolve(dz, {.type = element_type_of(dz, kOp),
                  .batch = dz.size(0),
                  .channels = dz.size(1),
                  .in = size_of(dz),
                  .out = size_of(dx),
                  .geometry = geometry,
                  .is_gradient = true,
                  .x = map_of(dz),
                  .weight = taps.const_data_ptr(),
                  .bias = nullptr,
                  .scale = {},
                  .shift = {},
                  .residual = residual ? map_of(*residual) : MapView{},
                  .activation = Activation::kNone,
                  .y = output_map(dx),
                  .mean = nullptr,
                  .var = nullptr});
  }

  static void backward_weight(const at::Tensor& dz, const at::Tensor& x, const Geometry& geometry,
                              const at::Tensor& dweight, const at::Tensor& dbias) {
    check_kernels(x, dz, geometry);
    const c10::cuda::CUDAGuard guard(x.device());
    const WeightGradientArguments arguments{.type = element_type_of(x, kOp),
                                            .batch = x.size(0),
                                            .channels = x.size(1),
                                            .in = size_of(x),
                                            .out = size_of(dz),
                                            .geometry = geometry,
                                            .x = map_of(x),
                                            .dz = map_of(dz),
                                            .dweight = dweight.mutable_data_ptr(),
                                            .dbias = dbias.mutable_data_ptr(),
                                            .multiprocessors = multiprocessors_of(x)};
    const at::Tensor workspace = empty_workspace(x, depthwise_conv2d_bwd_weight_workspace(arguments));
    depthwise_conv2d_bwd_weight_cuda(arguments, workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void epilogue_forward(const at::Tensor& z, const OptionalTensor& scale, const OptionalTensor& shift,
                               const OptionalTensor& residual, int64_t activation, const at::Tensor& y) {
    check_kernels(z, y);
    const c10::cuda::CUDAGuard guard(z.device());
    const auto format = z.suggest_memory_format();
    const at::Tensor dense = z.contiguous(format), past = residual ? residual->contiguous(format) : at::Tensor();
    const at::Tensor scales = contiguous(scale), shifts = contiguous(shift);
    depthwise_epilogue_fwd_cuda(epilogue_of(dense, format, activation), parameter(scales), parameter(shifts),
                                data_of(past), y.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void epilogue_sums(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& center, int64_t activation,
                            const at::Tensor& sum_dy, const at::Tensor& sum_dy_act) {
    check_kernels(z, dy);
    const c10::cuda::CUDAGuard guard(z.device());
    const auto format = z.suggest_memory_format();
    const at::Tensor dense = z.contiguous(format), gradient = dy.contiguous(format), centers = contiguous(center);
    const EpilogueArguments arguments = epilogue_of(dense, format, activation);
    const at::Tensor workspace = empty_workspace(z, depthwise_epilogue_sums_workspace(arguments));
    depthwise_epilogue_sums_cuda(arguments, gradient.const_data_ptr(), parameter(centers),
                                 sum_dy.mutable_data_ptr<float>(), sum_dy_act.mutable_data_ptr<float>(),
                                 workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void epilogue_backward(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& c0,
                                const OptionalTensor& c1, const OptionalTensor& c2, int64_t activation,
                                const at::Tensor& dz) {
    check_kernels(z, dy);
    const c10::cuda::CUDAGuard guard(z.device());
    const auto format = z.suggest_memory_format();
    const at::Tensor dense = z.contiguous(format), gradient = dy.contiguous(format);
    const at::Tensor of_dy = contiguous(c0), of_act = contiguous(c1), constant = contiguous(c2);
    depthwise_epilogue_bwd_cuda(epilogue_of(dense, format, activation), gradient.const_data_ptr(), parameter(of_dy),
                                parameter(of_act), parameter(constant), dz.mutable_data_ptr(),
                                c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CUDA, m) { mixer_kernels::bind_depthwise_conv2d<mixer_kernels::CudaKernels>(m); }
