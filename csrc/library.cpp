// The table of contents: the schema of every op, and the Python module `_C`, whose import registers them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <string>

#include "common/isa.h"

#ifndef MIXER_KERNELS_CUDA_ARCHS
#define MIXER_KERNELS_CUDA_ARCHS ""
#endif

TORCH_LIBRARY(mixer_kernels, m) {
  // directions: one code a channel group, as in csrc/spatial_shift/spatial_shift.h
  m.def("spatial_shift_fwd(Tensor x, int[] directions) -> Tensor");
  m.def("spatial_shift_fwd_(Tensor(a!) x, int[] directions) -> ()");
  m.def("spatial_shift_bwd(Tensor dy, int[] directions) -> Tensor");
  m.def("spatial_shift_bwd_(Tensor(a!) dy, int[] directions) -> ()");

  // activation: a code of csrc/common/activation.h. The gradient of an absent parameter is empty, of shape (0,).
  // allow_tf32: products of float32 may have TF32's precision, or more, whatever PyTorch's own setting says.
  m.def(
      "layer_norm_token_linear_fwd(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, "
      "float eps, int activation, bool allow_tf32=False) -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_token_linear_bwd(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? norm_weight, "
      "Tensor? norm_bias, Tensor weight, Tensor? bias, int activation, bool allow_tf32=False) "
      "-> (Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dweight, Tensor dbias)");
  m.def(
      "token_mixing_fwd(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight1, Tensor? bias1, "
      "Tensor weight2, Tensor? bias2, float eps, int activation, bool allow_tf32=False) "
      "-> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "token_mixing_bwd(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? norm_weight, Tensor? norm_bias, "
      "Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, int activation, bool allow_tf32=False) "
      "-> (Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dweight1, Tensor dbias1, Tensor dweight2, "
      "Tensor dbias2)");

  m.def(
      "affine_token_linear_fwd(Tensor x, Tensor? alpha, Tensor? beta, Tensor weight, Tensor? bias, "
      "Tensor? layer_scale, bool allow_tf32=False) -> Tensor");
  m.def(
      "affine_token_linear_bwd(Tensor dy, Tensor x, Tensor? alpha, Tensor? beta, Tensor weight, Tensor? bias, "
      "Tensor? layer_scale, bool allow_tf32=False) -> (Tensor dx, Tensor dalpha, Tensor dbeta, Tensor dweight, "
      "Tensor dbias, Tensor dlayer_scale)");

  // x (B, H, W, 3C), unshifted, y and dy (B, H, W, C). The sums over the pixels `total` (B, C) and the weights of the
  // branches (B, 3, C) are float32, float64 for float64. Gradients that are not wanted are empty.
  m.def("split_attention_fwd(Tensor x, Tensor weight1, Tensor weight2) -> (Tensor y, Tensor total, Tensor weights)");
  m.def(
      "split_attention_bwd(Tensor dy, Tensor x, Tensor total, Tensor weights, Tensor weight1, Tensor weight2, "
      "bool wants_input, bool wants_weights) -> (Tensor dx, Tensor dweight1, Tensor dweight2)");

  // padding: top, bottom, left, right. y, z and dx keep the memory format of x, z and dz; mean, var and the sums are
  // float32, float64 for float64, and so are the coefficients c0, c1, c2, which stand for 1, 0, 0 where absent.
  m.def(
      "depthwise_conv2d_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual, "
      "int[] stride, int[] padding, int[] dilation, int activation) -> Tensor");
  m.def(
      "depthwise_conv2d_bwd_input(Tensor dz, Tensor weight, Tensor? residual, SymInt height, SymInt width, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "depthwise_conv2d_bwd_weight(Tensor dz, Tensor x, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation) -> (Tensor dweight, Tensor dbias)");
  m.def(
      "depthwise_conv2d_statistics(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int activation) -> (Tensor z, Tensor mean, Tensor var)");
  m.def("depthwise_epilogue_fwd(Tensor z, Tensor? scale, Tensor? shift, Tensor? residual, int activation) -> Tensor");
  m.def(
      "depthwise_epilogue_sums(Tensor dy, Tensor z, Tensor? center, int activation) "
      "-> (Tensor sum_dy, Tensor sum_dy_act)");
  m.def("depthwise_epilogue_bwd(Tensor dy, Tensor z, Tensor? c0, Tensor? c1, Tensor? c2, int activation) -> Tensor");
  // On the CPU only. Gradients that are not wanted are empty.
  m.def(
      "depthwise_conv2d_batch_norm_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, "
      "float eps, int[] stride, int[] padding, int[] dilation, int activation) -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "depthwise_conv2d_batch_norm_bwd(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, "
      "Tensor mean, Tensor var, float eps, int[] stride, int[] padding, int[] dilation, int activation, "
      "bool wants_input, bool wants_convolution) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dnorm_weight, "
      "Tensor dnorm_bias)");
}

namespace mixer_kernels {
namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = __VERSION__;
  info["cuda_archs"] = MIXER_KERNELS_CUDA_ARCHS;
  info["cpu_isa"] = isa_name(cpu_isa());
  return info;
}

}  // namespace
}  // namespace mixer_kernels

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of mixer_kernels; importing it registers torch.ops.mixer_kernels.*";
  m.def("build_info", &mixer_kernels::build_info,
        "Compiler, CUDA architectures (empty without CUDA) and the instruction set that the CPU kernels use here.");
}
