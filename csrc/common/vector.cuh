// Elements in device code: how several travel in one memory access, and how one is computed with.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda.cuh"
#include "common/element_type.h"

namespace mixer_kernels {

// Half types are computed in float, double in itself.
template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename scalar_t>
__device__ __forceinline__ scalar_t from_acc(acc_type<scalar_t> x) {
  if constexpr (std::is_same_v<scalar_t, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// The type whose load and store are one instruction of that many bytes. Scalars rather than CUDA's uint4: a struct is
// copied by its members, and the compiler does not always put the four stores together again.
template <int kBytes>
struct AccessOf;
template <>
struct AccessOf<2> {
  using type = uint16_t;
};
template <>
struct AccessOf<4> {
  using type = uint32_t;
};
template <>
struct AccessOf<8> {
  using type = uint64_t;
};
template <>
struct AccessOf<16> {
  using type = unsigned __int128;
};

// kVec neighbouring elements, kept as plain bits: a kernel that only moves them never looks inside.
template <typename scalar_t, int kVec>
struct Vector {
  using access_t = typename AccessOf<kVec * sizeof(scalar_t)>::type;
  access_t bits;

  static __device__ __forceinline__ Vector load(const scalar_t* from) {
    return {*reinterpret_cast<const access_t*>(from)};
  }
  __device__ __forceinline__ void store(scalar_t* to) const { *reinterpret_cast<access_t*>(to) = bits; }
  static __device__ __forceinline__ Vector zero() { return {access_t{}}; }

  __device__ __forceinline__ Vector operator+(const Vector& other) const {
    scalar_t a[kVec], b[kVec];
    memcpy(a, &bits, sizeof(bits));
    memcpy(b, &other.bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      a[i] = from_acc<scalar_t>(to_acc(a[i]) + to_acc(b[i]));
    }
    Vector sum;
    memcpy(&sum.bits, a, sizeof(bits));
    return sum;
  }
};

// Calls f with a value of the C++ type that the element type stands for.
template <typename F>
void dispatch_element(ElementType type, F&& f) {
  switch (type) {
    case ElementType::kFloat:
      return f(float{});
    case ElementType::kDouble:
      return f(double{});
    case ElementType::kHalf:
      return f(__half{});
    case ElementType::kBFloat16:
      return f(__nv_bfloat16{});
  }
}

// The same for a kernel that moves elements and never computes: one instance for each size.
template <typename F>
void dispatch_element_bits(ElementType type, F&& f) {
  switch (element_size(type)) {
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

}  // namespace mixer_kernels
