// One call of an op over the tokens: its memory, the operands in a form that the products take, and the launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/element_type.h"
#include "common/pack.cuh"
#include "common/plan.h"
#include "common/sum_terms.cuh"
#include "common/token_linear.cuh"
#include "common/token_view.h"
#include "common/weight_gradient.cuh"

namespace mixer_kernels {

// Calls f with the tile that pads the rows least, among equals with the first.
template <class... Tiles, typename F>
void with_least_padding(int64_t rows, F&& f) {
  const auto padded = [&](int64_t tile) { return divide_up(rows, tile) * tile; };
  const int64_t least = std::min({padded(Tiles::kM)...});
  bool is_found = false;
  const auto try_tile = [&](auto tile) {
    if (is_found || padded(decltype(tile)::kM) != least) return;
    is_found = true;
    f(tile);
  };
  (try_tile(Tiles{}), ...);
}

// Calls f with the type of tile that multiplies for this many rows. kKeepsSums: next to the accumulators a thread needs
// registers for sums, and larger tiles would spill.
template <typename scalar_t, bool kTensorCores, Order kOrder, bool kKeepsSums = false, typename F>
void with_tile(int64_t rows, F&& f) {
  if constexpr (!kTensorCores) {
    f(FmaTile<64, 2, kOrder>{});
  } else if constexpr (std::is_same_v<scalar_t, float>) {
    f(TensorTile<float, 64, 1, 2, kOrder>{});
  } else if constexpr (kKeepsSums) {
    with_least_padding<TensorTile<scalar_t, 96, 1, 2, kOrder>, TensorTile<scalar_t, 80, 1, 2, kOrder>,
                       TensorTile<scalar_t, 64, 1, 2, kOrder>>(rows, f);
  } else {
    with_least_padding<TensorTile<scalar_t, 128, 2, 2, kOrder>, TensorTile<scalar_t, 112, 1, 2, kOrder>,
                       TensorTile<scalar_t, 64, 1, 2, kOrder>>(rows, f);
  }
}

// launch(kernel, blocks, threads, shared bytes, arguments...).
template <typename scalar_t, bool kTensorCores, typename Launch>
class TokenCall {
 public:
  TokenCall(int64_t batch, int64_t channels, int multiprocessors, void* workspace, const Launch& launch)
      : batch(static_cast<int>(batch)),
        channels(static_cast<int>(channels)),
        pitch(static_cast<int>(divide_up(channels, kVec) * kVec)),
        multiprocessors(multiprocessors),
        workspace(workspace),
        launch(launch) {}

  static constexpr int kVec = 16 / sizeof(scalar_t);

  const int batch, channels;
  const int pitch;  // channels in whole pieces of 16 bytes
  const int multiprocessors;
  Workspace workspace;
  const Launch& launch;

  // Tensors of the workspace. Their rows are as wide as the pitch, so that the products need not care: what lies beyond
  // the channels is finite, and zero in one of two operands whose product runs over them.
  Operand<scalar_t> features(const scalar_t* data, int rows) const {
    return {data, static_cast<int64_t>(rows) * pitch, pitch, batch, rows, pitch};
  }
  TokenOutput<scalar_t> pitched(scalar_t* data, int rows) const {
    return {data, static_cast<int64_t>(rows) * pitch, pitch, rows, pitch, true};
  }
  int64_t feature_elements(int64_t rows) const { return batch * rows * pitch; }

  TokenOutput<scalar_t> contiguous(void* data, int rows) const {
    const bool is_whole = is_aligned(data) && channels % kVec == 0;
    return {static_cast<scalar_t*>(data), static_cast<int64_t>(rows) * channels, channels, rows, channels, is_whole};
  }

  // A weight of (rows, depth): whether its rows are made of aligned 16-byte pieces, and the pitch of a copy where not.
  static bool is_whole(const void* data, int depth) { return is_aligned(data) && depth % kVec == 0; }
  static int weight_pitch(int depth) { return static_cast<int>(divide_up(depth, kVec) * kVec); }
  static Operand<scalar_t> weight(const void* data, int rows, int pitch) {
    return {static_cast<const scalar_t*>(data), 0, pitch, 1, rows, pitch};
  }

  // A weight as an operand of (rows, depth): as it is, or a copy with aligned rows. `transposed`: it is (depth, rows).
  Operand<scalar_t> plan_weight(const void* data, int rows, int depth, bool transposed) {
    if (is_whole(data, depth) && !transposed) return weight(data, rows, depth);
    const int width = weight_pitch(depth);
    auto* copy = workspace.take<scalar_t>(static_cast<int64_t>(rows) * width);
    pack_.add({data, 0, transposed ? 1 : depth, transposed ? rows : 1, copy, 1, rows, depth, width});
    return weight(copy, rows, width);
  }

  // The same for a tensor with any strides.
  Operand<scalar_t> plan_features(const TokenView& view, int rows) {
    // A stride over a single element may be anything.
    const int64_t batch_stride = batch > 1 ? view.batch_stride : 0, row_stride = rows > 1 ? view.row_stride : 0;
    if (view.channel_stride == 1 && channels % kVec == 0 && is_aligned(view.data) && batch_stride % kVec == 0 &&
        row_stride % kVec == 0) {
      return {static_cast<const scalar_t*>(view.data), batch_stride, row_stride, batch, rows, channels};
    }
    auto* copy = workspace.take<scalar_t>(feature_elements(rows));
    pack_.add({view.data, view.batch_stride, view.row_stride, view.channel_stride, copy, batch, rows, channels, pitch});
    return features(copy, rows);
  }

  // Makes the copies that were planned.
  void run_pack() const {
    using bits_t = std::conditional_t<sizeof(scalar_t) == 2, uint16_t, uint32_t>;
    if (pack_.count > 0) launch(&pack_kernel<bits_t>, pack_.all_blocks, kPackThreads, 0, pack_);
  }

  // Launches a kernel whose blocks walk over the product's tiles.
  template <class Product, typename Kernel, typename... Arguments>
  void run_product(Kernel* kernel, const Product& product, const Arguments&... arguments) const {
    constexpr size_t kSharedBytes = Product::kStages * Product::kStageElements * sizeof(scalar_t);
    static_assert(kSharedBytes <= 99 * 1024, "from sm_80 on a block has at least so much");
    const int resident = multiprocessors * Product::Tile::kBlocks;
    launch(kernel, std::min(product.tiles(), resident), kProductThreads, kSharedBytes, product, arguments...);
  }

  template <class Epilogue, class... Inputs>
  void run_linear(const Epilogue& epilogue, const TokenOutput<scalar_t>& out, const Operand<scalar_t>& weight,
                  const Operand<scalar_t>& features, const Inputs&... inputs) const {
    with_tile<scalar_t, kTensorCores, Order::kDepthByColumn, Epilogue::kKeepsSums>(weight.rows, [&](auto tile) {
      using Tile = decltype(tile);
      const LinearProduct<Tile, Epilogue::kInputs> product(weight, features, inputs...);
      run_product(&token_linear_kernel<Tile, Epilogue>, product, epilogue, out);
    });
  }

  // How the depth of a weight's gradient is split.
  struct Splits {
    int chunks, count;
  };
  Splits plan_splits(int rows, int columns) const {
    Splits splits{};
    with_tile<scalar_t, kTensorCores, Order::kColumnByDepth>(rows, [&](auto tile) {
      using Tile = decltype(tile);
      const int64_t tiles = divide_up(rows, Tile::kM) * divide_up(columns, Tile::kN);
      const int64_t chunks = batch * divide_up(channels, Tile::kK);
      // One wave of blocks, but no range so short that its sums outweigh it.
      constexpr int64_t kShortest = 8;  // chunks
      const int64_t wanted = static_cast<int64_t>(multiprocessors) * Tile::kBlocks / tiles;
      const int64_t most = std::max<int64_t>(std::min(wanted, chunks / kShortest), 1);
      splits.chunks = static_cast<int>(divide_up(chunks, most));
      splits.count = static_cast<int>(divide_up(chunks, splits.chunks));
    });
    return splits;
  }

  // Calls f with the product of a weight's gradient.
  template <typename F>
  void with_weight_gradient(const Operand<scalar_t>& first, const Operand<scalar_t>& second, const Splits& splits,
                            F&& f) const {
    with_tile<scalar_t, kTensorCores, Order::kColumnByDepth>(first.rows, [&](auto tile) {
      using Tile = decltype(tile);
      f(WeightGradientProduct<Tile>{first, second, static_cast<int>(divide_up(first.rows, Tile::kM)),
                                    static_cast<int>(divide_up(second.rows, Tile::kN)),
                                    static_cast<int>(divide_up(channels, Tile::kK)), splits.chunks, splits.count});
    });
  }

  void run_sums(const SumLaunch& sums) const {
    if (sums.count > 0) launch(&sum_terms_kernel<>, sums.all_blocks, kSumThreads, 0, sums);
  }

 private:
  static bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

  PackLaunch pack_;
};

// Calls f with a value whose type tells the element type of the products and whether tensor cores multiply them.
template <typename scalar_t_, bool kTensorCores_>
struct ProductType {
  using scalar_t = scalar_t_;
  static constexpr bool kTensorCores = kTensorCores_;
};
template <typename F>
void dispatch_product(ElementType type, bool allow_tf32, F&& f) {
  switch (type) {
    case ElementType::kHalf:
      return f(ProductType<__half, true>{});
    case ElementType::kBFloat16:
      return f(ProductType<__nv_bfloat16, true>{});
    default:
      if (allow_tf32) return f(ProductType<float, true>{});
      return f(ProductType<float, false>{});
  }
}

}  // namespace mixer_kernels
