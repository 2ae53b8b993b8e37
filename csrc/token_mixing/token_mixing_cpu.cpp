// The CPU kernels of token mixing and their registration.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/activation.h"
#include "common/channel_tiles.h"
#include "common/dispatch.h"
#include "common/grain.h"
#include "common/isa.h"
#include "common/normal_cdf.h"
#include "common/output.h"
#include "common/rows.h"
#include "common/scratch.h"
#include "token_mixing/token_mixing_binding.h"

namespace mixer_kernels {
namespace {

// One call: y = x + weight2 act(weight1 n + bias1) + bias2, or without weight2 act(weight1 n + bias1).
template <typename scalar_t>
struct Mixing {
  int64_t batch, tokens, channels, hidden;
  double eps;
  Activation activation;
  Rows<const scalar_t> x;
  const acc_of<scalar_t>*norm_weight, *norm_bias;  // with zeros behind them, up to whole vectors
  const scalar_t *weight1, *weight2;               // (D, S); (S, D) or null
  const acc_of<scalar_t>*bias1, *bias2;            // or null
};

template <typename acc_t>
struct Statistics {
  const acc_t *mean, *rstd;
};

// Where the gradients go: null for those of absent parameters.
template <typename scalar_t>
struct Gradients {
  Rows<scalar_t> dx;
  acc_of<scalar_t>*dnorm_weight, *dnorm_bias;
  scalar_t *dweight1, *dbias1, *dweight2, *dbias2;
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_BF16
#define MIXER_KERNELS_ISA_FILE "token_mixing/token_mixing_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

// The arguments of an op as the kernels take them; owns the converted ones.
template <typename scalar_t>
class Arguments {
 public:
  using acc_t = acc_of<scalar_t>;

  Arguments(const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
            const at::Tensor& weight1, const OptionalTensor& bias1, const OptionalTensor& weight2,
            const OptionalTensor& bias2, double eps, int64_t activation)
      : norm_weight_(padded_parameter<scalar_t>(norm_weight, x.size(2), 1)),
        norm_bias_(padded_parameter<scalar_t>(norm_bias, x.size(2), 0)),
        weight1_(weight1.contiguous()),
        weight2_(weight2 ? weight2->contiguous() : at::Tensor()),
        bias1_(bias1 ? padded_parameter<scalar_t>(bias1, weight1.size(0), 0) : Scratch<acc_t>()),
        bias2_(bias2 ? padded_parameter<scalar_t>(bias2, x.size(1), 0) : Scratch<acc_t>()),
        mixing_{x.size(0),
                x.size(1),
                x.size(2),
                weight1.size(0),
                eps,
                static_cast<Activation>(activation),
                Rows<const scalar_t>(x),
                norm_weight_.get(),
                norm_bias_.get(),
                weight1_.const_data_ptr<scalar_t>(),
                weight2 ? weight2_.const_data_ptr<scalar_t>() : nullptr,
                bias1_.get(),
                bias2_.get()} {}

  const Mixing<scalar_t>& mixing() const { return mixing_; }

 private:
  Scratch<acc_t> norm_weight_, norm_bias_;
  at::Tensor weight1_, weight2_;
  Scratch<acc_t> bias1_, bias2_;
  Mixing<scalar_t> mixing_;
};

TokenMixingForward forward(const char* op, const at::Tensor& x, const OptionalTensor& norm_weight,
                           const OptionalTensor& norm_bias, const at::Tensor& weight1, const OptionalTensor& bias1,
                           const OptionalTensor& weight2, const OptionalTensor& bias2, double eps, int64_t activation,
                           bool allow_tf32) {
  const int64_t rows = weight2 ? x.size(1) : weight1.size(0);
  at::Tensor y = in_huge_pages(at::empty({x.size(0), rows, x.size(2)}, x.options()));
  at::Tensor mean = empty_statistics(x), rstd = empty_statistics(x);
  if (x.numel() == 0) return {y, mean, rstd};
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_of<scalar_t>;
    const Arguments<scalar_t> arguments(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation);
    const auto amx = with_amx_product<avx512_bf16::AmxProduct, scalar_t>(allow_tf32, [](auto product) {
      return &avx512_bf16::token_mixing_forward<scalar_t, typename decltype(product)::type>;
    });
    select_isa(&baseline::token_mixing_forward<scalar_t>, &avx2::token_mixing_forward<scalar_t>,
               &avx512::token_mixing_forward<scalar_t>, &avx512_bf16::token_mixing_forward<scalar_t>, amx)(
        arguments.mixing(), Rows<scalar_t>(y), mean.mutable_data_ptr<acc_t>(), rstd.mutable_data_ptr<acc_t>());
  });
  return {y, mean, rstd};
}

TokenMixingBackward backward(const char* op, const at::Tensor& dy, const at::Tensor& x, const at::Tensor& mean,
                             const at::Tensor& rstd, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                             const at::Tensor& weight1, const OptionalTensor& bias1, const OptionalTensor& weight2,
                             const OptionalTensor& bias2, int64_t activation, bool allow_tf32) {
  at::Tensor dx = empty_contiguous_output(x);
  at::Tensor dweight1 = empty_gradient(weight1, x), dbias1 = empty_gradient(bias1, x);
  at::Tensor dweight2 = empty_gradient(weight2, x), dbias2 = empty_gradient(bias2, x);
  at::Tensor dnorm_weight = empty_gradient(norm_weight, x), dnorm_bias = empty_gradient(norm_bias, x);
  if (x.numel() == 0) {
    for (at::Tensor gradient : {dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2}) gradient.zero_();
    return {dx, dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2};
  }
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_of<scalar_t>;
    const Arguments<scalar_t> arguments(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, 0.0, activation);
    const auto norm_options = x.options().dtype(c10::CppTypeToScalarType<acc_t>::value);
    at::Tensor norm_sums = at::empty({2, x.size(2)}, norm_options);
    const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
    const auto target = [](const at::Tensor& t, bool present) {
      return present ? t.mutable_data_ptr<scalar_t>() : nullptr;
    };
    const auto amx = with_amx_product<avx512_bf16::AmxProduct, scalar_t>(allow_tf32, [](auto product) {
      return &avx512_bf16::token_mixing_backward<scalar_t, typename decltype(product)::type>;
    });
    select_isa(&baseline::token_mixing_backward<scalar_t>, &avx2::token_mixing_backward<scalar_t>,
               &avx512::token_mixing_backward<scalar_t>, &avx512_bf16::token_mixing_backward<scalar_t>,
               amx)(arguments.mixing(), Statistics<acc_t>{means.const_data_ptr<acc_t>(), rstds.const_data_ptr<acc_t>()},
                    Rows<const scalar_t>(dy),
                    Gradients<scalar_t>{Rows<scalar_t>(dx), norm_sums.mutable_data_ptr<acc_t>(),
                                        norm_sums.mutable_data_ptr<acc_t>() + x.size(2), target(dweight1, true),
                                        target(dbias1, bias1.has_value()), target(dweight2, weight2.has_value()),
                                        target(dbias2, bias2.has_value())});
    if (norm_weight) dnorm_weight.copy_(norm_sums[0]);
    if (norm_bias) dnorm_bias.copy_(norm_sums[1]);
  });
  return {dx, dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2};
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) {
  mixer_kernels::bind_token_mixing<&mixer_kernels::forward, &mixer_kernels::backward>(m);
}
