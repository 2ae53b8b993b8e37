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

// What is read of a number once it has been stored.
template <typename scalar_t>
__device__ __forceinline__ acc_type<scalar_t> as_stored(acc_type<scalar_t> x) {
  return to_acc(from_acc<scalar_t>(x));
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

// The element whose bits are the lowest ones.
template <typename scalar_t, typename bits_t>
__device__ __forceinline__ scalar_t element_of(bits_t bits) {
  const auto element = static_cast<typename AccessOf<sizeof(scalar_t)>::type>(bits);
  scalar_t value;
  memcpy(&value, &element, sizeof(value));
  return value;
}

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

  // Elements are shifted out of the bits and back: through an array they would take a detour over local memory.
  __device__ __forceinline__ Vector operator+(const Vector& other) const {
    using element_t = typename AccessOf<sizeof(scalar_t)>::type;
    Vector sum = zero();
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int at = 8 * sizeof(scalar_t) * i;
      const scalar_t value =
          from_acc<scalar_t>(to_acc(element_of<scalar_t>(bits >> at)) + to_acc(element_of<scalar_t>(other.bits >> at)));
      element_t element;
      memcpy(&element, &value, sizeof(element));
      sum.bits |= static_cast<access_t>(element) << at;
    }
    return sum;
  }
};

// Two floats as neighbouring elements of 16 bits, the first in the lower half.
template <typename scalar_t>
__device__ __forceinline__ uint32_t pack_pair(float first, float second) {
  uint32_t bits;
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<scalar_t, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&bits, &pair, sizeof(bits));
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&bits, &pair, sizeof(bits));
  }
#else
  const scalar_t pair[2] = {from_acc<scalar_t>(first), from_acc<scalar_t>(second)};
  memcpy(&bits, pair, sizeof(bits));
#endif
  return bits;
}

// The elements of a vector as floats.
template <int kVec, typename scalar_t>
__device__ __forceinline__ void to_floats(float* to, const Vector<scalar_t, kVec>& vector) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    if constexpr (std::is_same_v<scalar_t, __nv_bfloat16> && kVec > 1) {
      // One instruction each: a bfloat16 is the upper half of a float.
      const auto pair = static_cast<uint32_t>(vector.bits >> (16 * (i / 2 * 2)));
      const uint32_t bits = i % 2 == 0 ? pair << 16 : pair & 0xffff0000u;
      memcpy(&to[i], &bits, sizeof(bits));
    } else {
      to[i] = to_acc(element_of<scalar_t>(vector.bits >> (8 * sizeof(scalar_t) * i)));
    }
  }
}

// kVec neighbouring elements as floats, in aligned accesses of at most 16 bytes.
template <int kVec, typename scalar_t>
__device__ __forceinline__ void load_floats(float (&to)[kVec], const scalar_t* from) {
  constexpr int kPiece = kVec * sizeof(scalar_t) > 16 ? 16 / sizeof(scalar_t) : kVec;
#pragma unroll
  for (int piece = 0; piece < kVec; piece += kPiece) {
    to_floats(to + piece, Vector<scalar_t, kPiece>::load(from + piece));
  }
}

// A vector of elements that were floats.
template <int kVec, typename scalar_t>
__device__ __forceinline__ Vector<scalar_t, kVec> from_floats(const float* from) {
  using access_t = typename Vector<scalar_t, kVec>::access_t;
  access_t bits{};
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    if constexpr (sizeof(scalar_t) == 2 && kVec > 1) {
      if (i % 2 == 0) bits |= static_cast<access_t>(pack_pair<scalar_t>(from[i], from[i + 1])) << (16 * i);
    } else {
      typename AccessOf<sizeof(scalar_t)>::type element;
      const scalar_t value = from_acc<scalar_t>(from[i]);
      memcpy(&element, &value, sizeof(element));
      bits |= static_cast<access_t>(element) << (8 * sizeof(scalar_t) * i);
    }
  }
  return {bits};
}

template <int kVec, typename scalar_t>
__device__ __forceinline__ void store_floats(scalar_t* to, const float (&from)[kVec]) {
  constexpr int kPiece = kVec * sizeof(scalar_t) > 16 ? 16 / sizeof(scalar_t) : kVec;
#pragma unroll
  for (int piece = 0; piece < kVec; piece += kPiece) {
    from_floats<kPiece, scalar_t>(from + piece).store(to + piece);
  }
}

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
