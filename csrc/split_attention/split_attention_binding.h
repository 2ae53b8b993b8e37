// What the bindings of both devices share: the checks that protect memory, and the registration of the ops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

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

// The kernels of a device, never called on an empty tensor. The channels of x and dy lie side by side, with any other
// strides; everything else is contiguous.
//   sums(x, a)
//   combine(x, weights, y)
//   backward_weights(dy, x, dweights)
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
