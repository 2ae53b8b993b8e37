"""The autograd Functions of the public ops."""

from mixer_kernels.ops.affine_token_linear import AffineTokenLinearFunction
from mixer_kernels.ops.depthwise_conv2d import DepthwiseConv2dFunction
from mixer_kernels.ops.spatial_shift import SpatialShiftFunction
from mixer_kernels.ops.split_attention import ShiftedSplitAttentionFunction
from mixer_kernels.ops.token_mixing import LayerNormTokenLinearFunction, TokenMixingFunction

__all__ = [
    "AffineTokenLinearFunction",
    "DepthwiseConv2dFunction",
    "LayerNormTokenLinearFunction",
    "ShiftedSplitAttentionFunction",
    "SpatialShiftFunction",
    "TokenMixingFunction",
]
