#include "common/stream_launch.cuh"
#include "split_attention/split_attention_call.cuh"

namespace mixer_kernels {

int64_t split_attention_gate_workspace(const SplitAttentionShape& shape, int64_t hidden_size) {
  return SplitGateCall(shape, hidden_size).workspace_bytes();
}

int64_t split_attention_bwd_gate_workspace(const SplitAttentionShape& shape, int64_t hidden_size) {
  return SplitGateBackwardCall(shape, hidden_size).workspace_bytes();
}

void split_attention_gate_cuda(const SplitAttentionShape& shape, int64_t hidden_size, const FeatureView& x,
                               const void* weight1, const void* weight2, float* total, float* weights, void* workspace,
                               cudaStream_t stream) {
  SplitGateCall(shape, hidden_size).run(x, weight1, weight2, total, weights, workspace, StreamLaunch{stream});
}

void split_attention_combine_cuda(const SplitAttentionShape& shape, const FeatureView& x, const float* weights, void* y,
                                  cudaStream_t stream) {
  run_split_combine(shape, x, weights, y, StreamLaunch{stream});
}

void split_attention_bwd_gate_cuda(const SplitAttentionShape& shape, int64_t hidden_size, const FeatureView& dy,
                                   const FeatureView& x, const SplitGateArguments& arguments, float* da,
                                   const SplitGateFactors& factors, void* workspace, cudaStream_t stream) {
  SplitGateBackwardCall(shape, hidden_size).run(dy, x, arguments, da, factors, workspace, StreamLaunch{stream});
}

void split_attention_bwd_features_cuda(const SplitAttentionShape& shape, const FeatureView& dy, const float* weights,
                                       const float* da, void* dx, cudaStream_t stream) {
  run_split_backward_features(shape, dy, weights, da, dx, StreamLaunch{stream});
}

}  // namespace mixer_kernels
