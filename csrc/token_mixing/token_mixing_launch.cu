#include "token_mixing/token_mixing_kernels.cuh"

namespace mixer_kernels {
namespace {

// Launches on a stream.
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

}  // namespace

int64_t token_mixing_fwd_workspace(const TokenMixingArguments& arguments) {
  int64_t bytes = 0;
  with_token_mixing(arguments, nullptr, StreamLaunch{}, [&](auto mixing) {
    mixing.plan_forward();
    bytes = mixing.workspace_bytes();
  });
  return bytes;
}

int64_t token_mixing_bwd_workspace(const TokenMixingArguments& arguments, const TokenView& dy) {
  int64_t bytes = 0;
  with_token_mixing(arguments, nullptr, StreamLaunch{}, [&](auto mixing) {
    mixing.plan_backward(dy);
    bytes = mixing.workspace_bytes();
  });
  return bytes;
}

void token_mixing_fwd_cuda(const TokenMixingArguments& arguments, float eps, const TokenMixingOutputs& outputs,
                           void* workspace, cudaStream_t stream) {
  with_token_mixing(arguments, workspace, StreamLaunch{stream}, [&](auto mixing) {
    mixing.plan_forward();
    mixing.run_forward(eps, outputs);
  });
}

void token_mixing_bwd_cuda(const TokenMixingArguments& arguments, const TokenView& dy,
                           const TokenMixingGradients& gradients, void* workspace, cudaStream_t stream) {
  with_token_mixing(arguments, workspace, StreamLaunch{stream}, [&](auto mixing) {
    mixing.plan_backward(dy);
    mixing.run_backward(gradients);
  });
}

}  // namespace mixer_kernels
