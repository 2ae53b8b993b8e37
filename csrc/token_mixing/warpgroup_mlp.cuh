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
#include "common/vector.cuh"
#include "common/warpgroup_tile.cuh"
#include "token_mixing/token_norm.cuh"

namespace mixer_kernels {

struct WarpgroupMlp : WarpgroupTile {
  static constexpr int kUnits = 64;  // of a chunk

  // A slot holds a chunk of weight1, kUnits rows, or one of weight2, a single full block.
  using Weight1 = BlockedWeight<kUnits>;
  static constexpr int kSlotBytes = Weight1::kBytes, kSlots = 4;
  static_assert(kSlotBytes == kTokens * kUnits * 2);

  static constexpr int kSharedBytes = kAlignment + kSlots * kSlotBytes + kFeatureBytes + 2 * kSlots * 8;
  static_assert(kSharedBytes <= kMostShared);
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
  const int slot = static_cast<int>(number / kSlotPieces), piece = static_cast<int>(number % kSlotPieces);
  const int first_unit = slot / 2 * Mlp::kUnits;
  const bool is_first = slot % 2 == 0;
  constexpr int kRowPieces = Mlp::kTokens / 8, kUnitPieces = Mlp::kUnits / 8;
  int row = piece / (is_first ? kRowPieces : kUnitPieces), column = piece % (is_first ? kRowPieces : kUnitPieces) * 8;
  const int offset =
      is_first ? Mlp::Weight1::offset(row, column) : row * Mlp::kUnits + swizzled_piece<128>(row, column / 8) * 8;
  (is_first ? row : column) += first_unit;
  const scalar_t* weight = is_first ? arguments.weight1 : arguments.weight2;
  const int rows = is_first ? hidden : tokens, columns = is_first ? tokens : hidden;
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool inside = row < rows && column + i < columns;
    values[i] = inside ? to_acc(weight[static_cast<int64_t>(row) * columns + column + i]) : 0.0f;
  }
  store_floats(arguments.to.slots + static_cast<int64_t>(slot) * MlpWeights<scalar_t>::kSlotElements + offset, values);
}

template <typename scalar_t>
struct WarpgroupMlpArguments {
  Operand<scalar_t> x;
  NormParameters<scalar_t> norm;
  int channels;             // of x's columns
  const float* statistics;  // mean and rstd of each token, kTokens of an image, zeros beyond
  MlpWeights<scalar_t> weights;
  TokenOutput<scalar_t> y;
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

  // Refills the slot that this warp has taken three calls ago and given back. To be called after each next(), behind
  // the start of the products: the other warps may take a while.
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

// The activated hidden units, rounded, as the first operand of the second product.
template <Activation kActivation, typename scalar_t>
__device__ __forceinline__ void activate_units(uint32_t (&h)[WarpgroupMlp::kUnits / 16][4],
                                               const float (&z)[WarpgroupMlp::kUnits / 2], const float* bias1) {
  bias1 += static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < WarpgroupMlp::kUnits / 8; ++j) {
    float bias[2], value[4];
    load_floats(bias, bias1 + j * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = activate<kActivation, false>(z[j * 4 + i] + bias[i % 2]).value;
    h[j / 2][j % 2 * 2] = pack_pair<scalar_t>(value[0], value[1]);
    h[j / 2][j % 2 * 2 + 1] = pack_pair<scalar_t>(value[2], value[3]);
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
  unsigned char* shared = aligned_shared();
  auto* stages = reinterpret_cast<scalar_t*>(shared + Mlp::kSlots * Mlp::kSlotBytes);
  auto* barriers = reinterpret_cast<SharedBarrier*>(shared + Mlp::kSlots * Mlp::kSlotBytes + Mlp::kFeatureBytes);
  WeightStream<scalar_t> stream(reinterpret_cast<scalar_t*>(shared), barriers, arguments.weights,
                                tiles_of_block(warpgroup_tiles(arguments.x)));
  for_each_tile(arguments.x, arguments.y, stages, [&](scalar_t* rows, int image, int channel) {
    uint32_t n[Mlp::kSteps][4];
    load_normalised(n, rows, arguments, image, channel);
    float y[Mlp::kTokens / 2] = {};
    float z[Mlp::kUnits / 2];
    uint32_t h[Mlp::kUnits / 16][4];
#pragma unroll 1
    for (int chunk = 0; chunk < arguments.weights.chunks; ++chunk) {
      const scalar_t* weight1 = stream.next();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Mlp::kSteps; ++k) {
        wgmma<scalar_t>(z, n[k], Mlp::Weight1::descriptor(weight1, k), k > 0);
      }
      wgmma_commit();
      stream.refill();
      wgmma_wait<scalar_t, 0>(z);
      if (chunk > 0) stream.release(2);  // the second weights of the chunk before
      stream.release(1);

      activate_units<kActivation, scalar_t>(h, z, arguments.weights.bias1 + chunk * Mlp::kUnits);

      const scalar_t* weight2 = stream.next();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Mlp::kUnits / 16; ++k) {
        wgmma<scalar_t>(y, h[k], matrix_descriptor<128>(weight2 + k * 16), true);
      }
      wgmma_commit();
      stream.refill();
    }
    wgmma_wait<scalar_t, 0>(y);
    stream.release(1);
    add_update(rows, y, arguments.weights.bias2);
  });
#endif
}

}  // namespace mixer_kernels
