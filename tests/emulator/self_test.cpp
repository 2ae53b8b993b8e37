// The emulator's own test: sound kernels that must pass, and one planted bug of each kind that it must catch.
//   emulator_self_test CASE SEED
// exits 0 if the kernel's result is right, 2 if it is wrong; sanitizers and the emulator end it otherwise.
#include <cmath>
#include <cstring>
#include <string>

#include "cuda_emulator.h"

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
  emulator::emulate(seed, kBlocks, kThreads, kThreads * sizeof(float), &reverse_kernel<kBug>, data.data());
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    float expected = static_cast<float>(i / kThreads * kThreads + kThreads - 1 - i % kThreads);
    if (kBug == Bug::kMissingSyncwarp) expected = static_cast<float>(i / 32 * 32 + (i + 1) % 32);
    if (kBug == Bug::kRaceInPlace) expected = static_cast<float>(i % kThreads > 0 ? i - 1 : i);
    if (!(data[i] == expected)) return 2;
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

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const std::string name = argv[1];
  const uint64_t seed = std::stoull(argv[2]);
  if (name == "sum") return run_sum(seed);
  if (name == "half") return run_half();
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
  return 1;
}
