#include "affine_token_linear/affine_token_linear_kernels.cuh"
#include "common/stream_launch.cuh"

namespace mixer_kernels {

int64_t affine_token_linear_fwd_workspace(const AffineTokenLinearArguments& arguments) {
  int64_t bytes = 0;
  with_affine_token_linear(arguments, nullptr, StreamLaunch{}, [&](auto linear) {
    linear.plan_forward();
    bytes = linear.workspace_bytes();
  });
  return bytes;
}

int64_t affine_token_linear_bwd_workspace(const AffineTokenLinearArguments& arguments, const TokenView& dy) {
  int64_t bytes = 0;
  with_affine_token_linear(arguments, nullptr, StreamLaunch{}, [&](auto linear) {
    linear.plan_backward(dy);
    bytes = linear.workspace_bytes();
  });
  return bytes;
}

void affine_token_linear_fwd_cuda(const AffineTokenLinearArguments& arguments, void* y, void* workspace,
                                  cudaStream_t stream) {
  with_affine_token_linear(arguments, workspace, StreamLaunch{stream}, [&](auto linear) {
    linear.plan_forward();
    linear.run_forward(y);
  });
}

void affine_token_linear_bwd_cuda(const AffineTokenLinearArguments& arguments, const TokenView& dy,
                                  const AffineTokenLinearGradients& gradients, void* workspace, cudaStream_t stream) {
  with_affine_token_linear(arguments, workspace, StreamLaunch{stream}, [&](auto linear) {
    linear.plan_backward(dy);
    linear.run_backward(gradients);
  });
}

}  // namespace mixer_kernels
