// Launches kernels on a stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda.cuh"

namespace mixer_kernels {

struct StreamLaunch {
  cudaStream_t stream;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel* kernel, int64_t blocks, int threads, size_t shared_bytes,
                  const Arguments&... arguments) const {
    constexpr size_t kWithoutAsking = 48 * 1024;
    if (shared_bytes > kWithoutAsking) {
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    }
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
  }
};

}  // namespace mixer_kernels
