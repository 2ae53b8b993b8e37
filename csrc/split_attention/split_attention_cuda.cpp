// Binds the CUDA launchers of the shifted split attention to its ops.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/cuda_binding.h"
#include "common/element_type_of.h"
#include "split_attention/split_attention.h"
#include "split_attention/split_attention_binding.h"

namespace mixer_kernels {
namespace {

constexpr auto kOp = "split_attention";

FeatureView view_of_map(const at::Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

// `channels` are those of one branch.
SplitAttentionShape shape_of(const at::Tensor& x, int64_t channels) {
  TORCH_CHECK_TYPE(x.scalar_type() != at::kDouble, kOp, ": x must have dtype float32, float16 or bfloat16 on CUDA, ",
                   "got ", x.scalar_type());
  // The kernels count pixels of an image, channels and blocks in 32 bits.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  const int64_t height = x.size(1), width = x.size(2);
  const int64_t chunks = (channels + kSplitLanes - 1) / kSplitLanes;
  const bool is_counted = std::max(height, channels) < kMost && width < kMost / height &&
                          (height * width + kSplitRun - 1) / kSplitRun <= kMost / chunks / x.size(0);
  TORCH_CHECK_VALUE(is_counted, kOp, ": x must have fewer than 2^30 channels, blocks, and pixels in an image, ",
                    "got shape ", x.sizes());
  return {element_type_of(x, kOp), x.size(0), height, width, channels};
}

// A contiguous tensor from a multiple of 16 bytes on.
at::Tensor aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : t.clone();
}

// The size of the hidden layer behind the matrices.
int64_t hidden_size_of(const at::Tensor& weight2) {
  TORCH_CHECK_VALUE(std::max(weight2.size(0), weight2.size(1)) < std::numeric_limits<int32_t>::max() / 2, kOp,
                    ": weight2 must have fewer than 2^30 rows and columns, got shape ", weight2.sizes());
  return weight2.size(1);
}

struct CudaKernels {
  static void forward(const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& weight2, const at::Tensor& y,
                      const at::Tensor& total, const at::Tensor& weights) {
    const c10::cuda::CUDAGuard guard(x.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    const SplitAttentionShape shape = shape_of(x, y.size(3));
    const int64_t hidden_size = hidden_size_of(weight2);
    const at::Tensor matrix1 = aligned(weight1), matrix2 = aligned(weight2);
    const at::Tensor workspace = empty_workspace(x, split_attention_gate_workspace(shape, hidden_size));
    split_attention_gate_cuda(shape, hidden_size, view_of_map(x), matrix1.const_data_ptr(), matrix2.const_data_ptr(),
                              total.mutable_data_ptr<float>(), weights.mutable_data_ptr<float>(),
                              workspace.mutable_data_ptr(), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    split_attention_combine_cuda(shape, view_of_map(x), weights.const_data_ptr<float>(), y.mutable_data_ptr(), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& total, const at::Tensor& weights,
                       const at::Tensor& weight1, const at::Tensor& weight2, const SplitGradients& to) {
    const c10::cuda::CUDAGuard guard(x.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    const SplitAttentionShape shape = shape_of(x, dy.size(3));
    const int64_t hidden_size = hidden_size_of(weight2);
    const at::Tensor sums = aligned(total), matrix1 = aligned(weight1), matrix2 = aligned(weight2);
    const at::Tensor workspace = empty_workspace(x, split_attention_bwd_gate_workspace(shape, hidden_size));
    const at::Tensor da = at::empty_like(total);
    const auto factor = [&](int64_t columns) { return at::empty({shape.batch, columns}, x.options()); };
    const at::Tensor own_total = factor(shape.channels), hidden = factor(hidden_size), dinner = factor(hidden_size);
    const at::Tensor dlogits = factor(kBranches * shape.channels);
    split_attention_bwd_gate_cuda(shape, hidden_size, view_of_map(dy), view_of_map(x),
                                  {sums.const_data_ptr<float>(), weights.const_data_ptr<float>(),
                                   matrix1.const_data_ptr(), matrix2.const_data_ptr()},
                                  da.mutable_data_ptr<float>(),
                                  {own_total.mutable_data_ptr(), hidden.mutable_data_ptr(), dinner.mutable_data_ptr(),
                                   dlogits.mutable_data_ptr()},
                                  workspace.mutable_data_ptr(), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (to.wants_input) {
      split_attention_bwd_features_cuda(shape, view_of_map(dy), weights.const_data_ptr<float>(),
                                        da.const_data_ptr<float>(), to.dx.mutable_data_ptr(), stream);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (to.wants_weights) {
      multiply(to.dweight1, dinner, own_total);
      multiply(to.dweight2, dlogits, hidden);
    }
  }

 private:
  // to = left^T @ right.
  static void multiply(at::Tensor to, const at::Tensor& left, const at::Tensor& right) {
    // Autocast would cast them, were it on.
    const c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
    at::mm_out(to, left.t(), right);
  }
};

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CUDA, m) { mixer_kernels::bind_split_attention<mixer_kernels::CudaKernels>(m); }
