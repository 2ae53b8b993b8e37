// What the bindings of both devices share: the four ops on top of one `shift(op, in, out, directions, adjoint)`, and
// the checks that protect memory, for callers who reach the ops past Python's own checks.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "common/output.h"
#include "spatial_shift/spatial_shift.h"

namespace mixer_kernels {

inline void check_shift(const char* op, const at::Tensor& x, c10::IntArrayRef directions) {
  TORCH_CHECK_VALUE(x.dim() == 4, op, ": x must have 4 dimensions (B, H, W, C), got shape ", x.sizes());
  TORCH_CHECK_VALUE(!directions.empty(), op, ": directions must name at least one direction, got none");
  for (const int64_t direction : directions) {
    TORCH_CHECK_VALUE(0 <= direction && direction < 4, op, ": directions must be codes 0 to 3, got ", direction);
  }
}

inline ShiftShape shape_of(const at::Tensor& x) { return {x.size(0), x.size(1), x.size(2), x.size(3)}; }

inline ShiftStrides strides_of(const at::Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

template <auto* shift, bool kAdjoint>
at::Tensor shift_to_new(const at::Tensor& x, c10::IntArrayRef directions) {
  check_shift("spatial_shift", x, directions);
  at::Tensor y = empty_output_like(x);
  if (x.numel() > 0) shift("spatial_shift", x, y, directions, kAdjoint);
  return y;
}

template <auto* shift, bool kAdjoint>
void shift_in_place(at::Tensor& x, c10::IntArrayRef directions) {
  check_shift("spatial_shift_", x, directions);
  if (x.numel() > 0) shift("spatial_shift_", x, x, directions, kAdjoint);
  // Tells autograd that whoever saved x holds other values now.
  if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
}

template <auto* shift>
void bind_spatial_shift(torch::Library& m) {
  m.impl("spatial_shift_fwd", &shift_to_new<shift, false>);
  m.impl("spatial_shift_fwd_", &shift_in_place<shift, false>);
  m.impl("spatial_shift_bwd", &shift_to_new<shift, true>);
  m.impl("spatial_shift_bwd_", &shift_in_place<shift, true>);
}

}  // namespace mixer_kernels
