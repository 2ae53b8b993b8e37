// Depthwise convolution on the CPU with channels side by side in the lanes of a vector: every tap is one vector of
// weights, every pixel one vector of inputs, whatever the sizes, the stride and the dilation are. A task is a tile of
// pixels of one image and block of channels; its inputs are gathered into a zero-padded scratch tile first, from either
// memory format, so that the loops over taps neither check borders nor convert.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include guard.

#include "common/vector_simd.h"
// It builds on that one, and the next one on it.
#include "common/tile_gemm_simd.h"
// Activations.
#include "common/math_simd.h"
// Tiles of maps, then what runs on them.
#include "depthwise_conv2d/lane_tiles_simd.h"
// Forward, and the gradient of x.
#include "depthwise_conv2d/lane_convolution_simd.h"
// The gradients of the parameters.
#include "depthwise_conv2d/lane_correlation_simd.h"
