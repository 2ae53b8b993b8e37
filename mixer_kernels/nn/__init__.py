"""The drop-in layers. A layer without a form of its own is its reference module."""

from mixer_kernels.nn.conv_mixer import ConvMixerLayer, DepthwiseConv2d
from mixer_kernels.nn.mlp_mixer import ChannelMixing, MixerBlock, TokenMixing
from mixer_kernels.nn.resmlp import AffineTokenLinear, ResMLPBlock
from mixer_kernels.nn.s2mlp import S2Attention, S2Block, SpatialShift
from mixer_kernels.reference import Affine, SplitAttention

__all__ = [
    "Affine",
    "AffineTokenLinear",
    "ChannelMixing",
    "ConvMixerLayer",
    "DepthwiseConv2d",
    "MixerBlock",
    "ResMLPBlock",
    "S2Attention",
    "S2Block",
    "SpatialShift",
    "SplitAttention",
    "TokenMixing",
]
