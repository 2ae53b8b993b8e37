// Token mixing, forward and backward, as a sequence of kernels; the launcher and the host emulator run the same one.
//
// Forward: n = LayerNorm(x); h = act(weight1 @ n + bias1); y = x + weight2 @ h + bias2. Backward: z and dh = weight2^T
// @ dy side by side, from which h and dz; dn = weight1^T @ dz; the weights' gradients; LayerNorm's backward pass.
// Nothing is transposed: channels stay contiguous, and all products are weight @ matrix, one image at a time.
//
// n is written once instead of being computed wherever it is loaded: a product loads it once for every tile of rows,
// and normalising there would take about as many instructions as the product itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/sum_terms.cuh"
#include "common/token_call.cuh"
#include "token_mixing/token_mixing.h"
#include "token_mixing/token_norm.cuh"
#include "token_mixing/token_products.cuh"
#include "token_mixing/warpgroup_hidden.cuh"
#include "token_mixing/warpgroup_mlp.cuh"

namespace mixer_kernels {

// z and dh of a tile take twice the accumulators.
template <typename scalar_t, bool kTensorCores>
using HiddenTile = std::conditional_t<kTensorCores, TensorTile<scalar_t, 64, 1, 2, Order::kDepthByColumn>,
                                      FmaTile<32, 2, Order::kDepthByColumn>>;

// One call: its sizes, the operands in a form that the products take, and the launches.
template <typename scalar_t, bool kTensorCores, typename Launch>
class TokenMixing {
 public:
  TokenMixing(const TokenMixingArguments& arguments, void* workspace, const Launch& launch)
      : arguments_(arguments),
        call_(arguments.batch, arguments.channels, arguments.multiprocessors, workspace, launch),
        tokens_(static_cast<int>(arguments.tokens)),
        hidden_(static_cast<int>(arguments.hidden)),
        x_(call_.plan_features(arguments.x, tokens_)) {}

  int64_t workspace_bytes() const { return call_.workspace.bytes(); }

  void plan_forward() {
    if (uses_warpgroups()) {
      plan_mlp_weights();
      statistics_ = take_floats(arguments_.batch * WarpgroupTile::kTokens * 2);
      return;
    }
    n_ = take_features(tokens_);
    weight1_ = call_.plan_weight(arguments_.weight1, hidden_, tokens_, false);
    if (arguments_.weight2 == nullptr) return;
    weight2_ = call_.plan_weight(arguments_.weight2, tokens_, hidden_, false);
    h_ = take_features(hidden_);
  }

  void run_forward(float eps, const TokenMixingOutputs& outputs) {
    call_.run_pack();
    if (uses_warpgroups()) {
      run_warpgroup_forward(eps, outputs);
      return;
    }
    run_normalise<true>(eps, outputs.mean, outputs.rstd);
    const Operand<scalar_t> n = call_.features(n_, tokens_);
    const ActivateEpilogue<scalar_t> activate{parameter(arguments_.bias1), arguments_.activation};
    if (arguments_.weight2 == nullptr) {
      call_.run_linear(activate, call_.contiguous(outputs.y, hidden_), weight1_, n);
      return;
    }
    call_.run_linear(activate, call_.pitched(h_, hidden_), weight1_, n);
    const ResidualEpilogue<scalar_t> residual{parameter(arguments_.bias2)};
    call_.run_linear(residual, call_.contiguous(outputs.y, tokens_), weight2_, call_.features(h_, hidden_), x_);
  }

  void plan_backward(const TokenView& dy) {
    n_ = take_features(tokens_);
    const bool is_mlp = arguments_.weight2 != nullptr;
    const bool has_slope = is_mlp || arguments_.activation != Activation::kNone;
    weight1_transposed_ = call_.plan_weight(arguments_.weight1, tokens_, hidden_, true);
    dy_ = call_.plan_features(dy, is_mlp ? tokens_ : hidden_);
    if (uses_warpgroups()) {
      plan_mlp_weights();
    } else {
      if (has_slope) weight1_ = call_.plan_weight(arguments_.weight1, hidden_, tokens_, false);
      if (is_mlp) weight2_transposed_ = call_.plan_weight(arguments_.weight2, hidden_, tokens_, true);
    }
    if (has_slope) dz_ = take_features(hidden_);
    if (is_mlp) h_ = take_features(hidden_);

    const int64_t units = arguments_.tokens * arguments_.hidden;
    splits_ = call_.plan_splits(tokens_, hidden_);
    dweight1_ = take_floats(splits_.count * units);
    dbias1_ = take_floats(splits_.count * arguments_.hidden);
    if (is_mlp) {
      dweight2_ = take_floats(splits_.count * units);
      dy_sums_ = take_floats(arguments_.batch * arguments_.tokens);
    }
    plan_norm_backward();
    dnorm_ = take_floats(norm_blocks_ * 2 * arguments_.channels);
  }

  void run_backward(const TokenMixingGradients& gradients) {
    const bool is_mlp = arguments_.weight2 != nullptr;
    call_.run_pack();
    run_normalise<false>(0.0f, const_cast<float*>(arguments_.mean), const_cast<float*>(arguments_.rstd));

    const Operand<scalar_t> n = call_.features(n_, tokens_);
    Operand<scalar_t> dz = dy_;
    if (is_mlp) {
      run_hidden_backward(n);
      dz = call_.features(dz_, hidden_);
    } else if (arguments_.activation != Activation::kNone) {
      const SlopeEpilogue<scalar_t> slope{parameter(arguments_.bias1), arguments_.activation};
      call_.run_linear(slope, call_.pitched(dz_, hidden_), weight1_, n, dy_);
      dz = call_.features(dz_, hidden_);
    }

    // dx holds dn until LayerNorm's backward pass.
    call_.run_linear(ActivateEpilogue<scalar_t>{nullptr, Activation::kNone}, call_.contiguous(gradients.dx, tokens_),
                     weight1_transposed_, dz);
    run_weight_gradient(n, dz, dweight1_, 1, tokens_, gradients.dbias1 != nullptr ? dbias1_ : nullptr);
    if (is_mlp) run_weight_gradient(dy_, call_.features(h_, hidden_), dweight2_, hidden_, 1, nullptr);
    run_norm_backward(gradients);
    run_sums(gradients);
  }

 private:
  using Call = TokenCall<scalar_t, kTensorCores, Launch>;
  static constexpr int kVec = Call::kVec;
  static constexpr bool kIsHalf = sizeof(scalar_t) == 2;

  static const scalar_t* parameter(const void* data) { return static_cast<const scalar_t*>(data); }

  float* take_floats(int64_t count) { return call_.workspace.template take<float>(count); }
  scalar_t* take_features(int64_t rows) {
    return call_.workspace.template take<scalar_t>(call_.feature_elements(rows));
  }

  NormParameters<scalar_t> norm_parameters() const {
    return {arguments_.norm_weight, arguments_.norm_bias, arguments_.norm_is_float};
  }

  // Whether kCount neighbouring channels of LayerNorm's parameters and of dense tensors are aligned as one access.
  bool channels_align(int count) const {
    const auto is_aligned = [&](const void* data, int size) {
      return reinterpret_cast<uintptr_t>(data) % std::min(count * size, 16) == 0;
    };
    const int norm_size = arguments_.norm_is_float ? 4 : kSize;
    return call_.channels % count == 0 && is_aligned(arguments_.norm_weight, norm_size) &&
           is_aligned(arguments_.norm_bias, norm_size);
  }

  bool uses_warpgroups() const {
    return kIsHalf && arguments_.has_warpgroups && arguments_.weight2 != nullptr && WarpgroupTile::takes(tokens_);
  }

  void plan_mlp_weights() {
    mlp_weights_.chunks = MlpWeights<scalar_t>::chunks_of(hidden_);
    mlp_weights_.slots = call_.workspace.template take<scalar_t>(mlp_weights_.slot_elements());
    mlp_weights_.bias1 = take_floats(mlp_weights_.chunks * UnitChunk::kUnits);
    mlp_weights_.bias2 = take_floats(WarpgroupTile::kTokens);
  }

  void run_pack_mlp(bool transposes_second) const {
    const PackMlpArguments<scalar_t> pack{parameter(arguments_.weight1),
                                          parameter(arguments_.bias1),
                                          parameter(arguments_.weight2),
                                          parameter(arguments_.bias2),
                                          tokens_,
                                          hidden_,
                                          transposes_second,
                                          mlp_weights_};
    call_.launch(&pack_mlp_kernel<scalar_t>, divide_up(pack.pieces() + pack.biases(), kPackMlpThreads), kPackMlpThreads,
                 0, pack);
  }

  // Launches a kernel whose blocks walk over pairs of warpgroups' tiles.
  template <typename Kernel, typename Arguments>
  void run_warpgroup_kernel(Kernel* kernel, size_t shared_bytes, const Arguments& arguments) const {
    call_.launch(kernel, std::min(warpgroup_tiles(x_), arguments_.multiprocessors), WarpgroupTile::kThreads,
                 shared_bytes, arguments);
  }

  void run_warpgroup_forward(float eps, const TokenMixingOutputs& outputs) const {
    if constexpr (kIsHalf) {
      run_pack_mlp(false);
      const StatisticsArguments<scalar_t> statistics{
          x_, call_.channels, eps, outputs.mean, outputs.rstd, statistics_, WarpgroupTile::kTokens};
      call_.launch(call_.channels % kVec == 0 ? &statistics_kernel<scalar_t, kVec> : &statistics_kernel<scalar_t, 1>,
                   divide_up(arguments_.batch * WarpgroupTile::kTokens, kNormThreads / 32), kNormThreads, 0,
                   statistics);
      const WarpgroupMlpArguments<scalar_t> mlp{x_,          norm_parameters(), call_.channels,
                                                statistics_, mlp_weights_,      call_.contiguous(outputs.y, tokens_)};
      dispatch_activation(arguments_.activation, [&](auto tag) {
        run_warpgroup_kernel(&warpgroup_mlp_kernel<scalar_t, decltype(tag)::value>, WarpgroupMlp::kSharedBytes, mlp);
      });
    }
  }

  // A row's vectors are shared out evenly where they are more than threads; the rows fill whole waves of blocks, as few
  // as may be.
  void plan_norm_backward() {
    const int64_t vectors = call_.channels / (channels_align(kVec) ? kVec : 1);
    const int64_t share = divide_up(vectors, divide_up(vectors, kNormBackwardThreads));
    norm_threads_ = static_cast<int>(divide_up(share, 32) * 32);
    const int64_t rows = arguments_.batch * arguments_.tokens;
    const int64_t wave = arguments_.multiprocessors * (kNormBackwardThreads / norm_threads_);
    const int64_t waves = divide_up(rows, wave * kNormBackwardRows);
    norm_rows_ = std::max<int64_t>(divide_up(rows, waves * wave), kNormBackwardTogether);
    norm_blocks_ = divide_up(rows, norm_rows_);
  }

  template <bool kStatistics>
  void run_normalise(float eps, float* mean, float* rstd) const {
    const NormaliseArguments<scalar_t> normalise{x_, call_.channels, norm_parameters(), eps, mean, rstd, n_};
    call_.launch(channels_align(kVec) ? &normalise_kernel<scalar_t, kVec, kStatistics>
                                      : &normalise_kernel<scalar_t, 1, kStatistics>,
                 divide_up(arguments_.batch * arguments_.tokens, kNormThreads / 32), kNormThreads, 0, normalise);
  }

  void run_hidden_backward(const Operand<scalar_t>& n) const {
    if constexpr (kIsHalf) {
      if (uses_warpgroups()) {
        run_pack_mlp(true);
        const WarpgroupHiddenArguments<scalar_t> hidden{n, dy_, mlp_weights_, call_.pitched(h_, hidden_),
                                                        call_.pitched(dz_, hidden_)};
        dispatch_activation(arguments_.activation, [&](auto tag) {
          run_warpgroup_kernel(&warpgroup_hidden_kernel<scalar_t, decltype(tag)::value>, WarpgroupHidden::kSharedBytes,
                               hidden);
        });
        return;
      }
    }
    using Tile = HiddenTile<scalar_t, kTensorCores>;
    const HiddenProduct<Tile> product{{weight1_, n}, {weight2_transposed_, dy_}};
    call_.run_product(&hidden_backward_kernel<Tile>, product, parameter(arguments_.bias1), arguments_.activation,
                      call_.pitched(h_, hidden_), call_.pitched(dz_, hidden_));
  }

  void run_weight_gradient(const Operand<scalar_t>& tokens, const Operand<scalar_t>& hidden, float* gradient,
                           int64_t token_stride, int64_t unit_stride, float* sums) const {
    call_.with_weight_gradient(tokens, hidden, splits_, [&](const auto& product) {
      using Tile = typename std::decay_t<decltype(product)>::Tile;
      call_.run_product(&weight_gradient_kernel<Tile>, product, gradient, token_stride, unit_stride, sums);
    });
  }

  void run_norm_backward(const TokenMixingGradients& gradients) const {
    const bool has_residual = arguments_.weight2 != nullptr;
    const NormBackwardArguments<scalar_t> norm{x_,
                                               has_residual ? dy_ : Operand<scalar_t>{},
                                               call_.channels,
                                               norm_rows_,
                                               norm_parameters(),
                                               arguments_.mean,
                                               arguments_.rstd,
                                               static_cast<scalar_t*>(gradients.dx),
                                               dnorm_,
                                               gradients.dbias2 != nullptr ? dy_sums_ : nullptr};
    call_.launch(channels_align(kVec) ? &norm_backward_kernel<scalar_t, kVec> : &norm_backward_kernel<scalar_t, 1>,
                 norm_blocks_, norm_threads_, 0, norm);
  }

  void run_sums(const TokenMixingGradients& gradients) const {
    SumLaunch sums;
    const auto add = [&](const float* terms, int64_t count, int64_t stride, int64_t width, void* to, ElementType type) {
      if (to != nullptr) sums.add({terms, count, stride, width, to, type});
    };
    const int64_t units = arguments_.tokens * arguments_.hidden, channels = arguments_.channels;
    const ElementType type = arguments_.type;
    const ElementType norm_type = arguments_.norm_is_float ? ElementType::kFloat : type;
    // The longest first, so that nobody waits for them.
    add(dnorm_, norm_blocks_, 2 * channels, channels, gradients.dnorm_weight, norm_type);
    add(dnorm_ + channels, norm_blocks_, 2 * channels, channels, gradients.dnorm_bias, norm_type);
    add(dweight1_, splits_.count, units, units, gradients.dweight1, type);
    add(dbias1_, splits_.count, hidden_, hidden_, gradients.dbias1, type);
    add(dweight2_, splits_.count, units, units, gradients.dweight2, type);
    add(dy_sums_, call_.batch, tokens_, tokens_, gradients.dbias2, type);
    call_.run_sums(sums);
  }

  static constexpr int kSize = sizeof(scalar_t);

  const TokenMixingArguments& arguments_;
  Call call_;
  int tokens_, hidden_;
  scalar_t *n_ = nullptr, *h_ = nullptr, *dz_ = nullptr;
  Operand<scalar_t> x_, dy_{};
  Operand<scalar_t> weight1_{}, weight1_transposed_{}, weight2_{}, weight2_transposed_{};
  MlpWeights<scalar_t> mlp_weights_{};
  float* statistics_ = nullptr;  // for the warpgroups
  // Terms of the sums that the last kernel finishes.
  float *dweight1_ = nullptr, *dbias1_ = nullptr, *dweight2_ = nullptr, *dy_sums_ = nullptr, *dnorm_ = nullptr;
  typename Call::Splits splits_{};
  int64_t norm_rows_ = 0, norm_blocks_ = 0;
  int norm_threads_ = 0;
};

// Calls f with the TokenMixing of these arguments; launch(kernel, blocks, threads, shared bytes, arguments...).
template <typename Launch, typename F>
void with_token_mixing(const TokenMixingArguments& arguments, void* workspace, const Launch& launch, F&& f) {
  dispatch_product(arguments.type, arguments.allow_tf32, [&](auto product) {
    using Product = decltype(product);
    f(TokenMixing<typename Product::scalar_t, Product::kTensorCores, Launch>(arguments, workspace, launch));
  });
}

}  // namespace mixer_kernels
