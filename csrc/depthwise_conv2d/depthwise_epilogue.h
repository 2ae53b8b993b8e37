// What follows a depthwise convolution, pixel by pixel, on the CPU: see depthwise_conv2d_binding.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "common/arguments.h"

namespace mixer_kernels {

struct CpuEpilogue {
  static void epilogue_forward(const at::Tensor& z, const OptionalTensor& scale, const OptionalTensor& shift,
                               const OptionalTensor& residual, int64_t activation, const at::Tensor& y);
  static void epilogue_sums(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& center, int64_t activation,
                            const at::Tensor& sum_dy, const at::Tensor& sum_dy_act);
  static void epilogue_backward(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& c0,
                                const OptionalTensor& c1, const OptionalTensor& c2, int64_t activation,
                                const at::Tensor& dz);
};

}  // namespace mixer_kernels
