// The depthwise convolution on CUDA: what the binding and the launchers share. Plain pointers and sizes, no torch
// header.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/channel_parameter.h"
#include "common/element_type.h"
#include "depthwise_conv2d/geometry.h"

typedef struct CUstream_st* cudaStream_t;  // as CUDA declares it

namespace mixer_kernels {

// A (B, C, H, W) tensor, any strides, in elements; absent if null.
struct MapView {
  void* data;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

// A convolution with what follows it, or the gradient of one with respect to its input. Every size is at least 1, and
// sizes of maps, padding included, are below 2^31.
struct ConvolutionArguments {
  ElementType type;  // of all maps, weight and bias: not double
  int64_t batch, channels;
  Extent in, out;  // sizes of x and y; of a gradient, x is dz and y is dx
  Geometry geometry;
  bool is_gradient;
  MapView x;
  const void* weight;  // (C, 1, KH, KW), contiguous
  const void* bias;    // (C), or null
  ChannelParameter scale, shift;
  MapView residual;
  Activation activation;
  MapView y;
  float *mean, *var;  // of the activated values, (C); if not null, y is conv(x) + bias
  int multiprocessors;
};

struct WeightGradientArguments {
  ElementType type;  // not double
  int64_t batch, channels;
  Extent in, out;  // sizes of x and dz
  Geometry geometry;
  MapView x, dz;
  void *dweight, *dbias;  // (C, 1, KH, KW) and (C), contiguous
  int multiprocessors;
};

// Maps that are dense in the same format, NCHW or channels_last, and what is done to each of their numbers.
struct EpilogueArguments {
  ElementType type;  // not double
  int64_t batch, channels, pixels;
  bool channels_last;
  const void* z;
  Activation activation;
};

// Bytes of device memory that the launchers below want besides.
int64_t depthwise_conv2d_workspace(const ConvolutionArguments& arguments);
int64_t depthwise_conv2d_bwd_weight_workspace(const WeightGradientArguments& arguments);
int64_t depthwise_epilogue_sums_workspace(const EpilogueArguments& arguments);

// The caller checks for launch errors.
void depthwise_conv2d_cuda(const ConvolutionArguments& arguments, void* workspace, cudaStream_t stream);
void depthwise_conv2d_bwd_weight_cuda(const WeightGradientArguments& arguments, void* workspace, cudaStream_t stream);
void depthwise_epilogue_fwd_cuda(const EpilogueArguments& arguments, const ChannelParameter& scale,
                                 const ChannelParameter& shift, const void* residual, void* y, cudaStream_t stream);
void depthwise_epilogue_sums_cuda(const EpilogueArguments& arguments, const void* dy, const ChannelParameter& center,
                                  float* sum_dy, float* sum_dy_act, void* workspace, cudaStream_t stream);
void depthwise_epilogue_bwd_cuda(const EpilogueArguments& arguments, const void* dy, const ChannelParameter& c0,
                                 const ChannelParameter& c1, const ChannelParameter& c2, void* dz, cudaStream_t stream);

}  // namespace mixer_kernels
