// What Hopper adds to mma.cuh: products of a warpgroup, whose second operand comes from shared memory and which run
// while the warps go on; barriers in shared memory; bulk copies that report to them. PTX under nvcc for sm_90a, the
// emulator's model of it elsewhere. A warpgroup is four warps that begin at a multiple of four.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/mma.cuh"

// Whether this pass of the compiler knows the instructions. They belong to this one generation: newer chips lack them.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MIXER_KERNELS_WARPGROUPS 1
#endif

namespace mixer_kernels {

constexpr int kWarpgroup = 128;

// Where a row keeps its piece of that number.
template <int kRowBytes>
__host__ __device__ __forceinline__ int swizzled_piece(int row, int piece) {
  return piece ^ (kRowBytes == 128 ? row % 8 : row / 4 % 2);
}

#if defined(MIXER_KERNELS_WARPGROUPS)

// The second operand of a product 16 deep: its columns are rows of shared memory, of kRowBytes each, and blocks of 8 of
// them follow each other. A row's 16-byte pieces are swizzled, see swizzled_piece; so `step`, which begins the 16, may
// lie within the row, but rows begin at a multiple of 8 kRowBytes.
template <int kRowBytes>
__device__ __forceinline__ uint64_t matrix_descriptor(const void* step) {
  static_assert(kRowBytes == 128 || kRowBytes == 32);
  constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 3;
  constexpr uint64_t kConstant = kSwizzle << 62 | static_cast<uint64_t>(8 * kRowBytes / 16) << 32;
#if defined(__CUDACC__)
  const uint32_t address = shared_address(step);
#else
  const uint32_t address = emulator::shared_address(step);
#endif
  return kConstant | (address & 0x3ffffu) >> 4;
}

// Makes the registers of the products that follow, and what this thread has written to them, known to the tensor cores.
__device__ __forceinline__ void wgmma_fence() {
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_commit();
#endif
}

// Waits until at most kPending of this warp's groups are under way, c not among them.
template <typename scalar_t, int kPending, int kCount>
__device__ __forceinline__ void wgmma_wait([[maybe_unused]] float (&c)[kCount]) {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  // So that the compiler reads none of them any sooner.
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
#else
  emulator::wgmma_wait<scalar_t>(kPending);
#endif
}

// Starts c += a b, or c = a b: 64 rows, 16 deep. Warp w of the group has the rows from 16 w on; of them, its lanes hold
// of c and a what they hold with mma, c for 8 columns after the other. Neither may be touched until the group that the
// product belongs to has been waited for.
#if defined(__CUDACC__)
#define MIXER_KERNELS_0_TO_31                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MIXER_KERNELS_32_TO_103                                                                     \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, " \
  "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, " \
  "%89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103"
#define MIXER_KERNELS_ACCUMULATORS_8(i)                                                                       \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
      "+f"(c[i + 7])
#define MIXER_KERNELS_ACCUMULATORS_32(i)                                                                      \
  MIXER_KERNELS_ACCUMULATORS_8(i), MIXER_KERNELS_ACCUMULATORS_8(i + 8), MIXER_KERNELS_ACCUMULATORS_8(i + 16), \
      MIXER_KERNELS_ACCUMULATORS_8(i + 24)
#define MIXER_KERNELS_WGMMA(columns, type, registers, a0, a1, a2, a3, b_, accumulates_, ...)                        \
  asm volatile(                                                                                                     \
      "{\n"                                                                                                         \
      ".reg .pred accumulates;\n"                                                                                   \
      "setp.ne.b32 accumulates, " accumulates_                                                                      \
      ", 0;\n"                                                                                                      \
      "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" registers "}, {" a0 ", " a1 ", " a2 \
      ", " a3 "}, " b_                                                                                              \
      ", accumulates, 1, 1, 0;\n"                                                                                   \
      "}"                                                                                                           \
      : __VA_ARGS__                                                                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulates)))
#define MIXER_KERNELS_WGMMA_64(type)                                                               \
  MIXER_KERNELS_WGMMA("64", type, MIXER_KERNELS_0_TO_31, "%32", "%33", "%34", "%35", "%36", "%37", \
                      MIXER_KERNELS_ACCUMULATORS_32(0))
#define MIXER_KERNELS_WGMMA_208(type)                                                                                  \
  MIXER_KERNELS_WGMMA("208", type, MIXER_KERNELS_0_TO_31 ", " MIXER_KERNELS_32_TO_103, "%104", "%105", "%106", "%107", \
                      "%108", "%109", MIXER_KERNELS_ACCUMULATORS_32(0), MIXER_KERNELS_ACCUMULATORS_32(32),             \
                      MIXER_KERNELS_ACCUMULATORS_32(64), MIXER_KERNELS_ACCUMULATORS_8(96))
#endif

template <typename scalar_t>
__device__ __forceinline__ void wgmma(float (&c)[32], const uint32_t (&a)[4], uint64_t b, bool accumulates) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<scalar_t, __half>) {
    MIXER_KERNELS_WGMMA_64("f16");
  } else {
    MIXER_KERNELS_WGMMA_64("bf16");
  }
#else
  emulator::wgmma<64>(c, a, b, accumulates);
#endif
}
template <typename scalar_t>
__device__ __forceinline__ void wgmma(float (&c)[104], const uint32_t (&a)[4], uint64_t b, bool accumulates) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<scalar_t, __half>) {
    MIXER_KERNELS_WGMMA_208("f16");
  } else {
    MIXER_KERNELS_WGMMA_208("bf16");
  }
#else
  emulator::wgmma<208>(c, a, b, accumulates);
#endif
}

// Waits for the other threads of the warpgroup.
__device__ __forceinline__ void warpgroup_sync() {
#if defined(__CUDACC__)
  // Barrier 0 is the block's.
  asm volatile("bar.sync %0, %1;" ::"r"(1 + static_cast<int>(threadIdx.x) / kWarpgroup), "n"(kWarpgroup) : "memory");
#else
  sync_warpgroup();
#endif
}

// A barrier in shared memory. Its phases end one after the other, each once `count` threads have arrived and the bytes
// that they expect have come; they are told apart by their parity, 0 at first.
struct SharedBarrier {
  uint64_t bits;

  // By one thread, before a barrier of the block.
  __device__ __forceinline__ void init(int count) {
#if defined(__CUDACC__)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emulator::barrier_init(this, count);
#endif
  }

  __device__ __forceinline__ void arrive() {
#if defined(__CUDACC__)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
#else
    emulator::barrier_arrive(this, 0);
#endif
  }

  // Arrives and starts a copy of `bytes`, a multiple of 16, from global into shared memory, both aligned to 16; the
  // phase ends when they are there.
  __device__ __forceinline__ void arrive_with_copy(void* to, const void* from, int bytes) {
#if defined(__CUDACC__)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(this))
                 : "memory");
#else
    emulator::barrier_arrive(this, bytes);
    emulator::bulk_copy(to, from, bytes, this);
#endif
  }

  // Waits for the end of the phase with this parity.
  __device__ __forceinline__ void wait(int parity) {
#if defined(__CUDACC__)
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@ended bra done;\n"
        "bra again;\n"
        "done:\n"
        "}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#else
    emulator::barrier_wait(this, parity);
#endif
  }
};

#endif  // MIXER_KERNELS_WARPGROUPS

}  // namespace mixer_kernels
