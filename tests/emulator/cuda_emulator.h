// Runs CUDA kernels on the CPU, to prove them where there is no GPU; README.md beside this says what it checks.
// Include it in one translation unit of a program: csrc/common/cuda.cuh does, under a host compiler.
#pragma once

#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// Thread-local storage is one block of memory, templates' variables included, so that it can be filled with NaN.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// For the emulator's own inner loops, which take most of its time; what they touch is the emulator's.
#define EMULATOR_UNWATCHED [[gnu::no_sanitize("address", "undefined")]]

namespace emulator {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kBlock = 1024, kWarpgroup = 128;
// Shared memory is a window with this alignment; what a kernel gets begins that far into it, for it may not expect
// more.
constexpr size_t kSharedAlignment = 1024, kSharedOffset = 128;
constexpr size_t kMostSharedBytes = 227 * 1024;  // a block's on sm_90 and sm_100

// Where a thread waits. Two threads meet only at the same place of the source and in the same phase of it.
struct Place {
  const char* file;
  int line;
  int phase;
  int width;      // of the aligned group of threads that meet here; kBlock: everybody
  unsigned mask;  // which lanes, if the group is a warp

  bool operator==(const Place& other) const {
    return line == other.line && phase == other.phase && width == other.width && mask == other.mask &&
           (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

enum class State { kReady, kWaiting, kDone };

// 16 bytes on their way into shared memory, and the group that they were committed with.
struct Copy {
  void* to;
  char bytes[16];
  int group;
};

// A warpgroup's product under way: what this thread holds of it, see warpgroup_emulator.h.
struct Product {
  float* c;
  const uint32_t* a;
  int columns;
  uint64_t b;
  bool accumulates;
  int group;
};

// A barrier in shared memory, and the bulk copies that it waits for.
struct Barrier {
  int count, pending;
  int64_t bytes = 0;
  int phase = 0;
  struct BulkCopy {
    char* to;
    std::vector<char> bytes;
  };
  std::vector<BulkCopy> copies;
};

// Where a fiber, or the scheduler, goes on.
using Jump = void* [5];

struct Thread {
  char* stack = nullptr;
  Jump jump;
  void* fake_stack = nullptr;
  State state = State::kReady;
  Place place{};
  uint64_t exchanged = 0;  // what this lane offers in a shuffle
  // What it offers to the warp's matrix instructions, in turns: a lane may be one ahead of those that still read.
  alignas(16) char offered[2][48];
  int turn = 0;
  std::vector<Copy> copies;
  int group = 0;
  std::vector<Product> products;
  std::map<float*, std::vector<float>> held;  // accumulators of products under way
  int product_group = 0;
  int spins = 0;
};

// One block at a time: its threads, who runs, and its dynamic shared memory.
inline std::vector<Thread> threads;
inline int current = -1;
inline Jump scheduler;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline std::function<void()> body;
inline void* dynamic_shared = nullptr;
inline std::map<const void*, Barrier> barriers;
inline std::mt19937 random_engine;

[[noreturn]] inline void fail(const char* what) {
  std::fflush(stdout);
  std::fprintf(stderr, "emulator: %s; block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  const Place* last = nullptr;
  for (size_t i = 0; i < threads.size(); ++i) {
    const Thread& thread = threads[i];
    const bool waits = thread.state == State::kWaiting;
    const bool repeats = waits ? last != nullptr && *last == thread.place : i > 0 && last == nullptr;
    if (!repeats && waits) {
      std::fprintf(stderr, "  from thread %zu on: waiting at %s:%d\n", i, thread.place.file, thread.place.line);
    } else if (!repeats) {
      std::fprintf(stderr, "  from thread %zu on: %s\n", i, thread.state == State::kDone ? "exited" : "running");
    }
    last = waits ? &thread.place : nullptr;
  }
  std::_Exit(1);
}

// GCC's own setjmp and longjmp: unlike swapcontext they ask nothing of the kernel, and unlike the library's
// AddressSanitizer leaves them alone. Two functions, for a function may not jump to itself.
[[noreturn, gnu::noinline, gnu::no_sanitize("address")]] inline void go_on(Jump& to) { __builtin_longjmp(to, 1); }

[[gnu::noinline, gnu::no_sanitize("address")]] inline void switch_fiber(Jump& from, Jump& to) {
  if (__builtin_setjmp(from) == 0) go_on(to);
}

[[gnu::noinline, gnu::no_sanitize("address")]] inline void enter_fiber(Jump& from, const ucontext_t& to) {
  if (__builtin_setjmp(from) == 0) setcontext(&to);
}

inline void to_scheduler() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&threads[current].fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  switch_fiber(threads[current].jump, scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(threads[current].fake_stack, nullptr, nullptr);
#endif
}

// The fiber of a thread: that of every block, one after the other.
inline void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  for (;;) {
    body();
    if (!threads[current].copies.empty()) fail("a thread exits with copies under way");
    if (!threads[current].products.empty()) fail("a thread exits with products under way");
    threads[current].state = State::kDone;
    to_scheduler();
  }
}

inline char* new_stack() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for a stack");
  mprotect(memory, kGuardBytes, PROT_NONE);
  char* stack = static_cast<char*>(memory) + kGuardBytes;
#if defined(__SANITIZE_ADDRESS__)
  // There may be red zones of a fiber that once lay here.
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
  return stack;
}

inline void start_fiber(char* stack) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, thread_main, 0);
  enter_fiber(scheduler, context);
}

inline void run(int index) {
  current = index;
  const unsigned i = static_cast<unsigned>(index);
  threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  Thread& thread = threads[index];
  const bool is_new = thread.stack == nullptr;
  if (is_new) thread.stack = new_stack();
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread.stack, kStackBytes);
#endif
  if (is_new) {
    start_fiber(thread.stack);
  } else {
    switch_fiber(scheduler, thread.jump);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// Comes to a place; everybody leaves it once all have come for whom it waits.
EMULATOR_UNWATCHED inline void wait(const Place& place) {
  Thread& self = threads[current];
  const bool has_mask = place.width == warpSize;
  if (has_mask && !(place.mask >> (current % warpSize) & 1)) fail("a lane is missing from its own mask");
  self.state = State::kWaiting;
  self.place = place;
  const int first = current / place.width * place.width;
  const int count = std::min(static_cast<int>(threads.size()) - first, place.width);
  const unsigned mask = has_mask ? place.mask : kFullMask;
  // From this thread's neighbour on, and round: the first that is not there is soon found.
  bool is_complete = true;
  for (int step = 1; step < count && is_complete; ++step) {
    const int i = (current - first + step) % count;
    const Thread& thread = threads[first + i];
    is_complete = !(mask >> i % warpSize & 1) || (thread.state == State::kWaiting && thread.place == place);
  }
  for (int i = 0; i < count && is_complete; ++i) {
    if (mask >> i % warpSize & 1) threads[first + i].state = State::kReady;
  }
  to_scheduler();
}

// Shared memory starts as NaN in every floating-point type.
inline void poison_static_shared() {
  dl_iterate_phdr(
      [](dl_phdr_info* program, size_t, void*) {
        for (int i = 0; i < program->dlpi_phnum; ++i) {
          if (program->dlpi_phdr[i].p_type == PT_TLS && program->dlpi_tls_data != nullptr) {
            std::memset(program->dlpi_tls_data, 0xff, program->dlpi_phdr[i].p_memsz);
          }
        }
        return 1;  // the first entry is the program itself; libraries keep their own
      },
      nullptr);
}

inline void run_block(size_t shared_bytes) {
  poison_static_shared();
  void* memory = nullptr;
  if (posix_memalign(&memory, kSharedAlignment, kSharedOffset + shared_bytes) != 0) fail("no shared memory");
  const std::unique_ptr<char, void (*)(void*)> window(static_cast<char*>(memory), std::free);
  std::memset(window.get(), 0xff, kSharedOffset + shared_bytes);
  dynamic_shared = window.get() + kSharedOffset;
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(window.get(), kSharedOffset);
#endif
  barriers.clear();
  for (Thread& thread : threads) {
    thread.state = State::kReady;
    thread.turn = thread.group = thread.product_group = thread.spins = 0;
  }

  std::vector<int> ready(threads.size());
  for (;;) {
    ready.clear();
    bool all_done = true;
    for (size_t i = 0; i < threads.size(); ++i) {
      if (threads[i].state == State::kReady) ready.push_back(static_cast<int>(i));
      all_done = all_done && threads[i].state == State::kDone;
    }
    if (all_done) break;
    if (ready.empty()) fail("divergent barrier: its threads wait at different places, or some have exited");
    std::shuffle(ready.begin(), ready.end(), random_engine);
    // About half of the warps stand still, so that some get ahead of others.
    const uint32_t moving = static_cast<uint32_t>(random_engine());
    const auto moves = [&](int index) { return (moving >> (index / warpSize) & 1) != 0; };
    const bool any_moves = std::any_of(ready.begin(), ready.end(), moves);
    for (const int index : ready) {
      if (!any_moves || moves(index)) run(index);
    }
  }
  for (const auto& [address, barrier] : barriers) {
    if (!barrier.copies.empty()) fail("a block ends with bulk copies under way");
  }
}

template <typename T>
T exchange(unsigned mask, T value, int source, const char* file, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 64 bits");
  Thread& self = threads[current];
  std::memcpy(&self.exchanged, &value, sizeof(T));
  wait({file, line, 0, warpSize, mask});
  const size_t partner = static_cast<size_t>(current / warpSize * warpSize + source);
  if (!(mask >> source & 1) || partner >= threads.size()) fail("a shuffle reads a lane outside its mask");
  std::memcpy(&value, &threads[partner].exchanged, sizeof(T));
  wait({file, line, 1, warpSize, mask});
  return value;
}

inline int lane() { return current % warpSize; }
inline int section(int width) { return lane() / width * width; }

// Runs kernel<<<grid, block, shared_bytes>>>(arguments...); blocks, and threads between barriers, in the seed's order.
template <typename Kernel, typename... Arguments>
void emulate(uint64_t seed, dim3 grid, dim3 block, size_t shared_bytes, Kernel* kernel, const Arguments&... arguments) {
  const size_t threads_per_block = static_cast<size_t>(block.x) * block.y * block.z;
  if (threads_per_block == 0 || threads_per_block > 1024 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
    fail("invalid launch configuration");
  }
  if (shared_bytes > kMostSharedBytes) fail("more shared memory than a block gets");
  random_engine.seed(seed);
  gridDim = grid;
  blockDim = block;
  if (threads.size() < threads_per_block) threads.resize(threads_per_block);
  while (threads.size() > threads_per_block) {
    if (threads.back().stack != nullptr) munmap(threads.back().stack - kGuardBytes, kGuardBytes + kStackBytes);
    threads.pop_back();
  }
  body = [&] { kernel(arguments...); };
  std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_engine);
  for (const uint64_t i : order) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(shared_bytes);
  }
  body = nullptr;
}

}  // namespace emulator

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::wait({file, line, 0, emulator::kBlock, 0});
}

inline void __syncwarp(unsigned mask = emulator::kFullMask, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  emulator::wait({file, line, 0, warpSize, mask});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  return emulator::exchange(mask, value, emulator::section(width) + source % width, file, line);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const int source = emulator::lane() - static_cast<int>(delta);
  return emulator::exchange(mask, value, source < emulator::section(width) ? emulator::lane() : source, file, line);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const int source = emulator::lane() + static_cast<int>(delta);
  return emulator::exchange(mask, value, source < emulator::section(width) + width ? source : emulator::lane(), file,
                            line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  const int source = emulator::lane() ^ lane_mask;
  return emulator::exchange(mask, value, source < emulator::section(width) + width ? source : emulator::lane(), file,
                            line);
}

// The fast functions of the chip, as good as the precise ones here.
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }

// The 16-bit types: plain bits and conversions that round to nearest, ties to even.
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = value.bits >> 10 & 0x1f;
  const uint32_t fraction = value.bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline __half __float2half_rn(float value) {
  if (value != value) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and more round to infinity
  if (bits < 0x38800000u) {
    // Below 2^-14: next to 0.5 a float counts in units of 2^-24, as a subnormal half does, so the addition rounds.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return {static_cast<uint16_t>(sign | (bits - 0x3f000000u))};
  }
  bits += 0xfffu + (bits >> 13 & 1);
  return {static_cast<uint16_t>(sign | (bits - 0x38000000u) >> 13)};
}

namespace emulator {

// An instruction that all 32 lanes execute together: each offers a value, and may read everybody's until it waits
// again.
template <typename T>
class Together {
 public:
  Together(const T& mine, const char* file, int line) : warp_(&threads[current / warpSize * warpSize]) {
    static_assert(sizeof(T) <= sizeof(Thread::offered[0]));
    if (threads.size() % warpSize != 0) fail("a warp's instruction in an incomplete warp");
    Thread& self = threads[current];
    turn_ = self.turn++ % 2;
    std::memcpy(self.offered[turn_], &mine, sizeof(T));
    wait({file, line, self.turn, warpSize, kFullMask});
  }
  const T& operator[](int lane) const { return *reinterpret_cast<const T*>(warp_[lane].offered[turn_]); }

 private:
  const Thread* warp_;
  int turn_;
};

inline void check_aligned(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) fail("misaligned: 16 bytes at an address that is no multiple");
}

// The elements of one 32-bit register: two of 16 bits, or a float, of which the tensor cores see the upper 19 bits.
inline void unpack(uint32_t bits, float (&to)[2], __half) {
  to[0] = __half2float({static_cast<uint16_t>(bits)});
  to[1] = __half2float({static_cast<uint16_t>(bits >> 16)});
}
inline void unpack(uint32_t bits, float (&to)[2], __nv_bfloat16) {
  to[0] = __bfloat162float({static_cast<uint16_t>(bits)});
  to[1] = __bfloat162float({static_cast<uint16_t>(bits >> 16)});
}
inline void unpack(uint32_t bits, float (&to)[1], float) {
  bits &= 0xffffe000u;
  std::memcpy(to, &bits, sizeof(bits));
}

// mma.sync m16n8k16 (16 bits) or m16n8k8 (tf32): c += a b. Lane l holds rows l / 4 and l / 4 + 8 of a, column l / 4 of
// b.
template <typename Element>
EMULATOR_UNWATCHED void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  constexpr int kPack = sizeof(uint32_t) / sizeof(Element);
  struct Fragments {
    float a[4][kPack], b[2][kPack];
  } mine;
  for (int i = 0; i < 4; ++i) unpack(a[i], mine.a[i], Element{});
  for (int i = 0; i < 2; ++i) unpack(b[i], mine.b[i], Element{});
  const Together<Fragments> warp(mine, file, line);
  const int row = lane() / 4, column = lane() % 4 * 2;
  double sums[4] = {};
  for (int quad = 0; quad < 4; ++quad) {
    const Fragments& left = warp[row * 4 + quad];
    const Fragments* right[] = {&warp[column * 4 + quad], &warp[(column + 1) * 4 + quad]};
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < kPack; ++k) {
        for (int i = 0; i < 4; ++i) {
          sums[i] += static_cast<double>(left.a[i / 2 + 2 * half][k]) * right[i % 2]->b[half][k];
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(c[i] + sums[i]);
}

// ldmatrix.x4: each lane names a row of 16 bytes, eight lanes a matrix; it receives two elements of each matrix.
inline void ldmatrix(uint32_t (&to)[4], const void* row, bool transposed, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
  struct Row {
    uint16_t elements[8];
  } mine;
  check_aligned(row);
  std::memcpy(&mine, row, sizeof(mine));
  const Together<Row> warp(mine, file, line);
  const int outer = lane() / 4, inner = lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = transposed ? warp[8 * i + inner].elements[outer] : warp[8 * i + outer].elements[inner];
    const uint32_t high =
        transposed ? warp[8 * i + inner + 1].elements[outer] : warp[8 * i + outer].elements[inner + 1];
    to[i] = low | high << 16;
  }
}

// cp.async of 16 bytes, or of zeros. The target is NaN until the thread has waited for its group.
inline void cp_async(void* to, const void* from, bool inside) {
  check_aligned(to);
  check_aligned(from);
  Copy copy{to, {}, threads[current].group};
  if (inside) std::memcpy(copy.bytes, from, sizeof(copy.bytes));
  std::memset(to, 0xff, sizeof(copy.bytes));
  threads[current].copies.push_back(copy);
}

inline void cp_async_commit() { ++threads[current].group; }

// Waits until at most `pending` of the committed groups are under way.
inline void cp_async_wait(int pending) {
  Thread& self = threads[current];
  const auto is_due = [&](const Copy& copy) { return copy.group < self.group - pending; };
  for (const Copy& copy : self.copies) {
    if (is_due(copy)) std::memcpy(copy.to, copy.bytes, sizeof(copy.bytes));
  }
  self.copies.erase(std::remove_if(self.copies.begin(), self.copies.end(), is_due), self.copies.end());
}

}  // namespace emulator

#include "warpgroup_emulator.h"
