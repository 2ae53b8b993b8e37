// The CPU kernels of the affine-folded linear over the tokens and their registration.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "affine_token_linear/affine_token_linear_binding.h"
#include "common/channel_tiles.h"
#include "common/dispatch.h"
#include "common/grain.h"
#include "common/isa.h"
#include "common/output.h"
#include "common/rows.h"
#include "common/scratch.h"

namespace mixer_kernels {
namespace {

// One call: y = x + layer_scale * (weight (alpha * x + beta) + bias).
template <typename scalar_t>
struct AffineLinear {
  int64_t batch, tokens, channels;
  Rows<const scalar_t> x;
  // With zeros behind them, up to whole vectors; scale = layer_scale * alpha, shift = layer_scale * beta.
  const acc_of<scalar_t>*alpha, *beta, *layer_scale, *scale, *shift;
  const scalar_t* weight;        // (S, S)
  const acc_of<scalar_t>* bias;  // (S)
};

// Where the gradients go: dbias may be null. The sums of the channels are of x * U, of dy * rowsum(weight) and of
// dy * bias, with U = weight^T dy.
template <typename scalar_t>
struct Gradients {
  Rows<scalar_t> dx;
  scalar_t *dweight, *dbias;
  acc_of<scalar_t>* channel_sums;  // (3, C)
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_BF16
#define MIXER_KERNELS_ISA_FILE "affine_token_linear/affine_token_linear_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

// The arguments of an op as the kernels take them; owns the converted ones.
template <typename scalar_t>
class Arguments {
 public:
  using acc_t = acc_of<scalar_t>;

  Arguments(const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta, const at::Tensor& weight,
            const OptionalTensor& bias, const OptionalTensor& layer_scale)
      : alpha_(padded_parameter<scalar_t>(alpha, x.size(2), 1)),
        beta_(padded_parameter<scalar_t>(beta, x.size(2), 0)),
        layer_scale_(padded_parameter<scalar_t>(layer_scale, x.size(2), 1)),
        scale_(padded_parameter<scalar_t>({}, x.size(2), 0)),
        shift_(padded_parameter<scalar_t>({}, x.size(2), 0)),
        weight_(weight.contiguous()),
        bias_(padded_parameter<scalar_t>(bias, x.size(1), 0)),
        call_{x.size(0),          x.size(1),
              x.size(2),          Rows<const scalar_t>(x),
              alpha_.get(),       beta_.get(),
              layer_scale_.get(), scale_.get(),
              shift_.get(),       weight_.const_data_ptr<scalar_t>(),
              bias_.get()} {
    for (int64_t i = 0; i < x.size(2); ++i) {
      scale_.get()[i] = layer_scale_.get()[i] * alpha_.get()[i];
      shift_.get()[i] = layer_scale_.get()[i] * beta_.get()[i];
    }
  }

  const AffineLinear<scalar_t>& call() const { return call_; }

 private:
  Scratch<acc_t> alpha_, beta_, layer_scale_, scale_, shift_;
  at::Tensor weight_;
  Scratch<acc_t> bias_;
  AffineLinear<scalar_t> call_;
};

// Fills the gradient of a parameter of the channels; that of an absent one is empty.
template <typename scalar_t, typename F>
void fill_gradient(const at::Tensor& gradient, const F& value_of) {
  const auto fill = [&](auto* to) {
    for (int64_t i = 0; i < gradient.numel(); ++i) to[i] = value_of(i);
  };
  if (gradient.scalar_type() == at::kFloat) {
    fill(gradient.mutable_data_ptr<float>());
  } else {
    fill(gradient.mutable_data_ptr<scalar_t>());
  }
}

at::Tensor forward(const at::Tensor& x, const OptionalTensor& alpha, const OptionalTensor& beta,
                   const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& layer_scale,
                   bool allow_tf32) {
  at::Tensor y = empty_contiguous_output(x);
  if (x.numel() == 0) return y;
  dispatch_floating(x.scalar_type(), "affine_token_linear", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Arguments<scalar_t> arguments(x, alpha, beta, weight, bias, layer_scale);
    const auto amx = with_amx_product<avx512_bf16::AmxProduct, scalar_t>(allow_tf32, [](auto product) {
      return &avx512_bf16::affine_token_linear_forward<scalar_t, typename decltype(product)::type>;
    });
    select_isa(&baseline::affine_token_linear_forward<scalar_t>, &avx2::affine_token_linear_forward<scalar_t>,
               &avx512::affine_token_linear_forward<scalar_t>, &avx512_bf16::affine_token_linear_forward<scalar_t>,
               amx)(arguments.call(), Rows<scalar_t>(y));
  });
  return y;
}

AffineTokenLinearBackward backward(const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& alpha,
                                   const OptionalTensor& beta, const at::Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& layer_scale, bool allow_tf32) {
  at::Tensor dx = empty_contiguous_output(x);
  at::Tensor dalpha = empty_gradient(alpha, x), dbeta = empty_gradient(beta, x);
  at::Tensor dlayer_scale = empty_gradient(layer_scale, x);
  at::Tensor dweight = empty_gradient(weight, x), dbias = empty_gradient(bias, x);
  if (x.numel() == 0) {
    for (at::Tensor gradient : {dalpha, dbeta, dweight, dbias, dlayer_scale}) gradient.zero_();
    return {dx, dalpha, dbeta, dweight, dbias, dlayer_scale};
  }
  dispatch_floating(x.scalar_type(), "affine_token_linear", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Arguments<scalar_t> arguments(x, alpha, beta, weight, bias, layer_scale);
    const AffineLinear<scalar_t>& call = arguments.call();
    const int64_t channels = x.size(2);
    const Scratch<acc_of<scalar_t>> sums(3 * channels);
    const auto amx = with_amx_product<avx512_bf16::AmxProduct, scalar_t>(allow_tf32, [](auto product) {
      return &avx512_bf16::affine_token_linear_backward<scalar_t, typename decltype(product)::type>;
    });
    select_isa(&baseline::affine_token_linear_backward<scalar_t>, &avx2::affine_token_linear_backward<scalar_t>,
               &avx512::affine_token_linear_backward<scalar_t>, &avx512_bf16::affine_token_linear_backward<scalar_t>,
               amx)(call, Rows<const scalar_t>(dy),
                    Gradients<scalar_t>{Rows<scalar_t>(dx), dweight.mutable_data_ptr<scalar_t>(),
                                        bias ? dbias.mutable_data_ptr<scalar_t>() : nullptr, sums.get()});
    const auto *xu = sums.get(), *dy_rowsum = xu + channels, *dy_bias = dy_rowsum + channels;
    fill_gradient<scalar_t>(dalpha, [&](int64_t i) { return call.layer_scale[i] * xu[i]; });
    fill_gradient<scalar_t>(dbeta, [&](int64_t i) { return call.layer_scale[i] * dy_rowsum[i]; });
    fill_gradient<scalar_t>(
        dlayer_scale, [&](int64_t i) { return call.alpha[i] * xu[i] + call.beta[i] * dy_rowsum[i] + dy_bias[i]; });
  });
  return {dx, dalpha, dbeta, dweight, dbias, dlayer_scale};
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) {
  mixer_kernels::bind_affine_token_linear<&mixer_kernels::forward, &mixer_kernels::backward>(m);
}
