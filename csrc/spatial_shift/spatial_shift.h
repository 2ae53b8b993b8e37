// The spatial shift of S2-MLP: what CPU and CUDA share. Plain pointers and sizes, no torch header.
#pragma once

#include <cstdint>

#include "common/element_type.h"

typedef struct CUstream_st* cudaStream_t;  // as CUDA declares it; CPU builds have no CUDA header

namespace mixer_kernels {

// "+h": y[h] = x[h - 1]; the border keeps its own value. The codes are those of `ops/spatial_shift/op.py`.
enum class Direction : int8_t { kPlusH = 0, kMinusH = 1, kPlusW = 2, kMinusW = 3 };

// A (B, H, W, C) view; strides in elements.
struct ShiftShape {
  int64_t batch, height, width, channels;
};
struct ShiftStrides {
  int64_t b, h, w, c;
};

// Shifts in to out (or applies the adjoint) on the stream; in == out is allowed, any other overlap is not. The caller
// checks for launch errors.
void spatial_shift_cuda(ElementType type, const void* in, const ShiftStrides& in_strides, void* out,
                        const ShiftStrides& out_strides, const ShiftShape& shape, const Direction* directions,
                        int64_t groups, bool adjoint, cudaStream_t stream);

}  // namespace mixer_kernels
