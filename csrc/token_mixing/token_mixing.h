// Token mixing on CUDA: what the binding and the launcher share. Plain pointers and sizes, no torch header.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/element_type.h"
#include "common/token_view.h"

typedef struct CUstream_st* cudaStream_t;  // as CUDA declares it

namespace mixer_kernels {

// token_mixing: y = x + weight2 act(weight1 n + bias1) + bias2, where n is x after LayerNorm. Without weight2 it is
// layer_norm_token_linear: y = act(weight1 n + bias1). Every size is at least 1.
struct TokenMixingArguments {
  ElementType type;    // of x, weights, biases, y: not double
  bool norm_is_float;  // norm_weight and norm_bias are float32, else they are of that type
  bool allow_tf32;
  Activation activation;
  int64_t batch, tokens, channels, hidden;
  TokenView x;
  const void *norm_weight, *norm_bias;  // (C) each, or null
  const void *weight1, *bias1;          // (D, S), (D); bias1 may be null
  const void *weight2, *bias2;          // (S, D), (S); both may be null
  const float *mean, *rstd;             // (B, S): inputs of the backward pass
  int multiprocessors;
  bool has_warpgroups;  // the kernels of warpgroup_mlp.cuh run on this device
};

struct TokenMixingOutputs {
  void* y;             // (B, S, C), or (B, D, C) without weight2
  float *mean, *rstd;  // (B, S)
};

// Contiguous, in the type of what they are gradients of. Those of absent parameters are null.
struct TokenMixingGradients {
  void *dx, *dnorm_weight, *dnorm_bias, *dweight1, *dbias1, *dweight2, *dbias2;
};

// Bytes of device memory that the launchers below want besides.
int64_t token_mixing_fwd_workspace(const TokenMixingArguments& arguments);
int64_t token_mixing_bwd_workspace(const TokenMixingArguments& arguments, const TokenView& dy);

// The caller checks for launch errors.
void token_mixing_fwd_cuda(const TokenMixingArguments& arguments, float eps, const TokenMixingOutputs& outputs,
                           void* workspace, cudaStream_t stream);
void token_mixing_bwd_cuda(const TokenMixingArguments& arguments, const TokenView& dy,
                           const TokenMixingGradients& gradients, void* workspace, cudaStream_t stream);

}  // namespace mixer_kernels
