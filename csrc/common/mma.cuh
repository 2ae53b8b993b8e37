// The tensor cores' instructions and the asynchronous copies that feed them, one function each: PTX under nvcc, the
// emulator's model of it elsewhere. All lanes of a warp call mma and ldmatrix together. From sm_80 on.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cuda.cuh"

namespace mixer_kernels {

// The block's dynamic shared memory.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
#else
  return static_cast<T*>(emulator::dynamic_shared);
#endif
}

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// c += a b, 16 x 8 outputs: 16 deep in __half or __nv_bfloat16, 8 deep in float, which is rounded to tf32 beforehand.
// Lane l holds rows g = l / 4 and g + 8 and columns 2 t, 2 t + 1 of c, where t = l % 4; of a the registers
// (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) and of b (t, g), (t + 4, g), counted along the depth in units of a
// 32-bit register. All lanes take part: volatile, lest it is moved behind a branch that only those take who need its
// result.
template <typename scalar_t>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<scalar_t, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<scalar_t, float>, "the tensor cores multiply float16, bfloat16 and tf32");
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulator::mma<scalar_t>(c, a, b);
#endif
}

// A float as the tensor cores take it: rounded to 10 bits of fraction. They would cut it off instead.
__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
#if defined(__CUDACC__)
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
  return is_finite ? (bits + 0x1000u) & 0xffffe000u : bits;
#endif
}

// Four matrices of 8 rows x 16 bytes from shared memory: lane l names row l % 8 of matrix l / 8, and receives of each
// matrix the l % 4-th 32 bits of row l / 4.
__device__ __forceinline__ void ldmatrix(uint32_t (&to)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emulator::ldmatrix(to, row, false);
#endif
}

// The same of the transposed matrices, whose elements have 16 bits.
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&to)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emulator::ldmatrix(to, row, true);
#endif
}

// The inverse of ldmatrix_transposed. From sm_90 on.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void stmatrix_transposed(void* row, const uint32_t (&from)[4]) {
#if defined(__CUDACC__)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#else
  emulator::stmatrix_transposed(row, from);
#endif
}
#endif

// Starts to copy 16 bytes from global into shared memory, or fills in zeros and reads nothing unless `inside`. Both
// addresses are multiples of 16. The bytes are there for this thread once it has waited, for the others after a barrier
// behind that.
__device__ __forceinline__ void cp_async(void* to, const void* from, bool inside) {
#if defined(__CUDACC__)
  asm volatile(
      "{\n"
      ".reg .pred outside;\n"
      "setp.eq.b32 outside, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, outside;\n"
      "}" ::"r"(shared_address(to)),
      "l"(from), "r"(static_cast<int>(inside))
      : "memory");
#else
  emulator::cp_async(to, from, inside);
#endif
}

// Ends a group of copies; a group may be empty.
__device__ __forceinline__ void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::cp_async_commit();
#endif
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::cp_async_wait(kPending);
#endif
}

}  // namespace mixer_kernels
