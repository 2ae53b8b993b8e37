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
    constexpr size_t kWithoutAsking = 48 * 1024, kEverywhere = 99 * 1024;
    if (shared_bytes > kWithoutAsking) {
      // Not just what this launch wants: another thread may be about to launch the kernel with more. Arrays that the
      // kernel declares __shared__ would have to be left room: such kernels have none.
      const size_t most = shared_bytes > kEverywhere ? shared_bytes : kEverywhere;
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
    }
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
  }
};

}  // namespace mixer_kernels
