// What the bindings of both devices share: the checks that protect memory, and the registration of the ops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "common/arguments.h"
#include "common/output.h"
#include "split_attention/split_attention.h"

namespace mixer_kernels {

inline c10::ScalarType accumulator_of(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_feature_map(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, "split_attention: x must have 4 dimensions (B, H, W, 3C), got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(3) % kBranches == 0, "split_attention: x must have channels in a multiple of ", kBranches,
                    ", got shape ", x.sizes());
}

inline at::Tensor empty_feature_map(const at::Tensor& like, int64_t channels) {
  return in_huge_pages(at::empty({like.size(0), like.size(1), like.size(2), channels}, like.options()));
}

// With the channels side by side, as the kernels take them; the other strides stay.
inline at::Tensor with_dense_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

// The gradients of x and of the perceptron's matrices; those that are not wanted are empty.
struct SplitGradients {
  at::Tensor dx, dweight1, dweight2;
  bool wants_input, wants_weights;
};

// The kernels of a device, never called on an empty tensor. The channels of x and dy lie side by side, with any other
// strides; everything else is contiguous.
//   forward(x, weight1, weight2, y, total, weights)
//   backward(dy, x, total, weights, weight1, weight2, gradients)
template <typename Kernels>
void bind_split_attention(torch::Library& m) {
  constexpr auto op = "split_attention";
  // Checks x and the matrices of the perceptron.
  constexpr auto check = [](const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& weight2) {
    check_feature_map(x);
    const int64_t channels = x.size(3) / kBranches, hidden = weight1.dim() == 2 ? weight1.size(0) : 0;
    check_argument(op, "weight1", weight1, x, x.scalar_type(), {hidden, channels});
    check_argument(op, "weight2", weight2, x, x.scalar_type(), {kBranches * channels, hidden});
  };
  m.impl("split_attention_fwd", [=](const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& weight2) {
    check(x, weight1, weight2);
    const int64_t channels = x.size(3) / kBranches;
    at::Tensor y = empty_feature_map(x, channels);
    const at::TensorOptions options = x.options().dtype(accumulator_of(x));
    at::Tensor total = at::empty({x.size(0), channels}, options);
    at::Tensor weights = at::empty({x.size(0), kBranches, channels}, options);
    if (x.numel() == 0) return std::tuple(y, total.zero_(), weights.zero_());
    Kernels::forward(with_dense_channels(x), weight1.contiguous(), weight2.contiguous(), y, total, weights);
    return std::tuple(y, total, weights);
  });
  m.impl("split_attention_bwd",
         [=](const at::Tensor& dy, const at::Tensor& x, const at::Tensor& total, const at::Tensor& weights,
             const at::Tensor& weight1, const at::Tensor& weight2, bool wants_input, bool wants_weights) {
           check(x, weight1, weight2);
           const int64_t batch = x.size(0), channels = x.size(3) / kBranches;
           check_argument(op, "dy", dy, x, x.scalar_type(), {batch, x.size(1), x.size(2), channels});
           check_argument(op, "total", total, x, accumulator_of(x), {batch, channels});
           check_argument(op, "weights", weights, x, accumulator_of(x), {batch, kBranches, channels});
           const auto like = [](const at::Tensor& matrix, bool wanted) {
             return wanted ? at::empty(matrix.sizes(), matrix.options()) : at::empty({0}, matrix.options());
           };
           SplitGradients to{wants_input ? empty_feature_map(x, x.size(3)) : like(x, false),
                             like(weight1, wants_weights), like(weight2, wants_weights), wants_input, wants_weights};
           if (x.numel() == 0) {
             to.dweight1.zero_();
             to.dweight2.zero_();
           } else {
             Kernels::backward(with_dense_channels(dy), with_dense_channels(x), total.contiguous(),
                               weights.contiguous(), weight1.contiguous(), weight2.contiguous(), to);
           }
           return std::tuple(to.dx, to.dweight1, to.dweight2);
         });
}

}  // namespace mixer_kernels
