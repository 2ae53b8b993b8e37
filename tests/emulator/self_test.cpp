// The emulator's own test: sound kernels that must pass, and one planted bug of each kind that it must catch.
//   emulator_self_test CASE SEED
// exits 0 if the kernel's result is right, 2 if it is wrong; sanitizers and the emulator end it otherwise.
#include <cmath>
#include <cstring>
#include <string>

#include "common/activation.cuh"
#include "common/mma.cuh"
#include "common/vector.cuh"
#include "common/warpgroup.cuh"

namespace {

constexpr int kThreads = 96;

// Each block sums its numbers: shuffles within a warp, then shared memory across the three warps.
__global__ void sum_kernel(const float* in, float* out) {
  __shared__ float partial[kThreads / 32];
  float value = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_xor_sync(0xffffffffu, value, delta);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0] + partial[1] + partial[2];
}

// A block turns its numbers round through dynamic shared memory. The bugs are template arguments.
enum class Bug {
  kNone,
  kMissingBarrier,
  kUninitialised,
  kPastShared,
  kPastGlobal,
  kPastStaticShared,
  kMisaligned,
  kTwoBarriers,
  kEarlyExit,
  kMissingSyncwarp,
  kInactiveLane,
  kRaceInPlace,
  kMuchShared,
};

template <Bug kBug>
__global__ void reverse_kernel(float* data) {
  float* tile = static_cast<float*>(emulator::dynamic_shared);
  __shared__ float fixed[kThreads];
  const unsigned i = threadIdx.x;
  float* mine = data + blockIdx.x * kThreads;
  if (kBug == Bug::kEarlyExit && i >= 64) return;
  if (kBug == Bug::kMisaligned) {
    // 16 bytes at an address that is a multiple of 4.
    *reinterpret_cast<float4*>(tile + 1) = float4{};
    return;
  }
  if (kBug == Bug::kRaceInPlace) {
    mine[i] = i > 0 ? mine[i - 1] : mine[0];
    return;
  }
  if (kBug == Bug::kMissingSyncwarp) {
    const unsigned lane = i % 32, warp = i - lane;
    tile[i] = mine[i];
    mine[i] = tile[warp + (lane + 1) % 32];
    return;
  }
  if (kBug == Bug::kInactiveLane) {
    if (i % 32 < 16) mine[i] = __shfl_sync(0xffffu, mine[i], 20);
    return;
  }
  if (kBug != Bug::kUninitialised || i != 7) tile[i + (kBug == Bug::kPastShared ? 1 : 0)] = mine[i];
  fixed[i + (kBug == Bug::kPastStaticShared ? 1 : 0)] = 1.0f;
  if (kBug == Bug::kTwoBarriers) {
    if (i < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (kBug != Bug::kMissingBarrier) {
    __syncthreads();
  }
  mine[i + (kBug == Bug::kPastGlobal ? 1 : 0)] = tile[kThreads - 1 - i] * fixed[i];
}

constexpr int kBlocks = 3;

int run_sum(uint64_t seed) {
  std::vector<float> in(kBlocks * kThreads), out(kBlocks, NAN);
  std::iota(in.begin(), in.end(), 0.0f);
  emulator::emulate(seed, kBlocks, kThreads, 0, &sum_kernel, in.data(), out.data());
  for (int block = 0; block < kBlocks; ++block) {
    if (out[block] != kThreads * (kThreads * block + (kThreads - 1) / 2.0f)) return 2;
  }
  return 0;
}

template <Bug kBug>
int run_reverse(uint64_t seed) {
  std::vector<float> data(kBlocks * kThreads);
  std::iota(data.begin(), data.end(), 0.0f);
  const size_t shared_bytes = kBug == Bug::kMuchShared ? 228 * 1024 : kThreads * sizeof(float);
  emulator::emulate(seed, kBlocks, kThreads, shared_bytes, &reverse_kernel<kBug>, data.data());
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    float expected = static_cast<float>(i / kThreads * kThreads + kThreads - 1 - i % kThreads);
    if (kBug == Bug::kMissingSyncwarp) expected = static_cast<float>(i / 32 * 32 + (i + 1) % 32);
    if (kBug == Bug::kRaceInPlace) expected = static_cast<float>(i % kThreads > 0 ? i - 1 : i);
    if (!(data[i] == expected)) return 2;
  }
  return 0;
}

// One warp multiplies 16 x 8 outputs, each lane gathering its fragments element by element as common/mma.cuh says.
template <typename scalar_t>
__global__ void mma_kernel(const scalar_t* a, const scalar_t* b, float* c, bool swap_rows, bool skip_a_lane) {
  constexpr int kPack = sizeof(uint32_t) / sizeof(scalar_t);
  constexpr int kDepth = 8 * kPack;
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  if (skip_a_lane && threadIdx.x == 5) return;
  uint32_t a_fragment[4], b_fragment[2];
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (swap_rows ? 1 - i % 2 : i % 2);
    std::memcpy(&a_fragment[i], a + row * kDepth + (t + 4 * (i / 2)) * kPack, sizeof(uint32_t));
  }
  for (int i = 0; i < 2; ++i) {
    scalar_t elements[kPack];
    for (int j = 0; j < kPack; ++j) elements[j] = b[((t + 4 * i) * kPack + j) * 8 + g];
    std::memcpy(&b_fragment[i], elements, sizeof(uint32_t));
  }
  float c_fragment[4];
  for (int i = 0; i < 4; ++i) c_fragment[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  mixer_kernels::mma<scalar_t>(c_fragment, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c_fragment[i];
}

template <typename scalar_t>
int run_mma(uint64_t seed, bool swap_rows = false, bool skip_a_lane = false) {
  constexpr int kDepth = 32 / sizeof(scalar_t);
  std::vector<scalar_t> a(16 * kDepth), b(kDepth * 8);
  std::vector<float> c(16 * 8), expected(16 * 8);
  // Every element differs from every other, and every product and sum is exact.
  for (size_t i = 0; i < a.size(); ++i) a[i] = mixer_kernels::from_acc<scalar_t>(static_cast<float>(i) - 100.0f);
  for (size_t i = 0; i < b.size(); ++i) b[i] = mixer_kernels::from_acc<scalar_t>(static_cast<float>(i * 7 % 128) - 50);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      const int at = row * 8 + column;
      c[at] = expected[at] = static_cast<float>(at);
      for (int k = 0; k < kDepth; ++k) {
        expected[at] += mixer_kernels::to_acc(a[row * kDepth + k]) * mixer_kernels::to_acc(b[k * 8 + column]);
      }
    }
  }
  emulator::emulate(seed, 1, 32, 0, &mma_kernel<scalar_t>, a.data(), b.data(), c.data(), swap_rows, skip_a_lane);
  return c == expected ? 0 : 2;
}

// Rounding to tf32, and the fraction bits that the tensor cores ignore.
int run_tf32() {
  const auto rounded = [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits = mixer_kernels::to_tf32(bits);
    std::memcpy(&value, &bits, sizeof(bits));
    return value;
  };
  if (rounded(1.0f + 0x1p-11f) != 1.0f + 0x1p-10f || rounded(-1.0f - 0x1p-11f) != -1.0f - 0x1p-10f) return 2;
  if (rounded(1.0f + 0x1.8p-12f) != 1.0f || !std::isnan(rounded(NAN)) || rounded(INFINITY) != INFINITY) return 2;
  return 0;
}

// A warp loads four 8 x 8 matrices that lie side by side, eight rows of 80 bytes.
__global__ void ldmatrix_kernel(const uint16_t* in, uint16_t* out, bool transposed) {
  auto* shared = mixer_kernels::dynamic_shared<uint16_t>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 8 * 32; i += 32) shared[i / 32 * 40 + i % 32] = in[i];
  __syncwarp();
  uint32_t fragment[4];
  const uint16_t* row = shared + lane % 8 * 40 + lane / 8 * 8;
  if (transposed) {
    mixer_kernels::ldmatrix_transposed(fragment, row);
  } else {
    mixer_kernels::ldmatrix(fragment, row);
  }
  std::memcpy(out + lane * 8, fragment, sizeof(fragment));
}

int run_ldmatrix(uint64_t seed, bool transposed) {
  std::vector<uint16_t> in(8 * 32), out(8 * 32);
  std::iota(in.begin(), in.end(), uint16_t{0});
  emulator::emulate(seed, 1, 32, 8 * 40 * sizeof(uint16_t), &ldmatrix_kernel, in.data(), out.data(), transposed);
  for (int i = 0; i < 8 * 32; ++i) {
    const int lane = i / 8, matrix = i % 8 / 2, inner = lane % 4 * 2 + i % 2, outer = lane / 4;
    const int row = transposed ? inner : outer, column = matrix * 8 + (transposed ? outer : inner);
    if (out[i] != row * 32 + column) return 2;
  }
  return 0;
}

// A warp loads four matrices transposed and stores them where they were.
__global__ void stmatrix_kernel(const uint16_t* in, uint16_t* out) {
  auto* shared = mixer_kernels::dynamic_shared<uint16_t>();
  const int lane = static_cast<int>(threadIdx.x);
  uint16_t *from = shared + lane * 8, *to = from + 8 * 32;
  std::memcpy(from, in + lane * 8, 16);
  __syncwarp();
  uint32_t fragment[4];
  mixer_kernels::ldmatrix_transposed(fragment, from);
  mixer_kernels::stmatrix_transposed(to, fragment);
  std::memcpy(out + lane * 8, to, 16);
}

int run_stmatrix(uint64_t seed) {
  std::vector<uint16_t> in(8 * 32), out(8 * 32);
  std::iota(in.begin(), in.end(), uint16_t{0});
  emulator::emulate(seed, 1, 32, 2 * 8 * 32 * sizeof(uint16_t), &stmatrix_kernel, in.data(), out.data());
  return in == out ? 0 : 2;
}

// Two warpgroups multiply 128 rows of a by 64 columns, whose rows of kRowBytes pass through a ring of two slots.
enum class RingBug { kNone, kMissingWait, kTouchedOperand, kEarlyRefill, kNoRelease, kWrongSwizzle, kUnfinished };
constexpr int kRingRounds = 5;

template <int kRowBytes, RingBug kBug>
__global__ void ring_kernel(const __half* a, const __half* b, float* c) {
  using mixer_kernels::SharedBarrier;
  constexpr int kDepth = kRowBytes / 2, kSlotBytes = 64 * kRowBytes;
  auto* shared = mixer_kernels::dynamic_shared<unsigned char>();
  unsigned char* slots = shared + 1024 - reinterpret_cast<uintptr_t>(shared) % 1024;
  auto *full = reinterpret_cast<SharedBarrier*>(slots + 2 * kSlotBytes), *empty = full + 2;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, row = thread / 32 * 16 + lane / 4;
  const auto fill = [&](int round) {
    if (round < kRingRounds + (kBug == RingBug::kUnfinished ? 1 : 0)) {
      full[round % 2].arrive_with_copy(slots + round % 2 * kSlotBytes, b + round % kRingRounds * 64 * kDepth,
                                       kSlotBytes);
    }
  };
  if (thread == 0) {
    for (int i = 0; i < 2; ++i) {
      full[i].init(1);
      empty[i].init(256 / 32);
    }
  }
  __syncthreads();
  if (thread == 0) fill(0);
  if (thread == 0) fill(1);

  float sums[32] = {};
  uint32_t operand[kDepth / 16][4];
  for (int round = 0; round < kRingRounds; ++round) {
    full[round % 2].wait(round / 2 % 2);
    for (int k = 0; k < kDepth / 16; ++k) {
      for (int i = 0; i < 4; ++i) {
        const int column = round * kDepth + k * 16 + lane % 4 * 2 + i / 2 * 8;
        std::memcpy(&operand[k][i], a + (row + i % 2 * 8) * kRingRounds * kDepth + column, sizeof(uint32_t));
      }
    }
    mixer_kernels::wgmma_fence();
    for (int k = 0; k < kDepth / 16; ++k) {
      mixer_kernels::wgmma<__half>(
          sums, operand[k], mixer_kernels::matrix_descriptor<kRowBytes>(slots + round % 2 * kSlotBytes + k * 32), true);
    }
    mixer_kernels::wgmma_commit();
    if (kBug == RingBug::kTouchedOperand) operand[0][1] ^= 1;
    const bool waits = kBug != RingBug::kMissingWait || round + 1 < kRingRounds;
    if (waits) mixer_kernels::wgmma_wait<__half, 0>(sums);
    if (lane == 0 && kBug != RingBug::kNoRelease) empty[round % 2].arrive();
    if (thread == 0 && round + 2 < kRingRounds + 1) {
      if (kBug != RingBug::kEarlyRefill) empty[round % 2].wait(round / 2 % 2);
      fill(round + 2);
    }
  }
  for (int i = 0; i < 32; ++i) c[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
  if (kBug == RingBug::kMissingWait) mixer_kernels::wgmma_wait<__half, 0>(sums);
}

template <int kRowBytes, RingBug kBug>
int run_ring(uint64_t seed) {
  constexpr int kDepth = kRowBytes / 2, kAll = kRingRounds * kDepth;
  std::vector<__half> a(128 * kAll), b(64 * kAll);
  std::vector<float> c(128 * 64, NAN);
  // Every product and sum is exact.
  const auto a_at = [](int row, int k) { return static_cast<float>((row * 7 + k * 5) % 61 - 30); };
  const auto b_at = [](int column, int k) { return static_cast<float>((column * 11 + k * 3) % 53 - 26); };
  for (int row = 0; row < 128; ++row) {
    for (int k = 0; k < kAll; ++k) a[row * kAll + k] = __float2half_rn(a_at(row, k));
  }
  for (int column = 0; column < 64; ++column) {
    for (int k = 0; k < kAll; ++k) {
      // As the chip swizzles addresses: of 128 bytes, bits 4 to 6 by bits 7 to 9; of 32, bit 4 by bit 7.
      int address = column * kRowBytes + k % kDepth * 2;
      if (kBug != RingBug::kWrongSwizzle) address ^= (address >> 7 & (kRowBytes == 128 ? 7 : 1)) << 4;
      b[k / kDepth * 64 * kDepth + address / 2] = __float2half_rn(b_at(column, k));
    }
  }
  emulator::emulate(seed, 2, 256, 1024 + 2 * 64 * kRowBytes + 32, &ring_kernel<kRowBytes, kBug>, a.data(), b.data(),
                    c.data());
  for (int row = 0; row < 128; ++row) {
    for (int column = 0; column < 64; ++column) {
      float expected = 0.0f;
      for (int k = 0; k < kAll; ++k) expected += a_at(row, k) * b_at(column, k);
      if (!(c[row * 64 + column] == expected)) return 2;
    }
  }
  return 0;
}

// A block copies its numbers through two stages of shared memory, 16 bytes a thread, and turns each round. The last
// thread brings zeros.
enum class CopyBug { kNone, kMissingWait, kMissingBarrier, kEarlyReuse, kUnfinished, kMisaligned, kPastGlobal };

template <CopyBug kBug>
__global__ void copy_kernel(const float* in, float* out, int rounds) {
  auto* shared = mixer_kernels::dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  const auto issue = [&](int round) {
    if (round < rounds) {
      float* stage = shared + round % 2 * 4 * count + (kBug == CopyBug::kMisaligned ? 1 : 0);
      const bool inside = i < count - 1 || kBug == CopyBug::kPastGlobal;
      mixer_kernels::cp_async(stage + 4 * i, in + 4 * (round * count + i), inside);
    }
    mixer_kernels::cp_async_commit();
  };
  issue(0);
  for (int round = 0; round < rounds; ++round) {
    if (kBug == CopyBug::kEarlyReuse) issue(round + 1);
    if (kBug != CopyBug::kMissingWait) mixer_kernels::cp_async_wait<kBug == CopyBug::kEarlyReuse ? 1 : 0>();
    if (kBug != CopyBug::kMissingBarrier) __syncthreads();
    if (kBug != CopyBug::kEarlyReuse) issue(round + 1);
    const float* stage = shared + round % 2 * 4 * count;
    for (int j = 0; j < 4; ++j) out[4 * (round * count + i) + j] = stage[4 * (count - 1 - i) + 3 - j];
  }
  if (kBug == CopyBug::kUnfinished) {
    mixer_kernels::cp_async(shared, in, true);
    mixer_kernels::cp_async_commit();
  }
}

template <CopyBug kBug>
int run_copy(uint64_t seed) {
  constexpr int kRounds = 5, kNumbers = 4 * kThreads;
  std::vector<float> out(kRounds * kNumbers, NAN);
  // Exactly what the kernel may read: the copy of zeros reads nothing.
  std::vector<float> in(kRounds * kNumbers - 4);
  std::iota(in.begin(), in.end(), 1.0f);
  emulator::emulate(seed, 1, kThreads, 2 * kNumbers * sizeof(float), &copy_kernel<kBug>, in.data(), out.data(),
                    kRounds);
  for (int i = 0; i < kRounds * kNumbers; ++i) {
    const int source = i / kNumbers * kNumbers + kNumbers - 1 - i % kNumbers;
    if (out[i] != (source % kNumbers >= kNumbers - 4 ? 0.0f : in[source])) return 2;
  }
  return 0;
}

// Every half through float and back, and every float halfway between two halves.
int run_half() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = __half2float({static_cast<uint16_t>(bits)});
    if (std::isnan(value) ? (bits & 0x7fff) <= 0x7c00 : __float2half_rn(value).bits != bits) return 2;
    if ((bits & 0x7fff) >= 0x7bff) continue;
    const float next = __half2float({static_cast<uint16_t>(bits + 1)});
    const float middle = 0.5f * (value + next);
    if (__float2half_rn(middle).bits != bits + (bits & 1)) return 2;
    if (__float2half_rn(std::nextafter(middle, value)).bits != bits) return 2;
    if (__float2half_rn(std::nextafter(middle, next)).bits != bits + 1) return 2;
  }
  if (__float2half_rn(65519.0f).bits != 0x7bff || __float2half_rn(65520.0f).bits != 0x7c00) return 2;
  return 0;
}

// The cheaper GELU: as near as it says, nothing left far below zero, and NaN stays.
int run_gelu() {
  const auto gelu = [](float z) { return mixer_kernels::activate<mixer_kernels::Activation::kGelu, false>(z).value; };
  for (float z = -6.0f; z < 6.0f; z += 0x1p-8f) {
    const double exact = 0.5 * z * std::erfc(-static_cast<double>(z) * std::sqrt(0.5));
    if (!(std::abs(gelu(z) - exact) < 5e-5)) return 2;
  }
  for (float z = 6.0f; z < 1e30f; z *= 2) {
    if (!(std::abs(gelu(-z)) < 1e-5f) || !(std::abs(gelu(z) - z) < 1e-5f * z)) return 2;
  }
  return std::isnan(gelu(NAN)) ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const std::string name = argv[1];
  const uint64_t seed = std::stoull(argv[2]);
  if (name == "sum") return run_sum(seed);
  if (name == "half") return run_half();
  if (name == "gelu") return run_gelu();
  if (name == "reverse") return run_reverse<Bug::kNone>(seed);
  if (name == "missing_barrier") return run_reverse<Bug::kMissingBarrier>(seed);
  if (name == "uninitialised_shared") return run_reverse<Bug::kUninitialised>(seed);
  if (name == "past_dynamic_shared") return run_reverse<Bug::kPastShared>(seed);
  if (name == "past_static_shared") return run_reverse<Bug::kPastStaticShared>(seed);
  if (name == "past_global") return run_reverse<Bug::kPastGlobal>(seed);
  if (name == "misaligned") return run_reverse<Bug::kMisaligned>(seed);
  if (name == "two_barriers") return run_reverse<Bug::kTwoBarriers>(seed);
  if (name == "early_exit") return run_reverse<Bug::kEarlyExit>(seed);
  if (name == "missing_syncwarp") return run_reverse<Bug::kMissingSyncwarp>(seed);
  if (name == "inactive_lane") return run_reverse<Bug::kInactiveLane>(seed);
  if (name == "race_in_place") return run_reverse<Bug::kRaceInPlace>(seed);
  if (name == "much_shared") return run_reverse<Bug::kMuchShared>(seed);
  if (name == "mma_half") return run_mma<__half>(seed);
  if (name == "mma_bfloat16") return run_mma<__nv_bfloat16>(seed);
  if (name == "mma_tf32") return run_mma<float>(seed);
  if (name == "tf32") return run_tf32();
  if (name == "ldmatrix") return run_ldmatrix(seed, false);
  if (name == "ldmatrix_transposed") return run_ldmatrix(seed, true);
  if (name == "stmatrix_transposed") return run_stmatrix(seed);
  if (name == "ring") return run_ring<128, RingBug::kNone>(seed);
  if (name == "narrow_ring") return run_ring<32, RingBug::kNone>(seed);
  if (name == "ring_missing_wait") return run_ring<128, RingBug::kMissingWait>(seed);
  if (name == "ring_touched_operand") return run_ring<128, RingBug::kTouchedOperand>(seed);
  if (name == "ring_early_refill") return run_ring<128, RingBug::kEarlyRefill>(seed);
  if (name == "ring_no_release") return run_ring<128, RingBug::kNoRelease>(seed);
  if (name == "ring_wrong_swizzle") return run_ring<128, RingBug::kWrongSwizzle>(seed);
  if (name == "narrow_ring_wrong_swizzle") return run_ring<32, RingBug::kWrongSwizzle>(seed);
  if (name == "ring_unfinished") return run_ring<128, RingBug::kUnfinished>(seed);
  if (name == "copy") return run_copy<CopyBug::kNone>(seed);
  if (name == "mma_wrong_row") return run_mma<__half>(seed, true);
  if (name == "mma_missing_lane") return run_mma<__half>(seed, false, true);
  if (name == "copy_missing_wait") return run_copy<CopyBug::kMissingWait>(seed);
  if (name == "copy_missing_barrier") return run_copy<CopyBug::kMissingBarrier>(seed);
  if (name == "copy_early_reuse") return run_copy<CopyBug::kEarlyReuse>(seed);
  if (name == "copy_unfinished") return run_copy<CopyBug::kUnfinished>(seed);
  if (name == "copy_misaligned") return run_copy<CopyBug::kMisaligned>(seed);
  if (name == "copy_past_global") return run_copy<CopyBug::kPastGlobal>(seed);
  return 1;
}
