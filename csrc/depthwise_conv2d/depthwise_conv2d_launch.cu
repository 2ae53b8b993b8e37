#include "common/stream_launch.cuh"
#include "depthwise_conv2d/depthwise_conv2d_kernels.cuh"

namespace mixer_kernels {

int64_t depthwise_conv2d_workspace(const ConvolutionArguments& arguments) {
  return ConvolutionCall(arguments, nullptr).workspace_bytes();
}

int64_t depthwise_conv2d_bwd_weight_workspace(const WeightGradientArguments& arguments) {
  return TapGradientCall(arguments, nullptr).workspace_bytes();
}

int64_t depthwise_epilogue_sums_workspace(const EpilogueArguments& arguments) {
  return EpilogueSumsCall(arguments, nullptr).workspace_bytes();
}

void depthwise_conv2d_cuda(const ConvolutionArguments& arguments, void* workspace, cudaStream_t stream) {
  ConvolutionCall(arguments, workspace).run(StreamLaunch{stream});
}

void depthwise_conv2d_bwd_weight_cuda(const WeightGradientArguments& arguments, void* workspace, cudaStream_t stream) {
  TapGradientCall(arguments, workspace).run(StreamLaunch{stream});
}

void depthwise_epilogue_fwd_cuda(const EpilogueArguments& arguments, const ChannelParameter& scale,
                                 const ChannelParameter& shift, const void* residual, void* y, cudaStream_t stream) {
  run_epilogue_forward(arguments, scale, shift, residual, y, StreamLaunch{stream});
}

void depthwise_epilogue_sums_cuda(const EpilogueArguments& arguments, const void* dy, const ChannelParameter& center,
                                  float* sum_dy, float* sum_dy_act, void* workspace, cudaStream_t stream) {
  EpilogueSumsCall(arguments, workspace).run(dy, center, sum_dy, sum_dy_act, StreamLaunch{stream});
}

void depthwise_epilogue_bwd_cuda(const EpilogueArguments& arguments, const void* dy, const ChannelParameter& c0,
                                 const ChannelParameter& c1, const ChannelParameter& c2, void* dz,
                                 cudaStream_t stream) {
  run_epilogue_backward(arguments, dy, c0, c1, c2, dz, StreamLaunch{stream});
}

}  // namespace mixer_kernels
