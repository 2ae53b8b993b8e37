// The CPU kernels of the depthwise convolution, of what follows it pixel by pixel, and of both: the arguments are those
// that depthwise_conv2d_binding.h lists. Maps may be some channels of larger maps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "common/arguments.h"
#include "depthwise_conv2d/geometry.h"

namespace mixer_kernels {

struct CpuConvolution {
  static void forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& residual,
                      const Geometry& geometry, int64_t activation, const at::Tensor& y);
  static void statistics(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                         const Geometry& geometry, int64_t activation, const at::Tensor& z, const at::Tensor& mean,
                         const at::Tensor& var);
  static void backward_input(const at::Tensor& dz, const at::Tensor& weight, const OptionalTensor& residual,
                             const Geometry& geometry, const at::Tensor& dx);
  static void backward_weight(const at::Tensor& dz, const at::Tensor& x, const Geometry& geometry,
                              const at::Tensor& dweight, const at::Tensor& dbias);
};

struct CpuEpilogue {
  static void epilogue_forward(const at::Tensor& z, const OptionalTensor& scale, const OptionalTensor& shift,
                               const OptionalTensor& residual, int64_t activation, const at::Tensor& y);
  static void epilogue_sums(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& center, int64_t activation,
                            const at::Tensor& sum_dy, const at::Tensor& sum_dy_act);
  // dz may be z.
  static void epilogue_backward(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& c0,
                                const OptionalTensor& c1, const OptionalTensor& c2, int64_t activation,
                                const at::Tensor& dz);
};

}  // namespace mixer_kernels
