// Activations in device code, with their slopes.
#pragma once

#include "common/activation.h"
#include "common/cuda.cuh"

namespace mixer_kernels {

struct Activated {
  float value, slope;
};

// Where the polynomial below ends.
constexpr float kCdfBound = 4.25f;

// The larger one; NaN if z is.
__device__ __forceinline__ float max_or_nan(float z, float bound) {
#if defined(__CUDA_ARCH__)
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(z) : "f"(bound));
  return z;
#else
  return z < bound ? bound : z;
#endif
}

// The normal distribution function. Exact: to float's own accuracy. Else of no z below the bound, within 5e-5, well
// below what float16 and bfloat16 resolve, and in a third of the instructions: at the published shapes GELU costs as
// much as the products.
template <bool kExact>
__device__ __forceinline__ float normal_cdf(float z) {
  if constexpr (kExact) {
    return 0.5f + 0.5f * erff(z * 0.70710678f);
  } else {
    // An odd polynomial that comes to within 2e-6 of 0 and 1 at the bounds.
    const float bounded = fminf(z, kCdfBound);
    const float square = bounded * bounded;
    constexpr float kCoefficients[] = {4.586955e-11f,   -4.539121e-09f,  1.9914127e-07f,
                                       -5.1522256e-06f, 8.8491215e-05f,  -1.0788275e-03f,
                                       9.7171878e-03f,  -6.6186905e-02f, 3.9881745e-01f};
    float sum = kCoefficients[0];
#pragma unroll
    for (int i = 1; i < 9; ++i) sum = sum * square + kCoefficients[i];
    return 0.5f + bounded * sum;
  }
}

template <bool kExact>
__device__ __forceinline__ float normal_density(float z) {
  return 0.39894228f * (kExact ? expf(-0.5f * z * z) : __expf(-0.5f * z * z));
}

template <bool kExact>
__device__ __forceinline__ float hyperbolic_tangent(float z) {
  return kExact ? tanhf(z) : 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * z));
}

template <Activation kActivation, bool kExact>
__device__ __forceinline__ Activated activate(float z) {
  if constexpr (kActivation == Activation::kRelu) {
    return {z < 0.0f ? 0.0f : z, z > 0.0f ? 1.0f : 0.0f};
  } else if constexpr (kActivation == Activation::kGelu) {
    // Below the bound z would multiply what is left of the polynomial.
    const float bounded = kExact ? z : max_or_nan(z, -kCdfBound);
    const float cdf = normal_cdf<kExact>(bounded);
    return {bounded * cdf, cdf + z * normal_density<kExact>(z)};
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    constexpr float kScale = 0.79788456f, kCube = 0.044715f;
    const float tangent = hyperbolic_tangent<kExact>(kScale * (z + kCube * z * z * z));
    const float half = 0.5f + 0.5f * tangent;
    const float inner_slope = kScale * (1.0f + 3.0f * kCube * z * z);
    return {z * half, half + 0.5f * z * (1.0f - tangent * tangent) * inner_slope};
  } else {
    return {z, 1.0f};
  }
}

template <Activation kActivation>
struct ActivationTag {
  static constexpr Activation value = kActivation;
};

// Calls f with a tag of the activation, so that a loop inside f need not ask again.
template <typename F>
__host__ __device__ __forceinline__ void dispatch_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kNone:
      return f(ActivationTag<Activation::kNone>{});
    case Activation::kRelu:
      return f(ActivationTag<Activation::kRelu>{});
    case Activation::kGelu:
      return f(ActivationTag<Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(ActivationTag<Activation::kGeluTanh>{});
  }
}

}  // namespace mixer_kernels
