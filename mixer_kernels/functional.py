"""The public ops."""

from mixer_kernels.ops.affine_token_linear import affine_token_linear
from mixer_kernels.ops.depthwise_conv2d import depthwise_conv2d
from mixer_kernels.ops.spatial_shift import SHIFT_1, SHIFT_2, spatial_shift, spatial_shift_
from mixer_kernels.ops.split_attention import shifted_split_attention
from mixer_kernels.ops.token_mixing import layer_norm_token_linear, token_mixing

__all__ = [
    "SHIFT_1",
    "SHIFT_2",
    "affine_token_linear",
    "depthwise_conv2d",
    "layer_norm_token_linear",
    "shifted_split_attention",
    "spatial_shift",
    "spatial_shift_",
    "token_mixing",
]
