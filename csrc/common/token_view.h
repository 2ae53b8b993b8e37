// A tensor of tokens as the CUDA launchers take it.
#pragma once

#include <cstdint>

namespace mixer_kernels {

// A (B, rows, C) tensor; strides in elements.
struct TokenView {
  const void* data;
  int64_t batch_stride, row_stride, channel_stride;
};

}  // namespace mixer_kernels
