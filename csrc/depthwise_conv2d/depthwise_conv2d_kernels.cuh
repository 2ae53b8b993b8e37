// The depthwise convolution on CUDA: device code, and the host code that plans its launches.
#pragma once

#include "depthwise_conv2d/convolution_call.cuh"
#include "depthwise_conv2d/epilogue_call.cuh"
#include "depthwise_conv2d/gradient_call.cuh"
