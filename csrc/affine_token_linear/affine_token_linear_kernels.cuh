// The affine-folded linear over the tokens, forward and backward, as a sequence of kernels; the launcher and the host
// emulator run the same one.
//
// Forward: one product, weight @ x; Affine, bias, LayerScale and residual are its epilogue. Around 196 tokens it has
// kernels of its own. Backward: one product, U = weight^T @ dy, whose epilogue gives dx and the terms of all sums; the
// weight's gradient; the sums. Channels stay contiguous throughout, nothing is transposed but the weight.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "affine_token_linear/affine_fold.cuh"
#include "affine_token_linear/affine_products.cuh"
#include "affine_token_linear/affine_token_linear.h"
#include "affine_token_linear/stationary_linear.cuh"
#include "affine_token_linear/warpgroup_linear.cuh"
#include "common/sum_terms.cuh"
#include "common/token_call.cuh"

namespace mixer_kernels {

// One call: its sizes, the operands in a form that the products take, and the launches.
template <typename scalar_t, bool kTensorCores, typename Launch>
class AffineTokenLinear {
 public:
  AffineTokenLinear(const AffineTokenLinearArguments& arguments, void* workspace, const Launch& launch)
      : arguments_(arguments),
        call_(arguments.batch, arguments.channels, arguments.multiprocessors, workspace, launch),
        tokens_(static_cast<int>(arguments.tokens)),
        x_(call_.plan_features(arguments.x, tokens_)) {
    for (float** channels : {&folded_.alpha, &folded_.beta, &folded_.layer_scale, &folded_.scale, &folded_.shift}) {
      *channels = take_floats(padded_channels());
    }
    folded_.row_sums = take_floats(padded_tokens());
    folded_.bias = take_floats(padded_tokens());
    folded_.unit = take_floats(1);
  }

  int64_t workspace_bytes() const { return call_.workspace.bytes(); }

  void plan_forward() {
    if (uses_warpgroups()) {
      weight_copy_ = call_.workspace.template take<scalar_t>(WarpgroupLinear::Weight::kBytes / sizeof(scalar_t));
      return;
    }
    if (Call::is_whole(arguments_.weight, tokens_)) {
      weight_ = Call::weight(arguments_.weight, tokens_, tokens_);
      return;
    }
    // The kernel that adds up the weight's rows copies them as well: one launch less.
    const int pitch = Call::weight_pitch(tokens_);
    weight_copy_ = call_.workspace.template take<scalar_t>(arguments_.tokens * pitch);
    weight_ = Call::weight(weight_copy_, tokens_, pitch);
  }

  void run_forward(void* y) {
    call_.run_pack();
    run_fold();
    if constexpr (kIsHalf) {
      if (uses_warpgroups()) {
        const WarpgroupLinearArguments<scalar_t> linear{x_, weight_copy_, folded_, call_.contiguous(y, tokens_)};
        call_.launch(&warpgroup_linear_kernel<scalar_t>, std::min(warpgroup_tiles(x_), call_.multiprocessors),
                     WarpgroupTile::kThreads, WarpgroupLinear::kSharedBytes, linear);
        return;
      }
      using Tile = StationaryTile;
      if (Tile::takes(tokens_)) {
        const StationaryArguments<scalar_t> stationary{weight_, x_, folded_, call_.contiguous(y, tokens_)};
        call_.launch(&stationary_linear_kernel<scalar_t>, std::min(stationary.tiles(), call_.multiprocessors),
                     Tile::kThreads, Tile::kStages * Tile::kStageElements * sizeof(scalar_t), stationary);
        return;
      }
    }
    call_.run_linear(AffineEpilogue<scalar_t>{folded_}, call_.contiguous(y, tokens_), weight_, x_, x_);
  }

  void plan_backward(const TokenView& dy) {
    weight_ = call_.plan_weight(arguments_.weight, tokens_, tokens_, true);
    dy_ = call_.plan_features(dy, tokens_);
    with_tile<scalar_t, kTensorCores, Order::kDepthByColumn, AffineBackwardEpilogue<scalar_t>::kKeepsSums>(
        tokens_, [&](auto tile) {
          using Tile = decltype(tile);
          channel_terms_ = arguments_.batch * divide_up(tokens_, Tile::kM) * Tile::kWarpsM;
          bias_terms_ = arguments_.batch * divide_up(arguments_.channels, Tile::kN) * Tile::kWarpsN;
        });
    const int64_t channel_sums = channel_terms_ * arguments_.channels;
    if (arguments_.alpha.data != nullptr) terms_.dalpha = take_floats(channel_sums);
    if (arguments_.beta.data != nullptr) terms_.dbeta = take_floats(channel_sums);
    if (arguments_.layer_scale.data != nullptr) terms_.dlayer_scale = take_floats(2 * channel_sums);
    if (arguments_.bias != nullptr) terms_.dbias = take_floats(bias_terms_ * tokens_);
    splits_ = call_.plan_splits(tokens_, tokens_);
    dweight_ = take_floats(splits_.count * arguments_.tokens * arguments_.tokens);
  }

  void run_backward(const AffineTokenLinearGradients& gradients) {
    call_.run_pack();
    run_fold();
    const AffineBackwardEpilogue<scalar_t> epilogue{folded_, terms_};
    call_.run_linear(epilogue, call_.contiguous(gradients.dx, tokens_), weight_, dy_, x_, dy_);
    call_.with_weight_gradient(dy_, x_, splits_, [&](const auto& product) {
      using Tile = typename std::decay_t<decltype(product)>::Tile;
      call_.run_product(&affine_weight_gradient_kernel<Tile>, product, folded_, dweight_);
    });
    run_sums(gradients);
  }

 private:
  using Call = TokenCall<scalar_t, kTensorCores, Launch>;
  static constexpr bool kIsHalf = sizeof(scalar_t) == 2;

  bool uses_warpgroups() const { return kIsHalf && arguments_.has_warpgroups && WarpgroupTile::takes(tokens_); }

  float* take_floats(int64_t count) { return call_.workspace.template take<float>(count); }

  // Whole tiles, so that nothing that reads them need care where the channels end.
  int64_t padded_channels() const { return divide_up(arguments_.channels, 128) * 128; }
  int padded_tokens() const { return uses_warpgroups() ? WarpgroupTile::kTokens : tokens_; }

  void run_fold() const {
    // The backward pass has the transposed weight packed elsewhere.
    const bool is_blocked = uses_warpgroups() && weight_copy_ != nullptr;
    const int rows = padded_tokens(), columns = is_blocked ? rows : weight_copy_ != nullptr ? weight_.columns : tokens_;
    const FoldArguments<scalar_t> fold{arguments_.alpha,
                                       arguments_.beta,
                                       arguments_.layer_scale,
                                       call_.channels,
                                       static_cast<int>(padded_channels()),
                                       static_cast<const scalar_t*>(arguments_.weight),
                                       static_cast<const scalar_t*>(arguments_.bias),
                                       tokens_,
                                       folded_,
                                       weight_copy_,
                                       rows,
                                       columns,
                                       is_blocked};
    call_.launch(&fold_kernel<scalar_t>, 1 + divide_up(rows, kFoldWarps), kFoldThreads, 0, fold);
  }

  void run_sums(const AffineTokenLinearGradients& gradients) const {
    SumLaunch sums;
    const auto add = [&](const float* terms, int64_t count, int64_t width, void* to, bool is_float) {
      if (to != nullptr) sums.add({terms, count, width, width, to, is_float ? ElementType::kFloat : arguments_.type});
    };
    const int64_t channels = arguments_.channels, tokens = arguments_.tokens;
    add(terms_.dalpha, channel_terms_, channels, gradients.dalpha, arguments_.alpha.is_float);
    add(terms_.dbeta, channel_terms_, channels, gradients.dbeta, arguments_.beta.is_float);
    add(terms_.dlayer_scale, 2 * channel_terms_, channels, gradients.dlayer_scale, arguments_.layer_scale.is_float);
    add(dweight_, splits_.count, tokens * tokens, gradients.dweight, false);
    add(terms_.dbias, bias_terms_, tokens, gradients.dbias, false);
    call_.run_sums(sums);
  }

  const AffineTokenLinearArguments& arguments_;
  Call call_;
  int tokens_;
  Operand<scalar_t> x_, dy_{}, weight_{};  // the weight is transposed in the backward pass
  scalar_t* weight_copy_ = nullptr;
  Folded folded_{};
  // Terms of the sums that the last kernel finishes.
  AffineTerms terms_{};
  float* dweight_ = nullptr;
  int64_t channel_terms_ = 0, bias_terms_ = 0;
  typename Call::Splits splits_{};
};

// Calls f with the AffineTokenLinear of these arguments; launch(kernel, blocks, threads, shared bytes, arguments...).
template <typename Launch, typename F>
void with_affine_token_linear(const AffineTokenLinearArguments& arguments, void* workspace, const Launch& launch,
                              F&& f) {
  dispatch_product(arguments.type, arguments.allow_tf32, [&](auto product) {
    using Product = decltype(product);
    f(AffineTokenLinear<typename Product::scalar_t, Product::kTensorCores, Launch>(arguments, workspace, launch));
  });
}

}  // namespace mixer_kernels
