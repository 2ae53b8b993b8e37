// The forward pass of token mixing's MLP in one kernel, for half types and numbers of tokens around 196, on the
// warpgroups of Hopper.
//
// Channels are the rows of both products: h^T = act(n^T weight1^T + bias1), y^T = x^T + h^T weight2^T + bias2. A
// warpgroup takes 64 channels of one image with all their tokens. It keeps n^T in registers, the first product's first
// operand, and the sums of y^T; 64 hidden units at a time are the accumulators of the first product and, rounded, the
// first operand of the second one, in the same lanes. So neither n nor h is ever in memory, and x is transposed by
// the instructions that load fragments from shared memory, y by those that store them.
//
// Only the weights move: packed beforehand as shared memory wants them, they stream through a ring of slots, one half
// of a chunk after the other, tile after tile. Both warpgroups of a block read each slot; while one activates, the
// other multiplies.
#pragma once

#include <cstdint>

#include "common/activation.cuh"
#include "common/pipeline.cuh"
#include "common/token_linear.cuh"
#include "common/vector.cuh"
#include "common/warpgroup.cuh"
#include "token_mixing/token_norm.cuh"

namespace mixer_kernels {

struct WarpgroupMlp {
  static constexpr int kSteps = 13, kTokens = 16 * kSteps;
  static constexpr int kColumns = 64;  // channels of a warpgroup
  static constexpr int kUnits = 64;    // of a chunk
  static constexpr int kWarpgroups = 2, kThreads = kWarpgroups * kWarpgroup;

  // A chunk of weight1: kUnits rows of 64 tokens in each full block, of 16 in those that are left. A chunk of weight2:
  // kTokens rows. Both fill a slot.
  static constexpr int kFullBlocks = kSteps / 4;
  static constexpr int kFullBlockBytes = kUnits * 128, kNarrowBlockBytes = kUnits * 32;
  static constexpr int kSlotBytes = kTokens * 128;
  static_assert(kFullBlocks * kFullBlockBytes + kSteps % 4 * kNarrowBlockBytes == kSlotBytes);
  static constexpr int kSlots = 4;

  static constexpr int kPitch = kColumns + 8;  // of a token's channels in shared memory
  static constexpr int kStages = 2;            // this tile's x and the next one's
  static constexpr int kStageElements = kTokens * kPitch;

  static constexpr int kAlignment = 1024;  // of the slots; shared memory begins anywhere
  static constexpr int kFeatureBytes = kWarpgroups * kStages * kStageElements * 2;
  static constexpr int kSharedBytes = kAlignment + kSlots * kSlotBytes + kFeatureBytes + 2 * kSlots * 8;
  static_assert(kSharedBytes <= 227 * 1024);

  // With fewer tokens less than half of the tensor cores' work would be of use.
  static constexpr bool takes(int tokens) { return tokens > 112 && tokens <= kTokens; }
};

// The weights of each chunk one after the other, and the biases, zeros where there is none.
template <typename scalar_t>
struct MlpWeights {
  scalar_t* slots;
  float *bias1, *bias2;
  int chunks;

  static int chunks_of(int hidden) { return (hidden + WarpgroupMlp::kUnits - 1) / WarpgroupMlp::kUnits; }
  static constexpr int kSlotElements = WarpgroupMlp::kSlotBytes / sizeof(scalar_t);
  int64_t slot_elements() const { return int64_t{2} * chunks * kSlotElements; }
};

template <typename scalar_t>
struct PackMlpArguments {
  const scalar_t *weight1, *bias1, *weight2, *bias2;  // contiguous; the biases may be null
  int tokens, hidden;
  MlpWeights<scalar_t> to;

  __host__ __device__ int64_t pieces() const { return int64_t{2} * to.chunks * (WarpgroupMlp::kSlotBytes / 16); }
  __host__ __device__ int biases() const { return to.chunks * WarpgroupMlp::kUnits + WarpgroupMlp::kTokens; }
};

// One thread packs a piece of 16 bytes, or a bias.
constexpr int kPackMlpThreads = 256;
template <typename scalar_t>
__global__ void __launch_bounds__(kPackMlpThreads)
    pack_mlp_kernel(const __grid_constant__ PackMlpArguments<scalar_t> arguments) {
  using Mlp = WarpgroupMlp;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kPackMlpThreads + threadIdx.x;
  const int tokens = arguments.tokens, hidden = arguments.hidden;
  if (number >= arguments.pieces()) {
    const int64_t unit = number - arguments.pieces();
    const int64_t token = unit - arguments.to.chunks * Mlp::kUnits;
    if (token < 0) {
      arguments.to.bias1[unit] = bias_at(arguments.bias1, static_cast<int>(unit), hidden);
    } else if (token < Mlp::kTokens) {
      arguments.to.bias2[token] = bias_at(arguments.bias2, static_cast<int>(token), tokens);
    }
    return;
  }

  constexpr int kSlotPieces = Mlp::kSlotBytes / 16;
  const int slot = static_cast<int>(number / kSlotPieces), place = static_cast<int>(number % kSlotPieces);
  const int first_unit = slot / 2 * Mlp::kUnits;
  int row, column;
  if (slot % 2 != 0) {
    row = place / 8;
    column = first_unit + swizzled_piece<128>(row, place % 8) * 8;
  } else if (constexpr int kFullPieces = Mlp::kFullBlocks * Mlp::kFullBlockBytes / 16; place < kFullPieces) {
    row = place / 8 % Mlp::kUnits;
    column = place / 8 / Mlp::kUnits * 64 + swizzled_piece<128>(row, place % 8) * 8;
    row += first_unit;
  } else {
    const int narrow = place - kFullPieces;
    row = narrow / 2 % Mlp::kUnits;
    column = Mlp::kFullBlocks * 64 + narrow / 2 / Mlp::kUnits * 16 + swizzled_piece<32>(row, narrow % 2) * 8;
    row += first_unit;
  }
  const scalar_t* weight = slot % 2 != 0 ? arguments.weight2 : arguments.weight1;
  const int rows = slot % 2 != 0 ? tokens : hidden, columns = slot % 2 != 0 ? hidden : tokens;
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool inside = row < rows && column + i < columns;
    values[i] = inside ? to_acc(weight[static_cast<int64_t>(row) * columns + column + i]) : 0.0f;
  }
  store_floats(arguments.to.slots + number * 8, values);
}

template <typename scalar_t>
struct WarpgroupMlpArguments {
  Operand<scalar_t> x;
  NormParameters<scalar_t> norm;
  int channels;             // of x's columns
  const float* statistics;  // mean and rstd of each token, kTokens of an image, zeros beyond
  MlpWeights<scalar_t> weights;
  TokenOutput<scalar_t> y;

  __host__ __device__ int column_tiles() const {
    return (x.columns + WarpgroupMlp::kColumns - 1) / WarpgroupMlp::kColumns;
  }
  // Of a block: one for each of its warpgroups, the last perhaps without one.
  __host__ __device__ int tiles() const {
    return (column_tiles() * x.batch + WarpgroupMlp::kWarpgroups - 1) / WarpgroupMlp::kWarpgroups;
  }
};

#if defined(MIXER_KERNELS_WARPGROUPS)

// The weights on their way through the ring. Every warp takes the slots in their order and gives them back; the block's
// first thread refills them.
template <typename scalar_t>
class WeightStream {
 public:
  // For that many tiles of the block.
  __device__ __forceinline__ WeightStream(scalar_t* slots, SharedBarrier* barriers, const MlpWeights<scalar_t>& weights,
                                          int tiles)
      : slots_(slots), full_(barriers), weights_(weights), count_(2 * weights.chunks * tiles) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlots; ++i) {
        full_[i].init(1);
        empty()[i].init(WarpgroupMlp::kThreads / 32);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlots; ++i) fill(i);
    }
  }

  // The next slot, full.
  __device__ __forceinline__ const scalar_t* next() {
    full_[taken_ % kSlots].wait(taken_ / kSlots % 2);
    return slots_ + taken_++ % kSlots * kSlotElements;
  }

  // Gives back the slot that was taken that many calls ago, the last one being 1.
  __device__ __forceinline__ void release(int calls) {
    if (threadIdx.x % 32 == 0) empty()[(taken_ - calls) % kSlots].arrive();
  }

  // Refills the slot that this warp has taken three calls ago and given back. To be called after each next(), behind the
  // start of the products: the other warps may take a while.
  __device__ __forceinline__ void refill() {
    if (threadIdx.x != 0 || taken_ < 3) return;
    empty()[(taken_ - 3) % kSlots].wait((taken_ - 3) / kSlots % 2);
    fill(taken_ - 3 + kSlots);
  }

 private:
  static constexpr int kSlots = WarpgroupMlp::kSlots, kSlotElements = MlpWeights<scalar_t>::kSlotElements;

  __device__ __forceinline__ SharedBarrier* empty() const { return full_ + kSlots; }

  __device__ __forceinline__ void fill(int number) {
    if (number >= count_) return;
    const scalar_t* from = weights_.slots + static_cast<int64_t>(number % (2 * weights_.chunks)) * kSlotElements;
    full_[number % kSlots].arrive_with_copy(slots_ + number % kSlots * kSlotElements, from, WarpgroupMlp::kSlotBytes);
  }

  scalar_t* slots_;
  SharedBarrier* full_;
  const MlpWeights<scalar_t>& weights_;
  int count_, taken_ = 0;
};

// Where a lane's row of each fragment lies in a warp's 16 channels, for ldmatrix_transposed and stmatrix_transposed.
template <typename scalar_t>
__device__ __forceinline__ scalar_t* fragment_rows(scalar_t* stage) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  return stage + (lane / 16 * 8 + lane % 8) * WarpgroupMlp::kPitch + warp * 16 + lane / 8 % 2 * 8;
}

// Starts the copies of a warpgroup's tile of x; zeros beyond it.
template <typename scalar_t>
__device__ __forceinline__ void copy_features(scalar_t* stage, const Operand<scalar_t>& x, int image, int column) {
  constexpr int kPieces = WarpgroupMlp::kColumns / 8, kRowsAtOnce = kWarpgroup / kPieces;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  int row = thread / kPieces;
  column += thread % kPieces * 8;
  const int rows = image < x.batch && column < x.columns ? x.rows : 0;
  const scalar_t* from = x.data + image * x.batch_stride + row * x.row_stride + column;
  scalar_t* to = stage + row * WarpgroupMlp::kPitch + thread % kPieces * 8;
#pragma unroll 1  // registers are short
  for (; row < WarpgroupMlp::kTokens; row += kRowsAtOnce) {
    cp_async(to, from, row < rows);
    from += kRowsAtOnce * x.row_stride;
    to += kRowsAtOnce * WarpgroupMlp::kPitch;
  }
}

// n^T of a warp's 16 channels as fragments, from x in shared memory.
template <typename scalar_t>
__device__ __forceinline__ void load_normalised(uint32_t (&n)[WarpgroupMlp::kSteps][4], const scalar_t* rows,
                                                const WarpgroupMlpArguments<scalar_t>& arguments, int image,
                                                int channel) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* statistics =
      arguments.statistics + (static_cast<int64_t>(image) * WarpgroupMlp::kTokens + lane % 4 * 2) * 2;
  float weight[2], bias[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = channel + lane / 4 + half * 8;
    float loaded[2][1] = {};
    if (own < arguments.channels) {
      arguments.norm.load_weight(loaded[0], own);
      arguments.norm.load_bias(loaded[1], own);
    }
    weight[half] = loaded[0][0];
    bias[half] = loaded[1][0];
  }
#pragma unroll
  for (int k = 0; k < WarpgroupMlp::kSteps; ++k) {
    uint32_t x[4];
    ldmatrix_transposed(x, rows + k * 16 * WarpgroupMlp::kPitch);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float token[4];  // mean and rstd of two
      load_floats(token, statistics + (k * 16 + i / 2 * 8) * 2);
      float pair[2];
      to_floats(pair, Vector<scalar_t, 2>{x[i]});
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        pair[j] = (pair[j] - token[2 * j]) * token[2 * j + 1] * weight[i % 2] + bias[i % 2];
      }
      n[k][i] = pack_pair<scalar_t>(pair[0], pair[1]);
    }
  }
}

// x of a warp's 16 channels in shared memory becomes y.
template <typename scalar_t>
__device__ __forceinline__ void add_update(scalar_t* rows, const float (&update)[WarpgroupMlp::kTokens / 2],
                                           const float* bias2) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < WarpgroupMlp::kSteps; ++k) {
    uint32_t words[4];
    ldmatrix_transposed(words, rows + k * 16 * WarpgroupMlp::kPitch);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float pair[2], bias[2];
      to_floats(pair, Vector<scalar_t, 2>{words[i]});
      load_floats(bias, bias2 + k * 16 + i / 2 * 8 + lane % 4 * 2);
      const float (&own)[WarpgroupMlp::kTokens / 2] = update;
      words[i] =
          pack_pair<scalar_t>(pair[0] + (own[k * 8 + i * 2] + bias[0]), pair[1] + (own[k * 8 + i * 2 + 1] + bias[1]));
    }
    stmatrix_transposed(rows + k * 16 * WarpgroupMlp::kPitch, words);
  }
}

#endif  // MIXER_KERNELS_WARPGROUPS

template <typename scalar_t, Activation kActivation>
__global__ void __launch_bounds__(WarpgroupMlp::kThreads, 1)
    warpgroup_mlp_kernel(const __grid_constant__ WarpgroupMlpArguments<scalar_t> arguments) {
#if defined(MIXER_KERNELS_WARPGROUPS)
  using Mlp = WarpgroupMlp;
  constexpr int kUnitSteps = Mlp::kUnits / 16;
  unsigned char* shared = dynamic_shared<unsigned char>();
  shared += (Mlp::kAlignment - reinterpret_cast<uintptr_t>(shared) % Mlp::kAlignment) % Mlp::kAlignment;
  auto* slots = reinterpret_cast<scalar_t*>(shared);
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
  auto* stages = reinterpret_cast<scalar_t*>(shared + Mlp::kSlots * Mlp::kSlotBytes) +
                 warpgroup * Mlp::kStages * Mlp::kStageElements;
  auto* barriers = reinterpret_cast<SharedBarrier*>(shared + Mlp::kSlots * Mlp::kSlotBytes + Mlp::kFeatureBytes);

  const int step = static_cast<int>(gridDim.x);
  const int block_tiles = (arguments.tiles() - static_cast<int>(blockIdx.x) + step - 1) / step;
  WeightStream<scalar_t> stream(slots, barriers, arguments.weights, block_tiles);
  const auto image_of = [&](int tile) { return (tile * Mlp::kWarpgroups + warpgroup) / arguments.column_tiles(); };
  const auto column_of = [&](int tile) {
    return (tile * Mlp::kWarpgroups + warpgroup) % arguments.column_tiles() * Mlp::kColumns;
  };
  int tile = static_cast<int>(blockIdx.x), stage = 0;
  copy_features(stages, arguments.x, image_of(tile), column_of(tile));
  cp_async_commit();

  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < block_tiles; ++i, tile += step) {
    scalar_t* x = stages + stage * Mlp::kStageElements;
    stage ^= 1;
    // Everybody has stored the tile before this one, whose place the next one takes.
    warpgroup_sync();
    if (i + 1 < block_tiles) {
      copy_features(stages + stage * Mlp::kStageElements, arguments.x, image_of(tile + step), column_of(tile + step));
    }
    cp_async_commit();
    cp_async_wait<1>();
    warpgroup_sync();
    const int image = image_of(tile), column = column_of(tile);
    const int warp_column = column + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16;
    uint32_t n[Mlp::kSteps][4], h[kUnitSteps][4];
    float z[Mlp::kUnits / 2];
    load_normalised(n, fragment_rows(x), arguments, image < arguments.x.batch ? image : 0, warp_column);

    float y[Mlp::kTokens / 2] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < arguments.weights.chunks; ++chunk) {
      const auto* weight1 = reinterpret_cast<const unsigned char*>(stream.next());
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Mlp::kSteps; ++k) {
        constexpr int kFull = Mlp::kFullBlocks;
        const uint64_t b = k < 4 * kFull ? matrix_descriptor<128>(weight1 + k / 4 * Mlp::kFullBlockBytes + k % 4 * 32)
                                         : matrix_descriptor<32>(weight1 + kFull * Mlp::kFullBlockBytes +
                                                                 (k - 4 * kFull) * Mlp::kNarrowBlockBytes);
        wgmma<scalar_t>(z, n[k], b, k > 0);
      }
      wgmma_commit();
      stream.refill();
      wgmma_wait<scalar_t, 0>(z);
      if (chunk > 0) stream.release(2);  // the second weights of the chunk before
      stream.release(1);

      const float* bias1 = arguments.weights.bias1 + chunk * Mlp::kUnits + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < Mlp::kUnits / 8; ++j) {
        float bias[2];
        load_floats(bias, bias1 + j * 8);
        float value[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) value[e] = activate<kActivation, false>(z[j * 4 + e] + bias[e % 2]).value;
        h[j / 2][j % 2 * 2] = pack_pair<scalar_t>(value[0], value[1]);
        h[j / 2][j % 2 * 2 + 1] = pack_pair<scalar_t>(value[2], value[3]);
      }

      const auto* weight2 = reinterpret_cast<const unsigned char*>(stream.next());
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kUnitSteps; ++k) {
        wgmma<scalar_t>(y, h[k], matrix_descriptor<128>(weight2 + k * 32), true);
      }
      wgmma_commit();
      stream.refill();
    }
    wgmma_wait<scalar_t, 0>(y);
    stream.release(1);

    add_update(fragment_rows(x), y, arguments.weights.bias2);
    warpgroup_sync();
    if (image < arguments.x.batch) {
      const auto out = arguments.y.tile({image, 0, column});
      const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
      constexpr int kPieces = Mlp::kColumns / 8;
      for (int row = thread / kPieces; row < arguments.x.rows; row += kWarpgroup / kPieces) {
        uint32_t words[4];
        memcpy(words, x + row * Mlp::kPitch + thread % kPieces * 8, sizeof(words));
        store_words(out, row, thread % kPieces * 8, words);
      }
    }
  }
  cp_async_wait<0>();
#endif
}

}  // namespace mixer_kernels
