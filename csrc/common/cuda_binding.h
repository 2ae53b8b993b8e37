// What the bindings of CUDA launchers share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>

#include <cstdint>
#include <string_view>

#include "common/arguments.h"

namespace mixer_kernels {

inline at::Tensor contiguous(const OptionalTensor& t) { return t ? t->contiguous() : at::Tensor(); }

inline const void* data_of(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// Where a gradient goes; null for an absent parameter's.
inline void* target_of(const at::Tensor& gradient) {
  return gradient.numel() > 0 ? gradient.mutable_data_ptr() : nullptr;
}

inline int multiprocessors_of(const at::Tensor& x) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, x.device().index()));
  return count;
}

// Whether x's device runs the kernels of common/warpgroup.cuh, which are compiled for its very architecture or not at
// all. Beside code for the plain one it is unknown which of both runs.
inline bool has_warpgroups(const at::Tensor& x) {
  constexpr std::string_view kArchs = MIXER_KERNELS_CUDA_ARCHS;
  constexpr size_t kOwn = kArchs.find("9.0a");
  constexpr bool kIsAlone = kOwn != std::string_view::npos && kArchs.find("9.0") == kOwn &&
                            kArchs.find("9.0", kOwn + 1) == std::string_view::npos;
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, x.device().index()));
  return kIsAlone && major == 9;
}

inline at::Tensor empty_workspace(const at::Tensor& x, int64_t bytes) {
  return at::empty({bytes}, x.options().dtype(at::kByte));
}

}  // namespace mixer_kernels
