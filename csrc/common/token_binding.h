// What the bindings of CUDA launchers over the tokens share.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/cuda_binding.h"
#include "common/token_view.h"

namespace mixer_kernels {

inline TokenView view_of(const at::Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

// `rows` is the larger of the numbers of tokens and of hidden units.
inline void check_token_kernels(const char* op, const at::Tensor& x, int64_t rows) {
  TORCH_CHECK_TYPE(x.scalar_type() != at::kDouble, op, ": x must have dtype float32, float16 or bfloat16 on CUDA, ",
                   "got ", x.scalar_type());
  // The kernels count rows, channels, tiles and chunks in 32 bits; a tile has at least 64 rows, a chunk 16 channels.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max(), kTile = 128;
  const int64_t tiles = x.size(0) * ((x.size(2) + 15) / 16) * ((rows + 63) / 64);
  TORCH_CHECK_VALUE(std::max(rows, x.size(2)) + kTile < kMost && tiles < kMost, op,
                    ": x must have fewer than 2^31 rows, channels and tiles, got shape ", x.sizes());
}

inline bool allows_tf32() { return at::globalContext().allowTF32CuBLAS(); }

}  // namespace mixer_kernels
