#include "common/stream_launch.cuh"
#include "split_attention/split_attention_call.cuh"

namespace mixer_kernels {

int64_t split_attention_sums_workspace(const SplitAttentionShape& shape) {
  return SplitSumsCall<false>(shape).workspace_bytes();
}

int64_t split_attention_bwd_weights_workspace(const SplitAttentionShape& shape) {
  return SplitSumsCall<true>(shape).workspace_bytes();
}

void split_attention_sums_cuda(const SplitAttentionShape& shape, const FeatureView& x, float* a, void* workspace,
                               cudaStream_t stream) {
  SplitSumsCall<false>(shape).run({}, x, a, workspace, StreamLaunch{stream});
}

void split_attention_combine_cuda(const SplitAttentionShape& shape, const FeatureView& x, const float* weights, void* y,
                                  cudaStream_t stream) {
  run_split_combine(shape, x, weights, y, StreamLaunch{stream});
}

void split_attention_bwd_weights_cuda(const SplitAttentionShape& shape, const FeatureView& dy, const FeatureView& x,
                                      float* dweights, void* workspace, cudaStream_t stream) {
  SplitSumsCall<true>(shape).run(dy, x, dweights, workspace, StreamLaunch{stream});
}

void split_attention_bwd_features_cuda(const SplitAttentionShape& shape, const FeatureView& dy, const float* weights,
                                       const float* da, void* dx, cudaStream_t stream) {
  run_split_backward_features(shape, dy, weights, da, dx, StreamLaunch{stream});
}

}  // namespace mixer_kernels
