"""The drop-in layers of MLP-Mixer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from mixer_kernels import reference
from mixer_kernels.functional import token_mixing
from mixer_kernels.nn._channels import perceptron, through_parts
from mixer_kernels.nn._parts import MLP_PARTS, Parts, can_bypass
from mixer_kernels.reference.mlp import Mlp

# Symbolic tracing takes it as it is.
torch.fx.wrap("token_mixing")


class TokenMixing(reference.TokenMixing):
    """:class:`mixer_kernels.reference.TokenMixing` through :func:`mixer_kernels.functional.token_mixing`.

    It never calls its parts. Where one was replaced by another class or is observed by hooks, the layer runs as its
    plain form, or raises RuntimeError if a backend was asked for.
    """

    bypassed: ClassVar[Parts] = {"norm": nn.LayerNorm, **MLP_PARTS}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        if not can_bypass(self):
            return super().forward(x)
        return _mix_tokens(x, self.norm, self, self.backend)


class ChannelMixing(reference.ChannelMixing):
    """:class:`mixer_kernels.reference.ChannelMixing`, in inference through the faster of PyTorch's libraries."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., C) to (..., C)."""
        return x + through_parts(self, self.norm(x), self.backend)


class MixerBlock(reference.MixerBlock):
    """:class:`mixer_kernels.reference.MixerBlock` with its token half in one op.

    It never calls the parts of that half. Where one was replaced by another class or is observed by hooks, the layer
    runs as its plain form, or raises RuntimeError if a backend was asked for.
    """

    bypassed: ClassVar[Parts] = {"norm1": nn.LayerNorm, "mlp_tokens": Mlp}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        if not can_bypass(self):
            return super().forward(x)
        x = _mix_tokens(x, self.norm1, self.mlp_tokens, self.backend)
        return x + perceptron(self.mlp_channels, self.norm2(x), self.backend)


def _mix_tokens(x: torch.Tensor, norm: nn.LayerNorm, mlp: Mlp, backend: str | None) -> torch.Tensor:
    return token_mixing(
        x,
        norm.weight,
        norm.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
        eps=norm.eps,
        activation=mlp.activation,
        backend=backend,
    )
