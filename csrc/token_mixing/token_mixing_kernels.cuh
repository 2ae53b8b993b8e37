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

#include "common/pack.cuh"
#include "common/sum_terms.cuh"
#include "token_mixing/token_mixing.h"
#include "token_mixing/token_norm.cuh"
#include "token_mixing/token_products.cuh"

namespace mixer_kernels {

// Deals out device memory; without any, it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    char* begin = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(begin);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with the type of tile that multiplies for this many rows: among those that pad the rows least, the largest.
template <typename scalar_t, bool kTensorCores, Order kOrder, typename F>
void with_tile(int64_t rows, F&& f) {
  if constexpr (!kTensorCores) {
    f(FmaTile<64, 2, kOrder>{});
  } else if constexpr (std::is_same_v<scalar_t, float>) {
    f(TensorTile<float, 64, 1, 2, kOrder>{});
  } else {
    const auto padded = [&](int64_t tile) { return divide_up(rows, tile) * tile; };
    const int64_t least = std::min({padded(128), padded(112), padded(64)});
    if (padded(128) == least) {
      f(TensorTile<scalar_t, 128, 2, 2, kOrder>{});
    } else if (padded(112) == least) {
      f(TensorTile<scalar_t, 112, 1, 2, kOrder>{});
    } else {
      f(TensorTile<scalar_t, 64, 1, 2, kOrder>{});
    }
  }
}

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
        launch_(launch),
        workspace_(workspace),
        batch_(static_cast<int>(arguments.batch)),
        tokens_(static_cast<int>(arguments.tokens)),
        channels_(static_cast<int>(arguments.channels)),
        hidden_(static_cast<int>(arguments.hidden)),
        pitch_(static_cast<int>(divide_up(arguments.channels, kVec) * kVec)),
        n_(workspace_.take<scalar_t>(arguments.batch * arguments.tokens * pitch_)),
        x_(plan_features(arguments.x, tokens_)) {}

  int64_t workspace_bytes() const { return workspace_.bytes(); }

  void plan_forward() {
    weight1_ = plan_weight(arguments_.weight1, hidden_, tokens_, false);
    if (arguments_.weight2 == nullptr) return;
    weight2_ = plan_weight(arguments_.weight2, tokens_, hidden_, false);
    h_ = workspace_.take<scalar_t>(arguments_.batch * hidden_ * pitch_);
  }

  void run_forward(float eps, const TokenMixingOutputs& outputs) {
    run_pack();
    run_normalise<true>(eps, outputs.mean, outputs.rstd);
    const ActivateEpilogue<scalar_t> activate{parameter(arguments_.bias1), arguments_.activation};
    if (arguments_.weight2 == nullptr) {
      run_linear(weight1_, features(n_, tokens_), {}, activate, contiguous(outputs.y, hidden_));
      return;
    }
    run_linear(weight1_, features(n_, tokens_), {}, activate, pitched(h_, hidden_));
    const ResidualEpilogue<scalar_t> residual{parameter(arguments_.bias2)};
    run_linear(weight2_, features(h_, hidden_), x_, residual, contiguous(outputs.y, tokens_));
  }

  void plan_backward(const TokenView& dy) {
    const bool is_mlp = arguments_.weight2 != nullptr;
    const bool has_slope = is_mlp || arguments_.activation != Activation::kNone;
    weight1_transposed_ = plan_weight(arguments_.weight1, tokens_, hidden_, true);
    if (has_slope) {
      weight1_ = plan_weight(arguments_.weight1, hidden_, tokens_, false);
      dz_ = workspace_.take<scalar_t>(arguments_.batch * hidden_ * pitch_);
    }
    dy_ = plan_features(dy, is_mlp ? tokens_ : hidden_);
    if (is_mlp) {
      weight2_transposed_ = plan_weight(arguments_.weight2, hidden_, tokens_, true);
      h_ = workspace_.take<scalar_t>(arguments_.batch * hidden_ * pitch_);
    }

    const int64_t units = arguments_.tokens * arguments_.hidden;
    with_tile<scalar_t, kTensorCores, Order::kColumnByDepth>(tokens_, [&](auto tile) {
      using Tile = decltype(tile);
      const int64_t tiles = divide_up(tokens_, Tile::kM) * divide_up(hidden_, Tile::kN);
      const int64_t chunks = arguments_.batch * divide_up(channels_, Tile::kK);
      // One wave of blocks, but no range so short that its sums outweigh it.
      const int64_t wanted = arguments_.multiprocessors * Tile::kBlocks / tiles;
      const int64_t most = std::max<int64_t>(std::min(wanted, chunks / kShortestSplit), 1);
      split_chunks_ = static_cast<int>(divide_up(chunks, most));
      splits_ = static_cast<int>(divide_up(chunks, split_chunks_));
    });
    dweight1_ = workspace_.take<float>(splits_ * units);
    dbias1_ = workspace_.take<float>(splits_ * arguments_.hidden);
    if (is_mlp) {
      dweight2_ = workspace_.take<float>(splits_ * units);
      dy_sums_ = workspace_.take<float>(arguments_.batch * arguments_.tokens);
    }
    const int64_t rows = arguments_.batch * arguments_.tokens;
    norm_rows_ = std::clamp<int64_t>(divide_up(rows, arguments_.multiprocessors * 4), 8, kNormBackwardRows);
    norm_blocks_ = divide_up(rows, norm_rows_);
    dnorm_ = workspace_.take<float>(norm_blocks_ * 2 * channels_);
  }

  void run_backward(const TokenMixingGradients& gradients) {
    const bool is_mlp = arguments_.weight2 != nullptr;
    run_pack();
    run_normalise<false>(0.0f, const_cast<float*>(arguments_.mean), const_cast<float*>(arguments_.rstd));

    const Operand<scalar_t> n = features(n_, tokens_);
    Operand<scalar_t> dz = dy_;
    if (is_mlp) {
      run_hidden_backward(n);
      dz = features(dz_, hidden_);
    } else if (arguments_.activation != Activation::kNone) {
      const SlopeEpilogue<scalar_t> slope{parameter(arguments_.bias1), arguments_.activation};
      run_linear(weight1_, n, dy_, slope, pitched(dz_, hidden_));
      dz = features(dz_, hidden_);
    }

    // dx holds dn until LayerNorm's backward pass.
    run_linear(weight1_transposed_, dz, {}, ActivateEpilogue<scalar_t>{nullptr, Activation::kNone},
               contiguous(gradients.dx, tokens_));
    run_weight_gradient(n, dz, dweight1_, 1, tokens_, gradients.dbias1 != nullptr ? dbias1_ : nullptr);
    if (is_mlp) run_weight_gradient(dy_, features(h_, hidden_), dweight2_, hidden_, 1, nullptr);
    run_norm_backward(gradients);
    run_sums(gradients);
  }

 private:
  static constexpr int kVec = 16 / sizeof(scalar_t);
  static constexpr int64_t kShortestSplit = 8;  // chunks

  static const scalar_t* parameter(const void* data) { return static_cast<const scalar_t*>(data); }

  // Tensors of the workspace. Their rows are as wide as the pitch, so that the products need not care: beyond the
  // channels, x, dy, n and hence dz are zero, and h is finite.
  Operand<scalar_t> features(const scalar_t* data, int rows) const {
    return {data, static_cast<int64_t>(rows) * pitch_, pitch_, batch_, rows, pitch_};
  }
  TokenOutput<scalar_t> pitched(scalar_t* data, int rows) const {
    return {data, static_cast<int64_t>(rows) * pitch_, pitch_, rows, pitch_, true};
  }

  TokenOutput<scalar_t> contiguous(void* data, int rows) const {
    const bool is_whole = reinterpret_cast<uintptr_t>(data) % 16 == 0 && channels_ % kVec == 0;
    return {static_cast<scalar_t*>(data), rows * arguments_.channels, arguments_.channels, rows, channels_, is_whole};
  }

  // A weight as an operand of (rows, depth): as it is, or a copy with aligned rows. `transposed`: it is (depth, rows).
  Operand<scalar_t> plan_weight(const void* data, int rows, int depth, bool transposed) {
    const bool is_whole = reinterpret_cast<uintptr_t>(data) % 16 == 0 && depth % kVec == 0;
    if (is_whole && !transposed) return {parameter(data), 0, depth, 1, rows, depth};
    const int pitch = static_cast<int>(divide_up(depth, kVec) * kVec);
    scalar_t* copy = workspace_.take<scalar_t>(static_cast<int64_t>(rows) * pitch);
    pack_.add({data, 0, transposed ? 1 : depth, transposed ? rows : 1, copy, 1, rows, depth, pitch});
    return {copy, 0, pitch, 1, rows, pitch};
  }

  // The same for a tensor with any strides.
  Operand<scalar_t> plan_features(const TokenView& view, int rows) {
    // A stride over a single element may be anything.
    const int64_t batch_stride = batch_ > 1 ? view.batch_stride : 0, row_stride = rows > 1 ? view.row_stride : 0;
    if (view.channel_stride == 1 && channels_ % kVec == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
        batch_stride % kVec == 0 && row_stride % kVec == 0) {
      return {parameter(view.data), batch_stride, row_stride, batch_, rows, channels_};
    }
    scalar_t* copy = workspace_.take<scalar_t>(arguments_.batch * rows * pitch_);
    pack_.add(
        {view.data, view.batch_stride, view.row_stride, view.channel_stride, copy, batch_, rows, channels_, pitch_});
    return features(copy, rows);
  }

  void run_pack() const {
    using bits_t = std::conditional_t<sizeof(scalar_t) == 2, uint16_t, uint32_t>;
    if (pack_.count > 0) launch_(&pack_kernel<bits_t>, pack_.all_blocks, kPackThreads, 0, pack_);
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
    return channels_ % count == 0 && is_aligned(arguments_.norm_weight, norm_size) &&
           is_aligned(arguments_.norm_bias, norm_size);
  }

  template <bool kStatistics>
  void run_normalise(float eps, float* mean, float* rstd) const {
    const NormaliseArguments<scalar_t> normalise{x_, channels_, norm_parameters(), eps, mean, rstd, n_};
    launch_(channels_align(kVec) ? &normalise_kernel<scalar_t, kVec, kStatistics>
                                 : &normalise_kernel<scalar_t, 1, kStatistics>,
            divide_up(arguments_.batch * arguments_.tokens, kNormThreads / 32), kNormThreads, 0, normalise);
  }

  // Launches a kernel whose blocks walk over the product's tiles.
  template <class Product, typename Kernel, typename... Arguments>
  void launch_product(Kernel* kernel, const Product& product, const Arguments&... arguments) const {
    constexpr size_t kSharedBytes = Product::kStages * Product::kStageElements * sizeof(scalar_t);
    static_assert(kSharedBytes <= 99 * 1024, "from sm_80 on a block has at least so much");
    const int resident = arguments_.multiprocessors * Product::Tile::kBlocks;
    launch_(kernel, std::min(product.tiles(), resident), kProductThreads, kSharedBytes, product, arguments...);
  }

  template <class Epilogue>
  void run_linear(const Operand<scalar_t>& weight, const Operand<scalar_t>& features, const Operand<scalar_t>& input,
                  const Epilogue& epilogue, const TokenOutput<scalar_t>& out) const {
    with_tile<scalar_t, kTensorCores, Order::kDepthByColumn>(weight.rows, [&](auto tile) {
      using Tile = decltype(tile);
      const LinearProduct<Tile, Epilogue::kHasInput> product(weight, features, input);
      launch_product(&token_linear_kernel<Tile, Epilogue>, product, epilogue, out);
    });
  }

  void run_hidden_backward(const Operand<scalar_t>& n) const {
    using Tile = HiddenTile<scalar_t, kTensorCores>;
    const HiddenProduct<Tile> product{{weight1_, n, {}}, {weight2_transposed_, dy_, {}}};
    launch_product(&hidden_backward_kernel<Tile>, product, parameter(arguments_.bias1), arguments_.activation,
                   pitched(h_, hidden_), pitched(dz_, hidden_));
  }

  void run_weight_gradient(const Operand<scalar_t>& tokens, const Operand<scalar_t>& hidden, float* gradient,
                           int64_t token_stride, int64_t unit_stride, float* sums) const {
    with_tile<scalar_t, kTensorCores, Order::kColumnByDepth>(tokens_, [&](auto tile) {
      using Tile = decltype(tile);
      const WeightGradientProduct<Tile> product{tokens,
                                                hidden,
                                                static_cast<int>(divide_up(tokens_, Tile::kM)),
                                                static_cast<int>(divide_up(hidden_, Tile::kN)),
                                                static_cast<int>(divide_up(channels_, Tile::kK)),
                                                split_chunks_,
                                                splits_};
      launch_product(&weight_gradient_kernel<Tile>, product, gradient, token_stride, unit_stride, sums);
    });
  }

  void run_norm_backward(const TokenMixingGradients& gradients) const {
    const bool has_residual = arguments_.weight2 != nullptr;
    const NormBackwardArguments<scalar_t> norm{x_,
                                               has_residual ? dy_ : Operand<scalar_t>{},
                                               channels_,
                                               norm_rows_,
                                               norm_parameters(),
                                               arguments_.mean,
                                               arguments_.rstd,
                                               static_cast<scalar_t*>(gradients.dx),
                                               dnorm_,
                                               gradients.dbias2 != nullptr ? dy_sums_ : nullptr};
    launch_(channels_align(2) ? &norm_backward_kernel<scalar_t, 2> : &norm_backward_kernel<scalar_t, 1>, norm_blocks_,
            kNormBackwardThreads, 0, norm);
  }

  void run_sums(const TokenMixingGradients& gradients) const {
    SumLaunch sums;
    const auto add = [&](const float* terms, int64_t count, int64_t stride, int64_t width, void* to, ElementType type) {
      if (to != nullptr) sums.add({terms, count, stride, width, to, type});
    };
    const int64_t units = arguments_.tokens * arguments_.hidden;
    const ElementType type = arguments_.type;
    const ElementType norm_type = arguments_.norm_is_float ? ElementType::kFloat : type;
    add(dweight1_, splits_, units, units, gradients.dweight1, type);
    add(dbias1_, splits_, hidden_, hidden_, gradients.dbias1, type);
    add(dweight2_, splits_, units, units, gradients.dweight2, type);
    add(dy_sums_, batch_, tokens_, tokens_, gradients.dbias2, type);
    add(dnorm_, norm_blocks_, 2 * channels_, channels_, gradients.dnorm_weight, norm_type);
    add(dnorm_ + channels_, norm_blocks_, 2 * channels_, channels_, gradients.dnorm_bias, norm_type);
    launch_(&sum_terms_kernel<>, sums.all_blocks, kSumThreads, 0, sums);
  }

  static constexpr int kSize = sizeof(scalar_t);

  const TokenMixingArguments& arguments_;
  const Launch& launch_;
  Workspace workspace_;
  int batch_, tokens_, channels_, hidden_;
  int pitch_;  // channels in whole pieces of 16 bytes
  PackLaunch pack_;
  scalar_t *n_, *h_ = nullptr, *dz_ = nullptr;
  Operand<scalar_t> x_, dy_{};
  Operand<scalar_t> weight1_{}, weight1_transposed_{}, weight2_{}, weight2_transposed_{};
  // Terms of the sums that the last kernel finishes.
  float *dweight1_ = nullptr, *dbias1_ = nullptr, *dweight2_ = nullptr, *dy_sums_ = nullptr, *dnorm_ = nullptr;
  int split_chunks_ = 0, splits_ = 0;
  int64_t norm_rows_ = 0, norm_blocks_ = 0;
};

// Calls f with the TokenMixing of these arguments; launch(kernel, blocks, threads, shared bytes, arguments...).
template <typename Launch, typename F>
void with_token_mixing(const TokenMixingArguments& arguments, void* workspace, const Launch& launch, F&& f) {
  switch (arguments.type) {
    case ElementType::kHalf:
      return f(TokenMixing<__half, true, Launch>(arguments, workspace, launch));
    case ElementType::kBFloat16:
      return f(TokenMixing<__nv_bfloat16, true, Launch>(arguments, workspace, launch));
    default:
      if (arguments.allow_tf32) return f(TokenMixing<float, true, Launch>(arguments, workspace, launch));
      return f(TokenMixing<float, false, Launch>(arguments, workspace, launch));
  }
}

}  // namespace mixer_kernels
