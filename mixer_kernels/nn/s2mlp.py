"""The drop-in layers of S2-MLPv2."""

from __future__ import annotations

from typing import ClassVar

import torch

from mixer_kernels import reference
from mixer_kernels.functional import shifted_split_attention, spatial_shift
from mixer_kernels.nn._channels import linear, perceptron
from mixer_kernels.nn._parts import Parts, can_bypass

# Symbolic tracing takes them as they are.
torch.fx.wrap("shifted_split_attention")
torch.fx.wrap("spatial_shift")


class SpatialShift(reference.SpatialShift):
    """:class:`mixer_kernels.reference.SpatialShift` through :func:`mixer_kernels.functional.spatial_shift`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to a new tensor of that shape."""
        return spatial_shift(x, self.directions, backend=self.backend)


class S2Attention(reference.S2Attention):
    """:class:`mixer_kernels.reference.S2Attention` with shifts and split attention in one op.

    It never calls the split attention nor its parts. Where one was replaced by another class or is observed by hooks,
    the layer runs as its plain form, or raises RuntimeError if a backend was asked for.
    """

    bypassed: ClassVar[Parts] = {"split_attention": reference.SplitAttention}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if not can_bypass(self):
            return super().forward(x)
        attention = self.split_attention
        features = linear(self.mlp1, x, self.backend)
        fused = shifted_split_attention(features, attention.mlp1.weight, attention.mlp2.weight, backend=self.backend)
        return linear(self.mlp2, fused, self.backend)


class S2Block(reference.S2Block):
    """:class:`mixer_kernels.reference.S2Block` with the fused attention."""

    attention_class = S2Attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = x + self.attention(self.norm1(x))
        return x + perceptron(self.mlp_channels, self.norm2(x), self.backend)
