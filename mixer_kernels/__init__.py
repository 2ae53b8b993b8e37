"""Fast GPU and CPU kernels for MLP-like vision models in PyTorch."""

from mixer_kernels import autograd, functional, models, reference
from mixer_kernels._version import __version__
from mixer_kernels.convert import accelerate, fuse
from mixer_kernels.nn import (
    Affine,
    AffineTokenLinear,
    ChannelMixing,
    ConvMixerLayer,
    DepthwiseConv2d,
    MixerBlock,
    ResMLPBlock,
    S2Attention,
    S2Block,
    SpatialShift,
    SplitAttention,
    TokenMixing,
)
from mixer_kernels.ops._backend import available_backends, use_backend

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
    "__version__",
    "accelerate",
    "autograd",
    "available_backends",
    "functional",
    "fuse",
    "models",
    "reference",
    "use_backend",
]
