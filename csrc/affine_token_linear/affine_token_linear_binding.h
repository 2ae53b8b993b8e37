// What the bindings of both devices share: the checks that protect memory, and the registration of the ops.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <tuple>

#include "common/arguments.h"

namespace mixer_kernels {

using AffineTokenLinearBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline void check_affine_token_linear(const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta,
                                      const at::Tensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& layer_scale) {
  constexpr auto op = "affine_token_linear";
  TORCH_CHECK_VALUE(x.dim() == 3, op, ": x must have 3 dimensions (B, S, C), got shape ", x.sizes());
  check_channel_parameter(op, "alpha", alpha, x);
  check_channel_parameter(op, "beta", beta, x);
  check_argument(op, "weight", weight, x, x.scalar_type(), {x.size(1), x.size(1)});
  if (bias) check_argument(op, "bias", *bias, x, x.scalar_type(), {x.size(1)});
  check_channel_parameter(op, "layer_scale", layer_scale, x);
}

// Registers the ops on top of a device's forward(x, alpha, ...) and backward(dy, x, alpha, ...).
template <auto* forward, auto* backward>
void bind_affine_token_linear(torch::Library& m) {
  m.impl("affine_token_linear_fwd",
         [](const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta, const at::Tensor& weight,
            const OptionalTensor& bias, const OptionalTensor& layer_scale, bool allow_tf32) {
           check_affine_token_linear(x, alpha, beta, weight, bias, layer_scale);
           return forward(x, alpha, beta, weight, bias, layer_scale, allow_tf32);
         });
  m.impl("affine_token_linear_bwd",
         [](const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta,
            const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& layer_scale, bool allow_tf32) {
           check_affine_token_linear(x, alpha, beta, weight, bias, layer_scale);
           check_argument("affine_token_linear", "dy", dy, x, x.scalar_type(), x.sizes());
           return backward(dy, x, alpha, beta, weight, bias, layer_scale, allow_tf32);
         });
}

}  // namespace mixer_kernels
