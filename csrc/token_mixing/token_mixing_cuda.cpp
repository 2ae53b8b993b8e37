// Binds the CUDA launchers of token mixing to its ops.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "common/element_type_of.h"
#include "common/token_binding.h"
#include "token_mixing/token_mixing.h"
#include "token_mixing/token_mixing_binding.h"

namespace mixer_kernels {
namespace {

// The arguments of an op as the launchers take them; keeps the contiguous parameters alive.
class Arguments {
 public:
  Arguments(const char* op, const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
            const at::Tensor& weight1, const OptionalTensor& bias1, const OptionalTensor& weight2,
            const OptionalTensor& bias2, int64_t activation, bool allow_tf32)
      : norm_weight_(contiguous(norm_weight)),
        norm_bias_(contiguous(norm_bias)),
        weight1_(weight1.contiguous()),
        bias1_(contiguous(bias1)),
        weight2_(contiguous(weight2)),
        bias2_(contiguous(bias2)) {
    check_token_kernels(op, x, std::max(x.size(1), weight1.size(0)));
    TORCH_CHECK_TYPE(!norm_weight || !norm_bias || norm_weight->scalar_type() == norm_bias->scalar_type(), op,
                     ": norm_bias must have the dtype of norm_weight, got ", norm_bias->scalar_type());
    TORCH_CHECK_VALUE(x.size(1) > 0 && weight1.size(0) > 0, op,
                      ": x and the weights must have at least one token and one hidden unit, got ", x.size(1), " and ",
                      weight1.size(0));
    arguments_.type = element_type_of(x, op);
    const OptionalTensor& norm = norm_weight ? norm_weight : norm_bias;
    arguments_.norm_is_float = norm && norm->scalar_type() == at::kFloat;
    arguments_.allow_tf32 = allow_tf32 || allows_tf32();
    arguments_.activation = static_cast<Activation>(activation);
    arguments_.batch = x.size(0);
    arguments_.tokens = x.size(1);
    arguments_.channels = x.size(2);
    arguments_.hidden = weight1.size(0);
    arguments_.x = view_of(x);
    arguments_.norm_weight = data_of(norm_weight_);
    arguments_.norm_bias = data_of(norm_bias_);
    arguments_.weight1 = data_of(weight1_);
    arguments_.bias1 = data_of(bias1_);
    arguments_.weight2 = data_of(weight2_);
    arguments_.bias2 = data_of(bias2_);
    arguments_.multiprocessors = multiprocessors_of(x);
    arguments_.has_warpgroups = has_warpgroups(x);
  }

  const TokenMixingArguments& get() const { return arguments_; }

  void set_statistics(const at::Tensor& mean, const at::Tensor& rstd) {
    mean_ = mean.contiguous();
    rstd_ = rstd.contiguous();
    arguments_.mean = mean_.const_data_ptr<float>();
    arguments_.rstd = rstd_.const_data_ptr<float>();
  }

 private:
  at::Tensor norm_weight_, norm_bias_, weight1_, bias1_, weight2_, bias2_, mean_, rstd_;
  TokenMixingArguments arguments_{};
};

TokenMixingForward forward(const char* op, const at::Tensor& x, const OptionalTensor& norm_weight,
                           const OptionalTensor& norm_bias, const at::Tensor& weight1, const OptionalTensor& bias1,
                           const OptionalTensor& weight2, const OptionalTensor& bias2, double eps, int64_t activation,
                           bool allow_tf32) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Arguments arguments(op, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation, allow_tf32);
  const int64_t rows = weight2 ? x.size(1) : weight1.size(0);
  at::Tensor y = at::empty({x.size(0), rows, x.size(2)}, x.options());
  at::Tensor mean = empty_statistics(x), rstd = empty_statistics(x);
  if (x.numel() > 0) {
    const at::Tensor workspace = empty_workspace(x, token_mixing_fwd_workspace(arguments.get()));
    token_mixing_fwd_cuda(arguments.get(), static_cast<float>(eps),
                          {y.mutable_data_ptr(), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>()},
                          workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {y, mean, rstd};
}

TokenMixingBackward backward(const char* op, const at::Tensor& dy, const at::Tensor& x, const at::Tensor& mean,
                             const at::Tensor& rstd, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                             const at::Tensor& weight1, const OptionalTensor& bias1, const OptionalTensor& weight2,
                             const OptionalTensor& bias2, int64_t activation, bool allow_tf32) {
  const c10::cuda::CUDAGuard guard(x.device());
  Arguments arguments(op, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation, allow_tf32);
  arguments.set_statistics(mean, rstd);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  at::Tensor dnorm_weight = empty_gradient(norm_weight, x), dnorm_bias = empty_gradient(norm_bias, x);
  at::Tensor dweight1 = empty_gradient(weight1, x), dbias1 = empty_gradient(bias1, x);
  at::Tensor dweight2 = empty_gradient(weight2, x), dbias2 = empty_gradient(bias2, x);
  if (x.numel() > 0) {
    const at::Tensor workspace = empty_workspace(x, token_mixing_bwd_workspace(arguments.get(), view_of(dy)));
    token_mixing_bwd_cuda(arguments.get(), view_of(dy),
                          {target_of(dx), target_of(dnorm_weight), target_of(dnorm_bias), target_of(dweight1),
                           target_of(dbias1), target_of(dweight2), target_of(dbias2)},
                          workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  } else {
    for (const at::Tensor& gradient : {dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2}) gradient.zero_();
  }
  return {dx, dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2};
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CUDA, m) {
  mixer_kernels::bind_token_mixing<&mixer_kernels::forward, &mixer_kernels::backward>(m);
}
