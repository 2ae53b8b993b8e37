// What the bindings of both devices share: the checks that protect memory, and the registration of the ops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "common/activation.h"
#include "common/arguments.h"

namespace mixer_kernels {

// LayerNorm and the first matrix: (B, S, C) to (B, D, C).
inline void check_token_linear(const char* op, const at::Tensor& x, const OptionalTensor& norm_weight,
                               const OptionalTensor& norm_bias, const char* weight_name, const at::Tensor& weight,
                               const char* bias_name, const OptionalTensor& bias, int64_t activation) {
  TORCH_CHECK_VALUE(x.dim() == 3, op, ": x must have 3 dimensions (B, S, C), got shape ", x.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 2, op, ": ", weight_name, " must have 2 dimensions (D, S), got shape ",
                    weight.sizes());
  TORCH_CHECK_VALUE(0 <= activation && activation <= static_cast<int64_t>(Activation::kGeluTanh), op,
                    ": activation must be a code 0 to 3, got ", activation);
  check_channel_parameter(op, "norm_weight", norm_weight, x);
  check_channel_parameter(op, "norm_bias", norm_bias, x);
  check_argument(op, weight_name, weight, x, x.scalar_type(), {weight.size(0), x.size(1)});
  if (bias) check_argument(op, bias_name, *bias, x, x.scalar_type(), {weight.size(0)});
}

inline void check_second_linear(const char* op, const at::Tensor& x, const at::Tensor& weight1,
                                const at::Tensor& weight2, const OptionalTensor& bias2) {
  check_argument(op, "weight2", weight2, x, x.scalar_type(), {x.size(1), weight1.size(0)});
  if (bias2) check_argument(op, "bias2", *bias2, x, x.scalar_type(), {x.size(1)});
}

inline void check_backward(const char* op, const at::Tensor& dy, const at::Tensor& x, const at::Tensor& mean,
                           const at::Tensor& rstd, c10::IntArrayRef dy_shape) {
  const c10::ScalarType acc = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  check_argument(op, "dy", dy, x, x.scalar_type(), dy_shape);
  check_argument(op, "mean", mean, x, acc, {x.size(0), x.size(1)});
  check_argument(op, "rstd", rstd, x, acc, {x.size(0), x.size(1)});
}

inline at::Tensor empty_statistics(const at::Tensor& x) {
  const c10::ScalarType acc = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::empty({x.size(0), x.size(1)}, x.options().dtype(acc));
}

using TokenMixingForward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using TokenMixingBackward =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Registers the four ops on top of a device's forward(op, x, ..., allow_tf32) and backward(op, dy, x, ...,
// allow_tf32), whose second weight may be absent.
template <auto* forward, auto* backward>
void bind_token_mixing(torch::Library& m) {
  m.impl("layer_norm_token_linear_fwd",
         [](const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
            const at::Tensor& weight, const OptionalTensor& bias, double eps, int64_t activation, bool allow_tf32) {
           constexpr auto op = "layer_norm_token_linear";
           check_token_linear(op, x, norm_weight, norm_bias, "weight", weight, "bias", bias, activation);
           return forward(op, x, norm_weight, norm_bias, weight, bias, {}, {}, eps, activation, allow_tf32);
         });
  m.impl("layer_norm_token_linear_bwd",
         [](const at::Tensor& dy, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
            const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, const at::Tensor& weight,
            const OptionalTensor& bias, int64_t activation, bool allow_tf32) {
           constexpr auto op = "layer_norm_token_linear";
           check_token_linear(op, x, norm_weight, norm_bias, "weight", weight, "bias", bias, activation);
           check_backward(op, dy, x, mean, rstd, {x.size(0), weight.size(0), x.size(2)});
           auto [dx, dnorm_weight, dnorm_bias, dweight, dbias, dweight2, dbias2] =
               backward(op, dy, x, mean, rstd, norm_weight, norm_bias, weight, bias, {}, {}, activation, allow_tf32);
           return std::make_tuple(dx, dnorm_weight, dnorm_bias, dweight, dbias);
         });
  m.impl("token_mixing_fwd", [](const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                                const at::Tensor& weight1, const OptionalTensor& bias1, const at::Tensor& weight2,
                                const OptionalTensor& bias2, double eps, int64_t activation, bool allow_tf32) {
    constexpr auto op = "token_mixing";
    check_token_linear(op, x, norm_weight, norm_bias, "weight1", weight1, "bias1", bias1, activation);
    check_second_linear(op, x, weight1, weight2, bias2);
    return forward(op, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, allow_tf32);
  });
  m.impl("token_mixing_bwd",
         [](const at::Tensor& dy, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
            const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, const at::Tensor& weight1,
            const OptionalTensor& bias1, const at::Tensor& weight2, const OptionalTensor& bias2, int64_t activation,
            bool allow_tf32) {
           constexpr auto op = "token_mixing";
           check_token_linear(op, x, norm_weight, norm_bias, "weight1", weight1, "bias1", bias1, activation);
           check_second_linear(op, x, weight1, weight2, bias2);
           check_backward(op, dy, x, mean, rstd, x.sizes());
           return backward(op, dy, x, mean, rstd, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation,
                           allow_tf32);
         });
}

}  // namespace mixer_kernels
