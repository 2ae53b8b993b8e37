"""The depthwise convolution of ConvMixer, with everything that surrounds it."""

from mixer_kernels.ops.depthwise_conv2d.batch_norm import (
    DepthwiseConvBatchNormFunction,
    depthwise_conv2d_batch_norm,
    normalization,
    scaled_activation,
)
from mixer_kernels.ops.depthwise_conv2d.op import DepthwiseConv2dFunction, choose, depthwise_conv2d

__all__ = [
    "DepthwiseConv2dFunction",
    "DepthwiseConvBatchNormFunction",
    "choose",
    "depthwise_conv2d",
    "depthwise_conv2d_batch_norm",
    "normalization",
    "scaled_activation",
]
