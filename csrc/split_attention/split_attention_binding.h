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

// Checks x (B, H, W, 3C), or y and dy, of one branch.
inline void check_feature_map(const char* name, const at::Tensor& x, int branches) {
  TORCH_CHECK_VALUE(x.dim() == 4, "split_attention: ", name, " must have 4 dimensions (B, H, W, C), got shape ",
                    x.sizes());
  TORCH_CHECK_VALUE(x.size(3) % branches == 0, "split_attention: ", name, " must have channels in a multiple of ",
                    branches, ", got shape ", x.sizes());
}

inline at::Tensor empty_feature_map(const at::Tensor& like, int64_t channels) {
  return in_huge_pages(at::empty({like.size(0), like.size(1), like.size(2), channels}, like.options()));
}

// With the channels side by side, as the kernels take them; the other strides stay.
inline at::Tensor with_dense_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

// What goes back through the perceptron: the gradient of the sums, and what those of its matrices are products of.
struct GateGradient {
  at::Tensor da, own_total, hidden, dinner, dlogits;
};

// Checks the matrices of the perceptron; returns the size of its hidden layer.
inline int64_t check_matrices(const char* op, const at::Tensor& weight1, const at::Tensor& weight2,
                              const at::Tensor& x) {
  const int64_t channels = x.size(3) / kBranches, hidden = weight1.dim() == 2 ? weight1.size(0) : 0;
  check_argument(op, "weight1", weight1, x, x.scalar_type(), {hidden, channels});
  check_argument(op, "weight2", weight2, x, x.scalar_type(), {kBranches * channels, hidden});
  return hidden;
}

// The kernels of a device, never called on an empty tensor. The channels of x and dy lie side by side, with any other
// strides; everything else is contiguous.
//   sums(x, a)
//   gate(x, weight1, weight2, total, weights)
//   combine(x, weights, y)
//   backward_weights(dy, x, dweights)
//   backward_gate(dy, x, total, weights, weight1, weight2, gradient)
//   backward_features(dy, weights, da, dx)
template <typename Kernels>
void bind_split_attention(torch::Library& m) {
  constexpr auto op = "split_attention";
  m.impl("split_attention_sums", [](const at::Tensor& x) {
    check_feature_map("x", x, kBranches);
    at::Tensor a = at::empty({x.size(0), x.size(3) / kBranches}, x.options().dtype(accumulator_of(x)));
    if (x.numel() == 0) return a.zero_();
    Kernels::sums(with_dense_channels(x), a);
    return a;
  });
  m.impl("split_attention_gate", [](const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& weight2) {
    check_feature_map("x", x, kBranches);
    check_matrices(op, weight1, weight2, x);
    const int64_t channels = x.size(3) / kBranches;
    const at::TensorOptions options = x.options().dtype(accumulator_of(x));
    at::Tensor total = at::empty({x.size(0), channels}, options);
    at::Tensor weights = at::empty({x.size(0), kBranches, channels}, options);
    if (x.numel() == 0) return std::tuple(total.zero_(), weights.zero_());
    Kernels::gate(with_dense_channels(x), weight1.contiguous(), weight2.contiguous(), total, weights);
    return std::tuple(total, weights);
  });
  m.impl("split_attention_combine", [](const at::Tensor& x, const at::Tensor& weights) {
    check_feature_map("x", x, kBranches);
    const int64_t channels = x.size(3) / kBranches;
    check_argument(op, "weights", weights, x, accumulator_of(x), {x.size(0), kBranches, channels});
    at::Tensor y = empty_feature_map(x, channels);
    if (y.numel() > 0) Kernels::combine(with_dense_channels(x), weights.contiguous(), y);
    return y;
  });
  m.impl("split_attention_bwd_weights", [](const at::Tensor& dy, const at::Tensor& x) {
    check_feature_map("x", x, kBranches);
    const int64_t channels = x.size(3) / kBranches;
    check_argument(op, "dy", dy, x, x.scalar_type(), {x.size(0), x.size(1), x.size(2), channels});
    at::Tensor dweights = at::empty({x.size(0), kBranches, channels}, x.options().dtype(accumulator_of(x)));
    if (x.numel() == 0) return dweights.zero_();
    Kernels::backward_weights(with_dense_channels(dy), with_dense_channels(x), dweights);
    return dweights;
  });
  m.impl("split_attention_bwd_gate",
         [](const at::Tensor& dy, const at::Tensor& x, const at::Tensor& total, const at::Tensor& weights,
            const at::Tensor& weight1, const at::Tensor& weight2) {
           check_feature_map("x", x, kBranches);
           const int64_t batch = x.size(0), channels = x.size(3) / kBranches;
           const int64_t hidden = check_matrices(op, weight1, weight2, x);
           check_argument(op, "dy", dy, x, x.scalar_type(), {batch, x.size(1), x.size(2), channels});
           check_argument(op, "total", total, x, accumulator_of(x), {batch, channels});
           check_argument(op, "weights", weights, x, accumulator_of(x), {batch, kBranches, channels});
           const auto factor = [&](int64_t columns) { return at::empty({batch, columns}, x.options()); };
           const GateGradient to{at::empty({batch, channels}, total.options()), factor(channels), factor(hidden),
                                 factor(hidden), factor(kBranches * channels)};
           if (x.numel() == 0) {
             for (const at::Tensor& t : {to.da, to.own_total, to.hidden, to.dinner, to.dlogits}) t.zero_();
           } else {
             Kernels::backward_gate(with_dense_channels(dy), with_dense_channels(x), total.contiguous(),
                                    weights.contiguous(), weight1.contiguous(), weight2.contiguous(), to);
           }
           return std::tuple(to.da, to.own_total, to.hidden, to.dinner, to.dlogits);
         });
  m.impl("split_attention_bwd_features", [](const at::Tensor& dy, const at::Tensor& weights, const at::Tensor& da) {
    check_feature_map("dy", dy, 1);
    check_argument(op, "weights", weights, dy, accumulator_of(dy), {dy.size(0), kBranches, dy.size(3)});
    check_argument(op, "da", da, dy, accumulator_of(dy), {dy.size(0), dy.size(3)});
    at::Tensor dx = empty_feature_map(dy, kBranches * dy.size(3));
    if (dx.numel() > 0) Kernels::backward_features(with_dense_channels(dy), weights.contiguous(), da.contiguous(), dx);
    return dx;
  });
}

}  // namespace mixer_kernels
