// The weights of token mixing on Hopper's warpgroups: packed beforehand as shared memory wants them, they stream
// through a ring of slots, tile after tile.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "common/warpgroup_tile.cuh"

namespace mixer_kernels {

// What the products take of the weights at a time: a chunk of hidden units, which fills a slot of shared memory. Of
// weight1, and of weight2 transposed, it is kUnits rows; of weight2 as it is a single full block of kTokens rows.
struct UnitChunk {
  static constexpr int kUnits = 64, kSlots = 4;
  using Rows = BlockedWeight<kUnits>;
  static constexpr int kBytes = Rows::kBytes;
  static_assert(kBytes == WarpgroupTile::kTokens * kUnits * 2);
  static constexpr int kRingBytes = kSlots * kBytes + 128;  // behind the slots their barriers
};

// Chunks of both weights in turns, and the biases, zeros where there is none.
template <typename scalar_t>
struct MlpWeights {
  scalar_t* slots;
  float *bias1, *bias2;
  int chunks;

  static int chunks_of(int hidden) { return (hidden + UnitChunk::kUnits - 1) / UnitChunk::kUnits; }
  static constexpr int kSlotElements = UnitChunk::kBytes / sizeof(scalar_t);
  int64_t slot_elements() const { return int64_t{2} * chunks * kSlotElements; }
};

template <typename scalar_t>
struct PackMlpArguments {
  const scalar_t *weight1, *bias1, *weight2, *bias2;  // contiguous; the biases may be null
  int tokens, hidden;
  bool transposes_second;
  MlpWeights<scalar_t> to;

  __host__ __device__ int64_t pieces() const { return int64_t{2} * to.chunks * (UnitChunk::kBytes / 16); }
  __host__ __device__ int biases() const { return to.chunks * UnitChunk::kUnits + WarpgroupTile::kTokens; }
};

// One thread packs a piece of 16 bytes, or a bias.
constexpr int kPackMlpThreads = 256;
template <typename scalar_t>
__global__ void __launch_bounds__(kPackMlpThreads)
    pack_mlp_kernel(const __grid_constant__ PackMlpArguments<scalar_t> arguments) {
  constexpr int kUnits = UnitChunk::kUnits, kTokens = WarpgroupTile::kTokens;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kPackMlpThreads + threadIdx.x;
  const int tokens = arguments.tokens, hidden = arguments.hidden;
  if (number >= arguments.pieces()) {
    const int64_t unit = number - arguments.pieces();
    const int64_t token = unit - arguments.to.chunks * kUnits;
    if (token < 0) {
      arguments.to.bias1[unit] = bias_at(arguments.bias1, static_cast<int>(unit), hidden);
    } else if (token < kTokens) {
      arguments.to.bias2[token] = bias_at(arguments.bias2, static_cast<int>(token), tokens);
    }
    return;
  }

  constexpr int kSlotPieces = UnitChunk::kBytes / 16;
  const int slot = static_cast<int>(number / kSlotPieces), piece = static_cast<int>(number % kSlotPieces);
  const bool is_first = slot % 2 == 0, has_unit_rows = is_first || arguments.transposes_second;
  const int row_pieces = (has_unit_rows ? kTokens : kUnits) / 8;
  const int row = piece / row_pieces, column = piece % row_pieces * 8;
  const int offset =
      has_unit_rows ? UnitChunk::Rows::offset(row, column) : row * kUnits + swizzled_piece<128>(row, column / 8) * 8;
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int unit = slot / 2 * kUnits + (has_unit_rows ? row : column + i);
    const int token = has_unit_rows ? column + i : row;
    values[i] = 0.0f;
    if (unit < hidden && token < tokens) {
      values[i] = to_acc(is_first ? arguments.weight1[static_cast<int64_t>(unit) * tokens + token]
                                  : arguments.weight2[static_cast<int64_t>(token) * hidden + unit]);
    }
  }
  store_floats(arguments.to.slots + static_cast<int64_t>(slot) * MlpWeights<scalar_t>::kSlotElements + offset, values);
}

#if defined(MIXER_KERNELS_WARPGROUPS)

// The weights on their way through the ring. Every warp takes the slots in their order and gives them back; the block's
// first thread refills them.
template <typename scalar_t>
class WeightStream {
 public:
  // Through a ring in shared memory, for that many tiles of the block.
  __device__ __forceinline__ WeightStream(unsigned char* ring, const MlpWeights<scalar_t>& weights, int tiles)
      : slots_(reinterpret_cast<scalar_t*>(ring)),
        full_(reinterpret_cast<SharedBarrier*>(ring + kSlots * UnitChunk::kBytes)),
        weights_(weights),
        count_(2 * weights.chunks * tiles) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlots; ++i) {
        full_[i].init(1);
        empty()[i].init(WarpgroupTile::kThreads / 32);
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
    if (threadIdx.x == 0 && taken_ >= 3) {
      empty()[(taken_ - 3) % kSlots].wait((taken_ - 3) / kSlots % 2);
      fill(taken_ - 3 + kSlots);
    }
    __syncwarp();
  }

 private:
  static constexpr int kSlots = UnitChunk::kSlots, kSlotElements = MlpWeights<scalar_t>::kSlotElements;

  __device__ __forceinline__ SharedBarrier* empty() const { return full_ + kSlots; }

  __device__ __forceinline__ void fill(int number) {
    if (number >= count_) return;
    const scalar_t* from = weights_.slots + static_cast<int64_t>(number % (2 * weights_.chunks)) * kSlotElements;
    full_[number % kSlots].arrive_with_copy(slots_ + number % kSlots * kSlotElements, from, UnitChunk::kBytes);
  }

  scalar_t* slots_;
  SharedBarrier* full_;
  const MlpWeights<scalar_t>& weights_;
  int count_, taken_ = 0;
};

// What the sums of a chunk's z begin with.
template <typename scalar_t>
__device__ __forceinline__ void load_bias1(float (&z)[UnitChunk::kUnits / 2], const MlpWeights<scalar_t>& weights,
                                           int chunk) {
  const float* bias1 = weights.bias1 + chunk * UnitChunk::kUnits + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < UnitChunk::kUnits / 8; ++j) {
    float bias[2];
    load_floats(bias, bias1 + j * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) z[j * 4 + i] = bias[i % 2];
  }
}

#endif  // MIXER_KERNELS_WARPGROUPS

}  // namespace mixer_kernels
