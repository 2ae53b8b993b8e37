#include "common/stream_launch.cuh"
#include "token_mixing/token_mixing_kernels.cuh"

namespace mixer_kernels {

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
