// The affine-folded linear over the tokens on CUDA: what the binding and the launcher share. Plain pointers and sizes,
// no torch header.
#pragma once

#include <cstdint>

#include "common/channel_parameter.h"
#include "common/element_type.h"
#include "common/token_view.h"

typedef struct CUstream_st* cudaStream_t;  // as CUDA declares it

namespace mixer_kernels {

// y = x + layer_scale * (weight (alpha * x + beta) + bias). Every size is at least 1.
struct AffineTokenLinearArguments {
  ElementType type;  // of x, weight, bias, y: not double
  bool allow_tf32;
  int64_t batch, tokens, channels;
  TokenView x;
  ChannelParameter alpha, beta, layer_scale;
  const void* weight;  // (S, S)
  const void* bias;    // (S), or null
  int multiprocessors;
  bool has_warpgroups;  // the kernel of warpgroup_linear.cuh runs on this device
};

// Contiguous, in the type of what they are gradients of. Those of absent parameters are null.
struct AffineTokenLinearGradients {
  void *dx, *dalpha, *dbeta, *dweight, *dbias, *dlayer_scale;
};

// Bytes of device memory that the launchers below want besides.
int64_t affine_token_linear_fwd_workspace(const AffineTokenLinearArguments& arguments);
int64_t affine_token_linear_bwd_workspace(const AffineTokenLinearArguments& arguments, const TokenView& dy);

// The caller checks for launch errors.
void affine_token_linear_fwd_cuda(const AffineTokenLinearArguments& arguments, void* y, void* workspace,
                                  cudaStream_t stream);
void affine_token_linear_bwd_cuda(const AffineTokenLinearArguments& arguments, const TokenView& dy,
                                  const AffineTokenLinearGradients& gradients, void* workspace, cudaStream_t stream);

}  // namespace mixer_kernels
