// Arguments of the ops: the checks that protect memory, for callers who reach the ops past Python's own checks, and the
// gradients of parameters that may be absent.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

namespace mixer_kernels {

using OptionalTensor = std::optional<at::Tensor>;

inline void check_argument(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like,
                           c10::ScalarType dtype, c10::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got shape ",
                    tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", name, " must have dtype ", dtype, ", got ",
                   tensor.scalar_type());
  TORCH_CHECK(tensor.device() == like.device(), op, ": ", name, " must be on ", like.device(), ", got ",
              tensor.device());
}

// A parameter of the channels, x's dimension `dim`, may stay float32 where x is not.
inline void check_channel_parameter(const char* op, const char* name, const OptionalTensor& parameter,
                                    const at::Tensor& x, int64_t dim = 2) {
  if (!parameter) return;
  const bool is_float = parameter->scalar_type() == at::kFloat;
  check_argument(op, name, *parameter, x, is_float ? at::kFloat : x.scalar_type(), {x.size(dim)});
}

// An absent parameter has an empty gradient.
inline at::Tensor empty_gradient(const OptionalTensor& parameter, const at::Tensor& x) {
  return parameter ? at::empty(parameter->sizes(), parameter->options()) : at::empty({0}, x.options());
}

}  // namespace mixer_kernels
