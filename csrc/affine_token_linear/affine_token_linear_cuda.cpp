// Binds the CUDA launchers of the affine-folded linear over the tokens to its ops.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "affine_token_linear/affine_token_linear.h"
#include "affine_token_linear/affine_token_linear_binding.h"
#include "common/element_type_of.h"
#include "common/output.h"
#include "common/token_binding.h"

namespace mixer_kernels {
namespace {

// The arguments of an op as the launchers take them; keeps the contiguous parameters alive.
class Arguments {
 public:
  Arguments(const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta, const at::Tensor& weight,
            const OptionalTensor& bias, const OptionalTensor& layer_scale, bool allow_tf32)
      : alpha_(contiguous(alpha)),
        beta_(contiguous(beta)),
        weight_(weight.contiguous()),
        bias_(contiguous(bias)),
        layer_scale_(contiguous(layer_scale)) {
    constexpr auto op = "affine_token_linear";
    check_token_kernels(op, x, x.size(1));
    arguments_.type = element_type_of(x, op);
    arguments_.allow_tf32 = allow_tf32 || allows_tf32();
    arguments_.batch = x.size(0);
    arguments_.tokens = x.size(1);
    arguments_.channels = x.size(2);
    arguments_.x = view_of(x);
    arguments_.alpha = parameter(alpha_);
    arguments_.beta = parameter(beta_);
    arguments_.layer_scale = parameter(layer_scale_);
    arguments_.weight = data_of(weight_);
    arguments_.bias = data_of(bias_);
    arguments_.multiprocessors = multiprocessors_of(x);
    arguments_.has_warpgroups = has_warpgroups(x);
  }

  const AffineTokenLinearArguments& get() const { return arguments_; }

 private:
  static ChannelParameter parameter(const at::Tensor& t) {
    return {data_of(t), t.defined() && t.scalar_type() == at::kFloat};
  }

  at::Tensor alpha_, beta_, weight_, bias_, layer_scale_;
  AffineTokenLinearArguments arguments_{};
};

at::Tensor forward(const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta,
                   const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& layer_scale,
                   bool allow_tf32) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Arguments arguments(x, alpha, beta, weight, bias, layer_scale, allow_tf32);
  at::Tensor y = empty_contiguous_output(x);
  if (x.numel() > 0) {
    const at::Tensor workspace = empty_workspace(x, affine_token_linear_fwd_workspace(arguments.get()));
    affine_token_linear_fwd_cuda(arguments.get(), y.mutable_data_ptr(), workspace.mutable_data_ptr(),
                                 c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return y;
}

AffineTokenLinearBackward backward(const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& alpha,
                                   const OptionalTensor& beta, const at::Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& layer_scale, bool allow_tf32) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Arguments arguments(x, alpha, beta, weight, bias, layer_scale, allow_tf32);
  at::Tensor dx = empty_contiguous_output(x);
  at::Tensor dalpha = empty_gradient(alpha, x), dbeta = empty_gradient(beta, x);
  at::Tensor dlayer_scale = empty_gradient(layer_scale, x);
  at::Tensor dweight = empty_gradient(weight, x), dbias = empty_gradient(bias, x);
  if (x.numel() > 0) {
    const at::Tensor workspace = empty_workspace(x, affine_token_linear_bwd_workspace(arguments.get(), view_of(dy)));
    affine_token_linear_bwd_cuda(arguments.get(), view_of(dy),
                                 {target_of(dx), target_of(dalpha), target_of(dbeta), target_of(dweight),
                                  target_of(dbias), target_of(dlayer_scale)},
                                 workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  } else {
    for (const at::Tensor& gradient : {dalpha, dbeta, dweight, dbias, dlayer_scale}) gradient.zero_();
  }
  return {dx, dalpha, dbeta, dweight, dbias, dlayer_scale};
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CUDA, m) {
  mixer_kernels::bind_affine_token_linear<&mixer_kernels::forward, &mixer_kernels::backward>(m);
}
