"""Plain-PyTorch modules of the four papers: the parameters, their initialisation and the eager forward.

The fused layers in :mod:`mixer_kernels.nn` subclass these, so names, initialisation and state_dict agree; these are
also the eager baselines of the benchmarks and the oracles of the tests.
"""

from mixer_kernels.reference.conv_mixer import ConvMixerLayer, DepthwiseConv2d
from mixer_kernels.reference.mlp_mixer import ChannelMixing, MixerBlock, TokenMixing
from mixer_kernels.reference.resmlp import Affine, AffineTokenLinear, ResMLPBlock
from mixer_kernels.reference.s2mlp import S2Attention, S2Block, SpatialShift, SplitAttention

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
