"""The drop-in layers of ResMLP."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from mixer_kernels import reference
from mixer_kernels.functional import affine_token_linear
from mixer_kernels.nn._channels import perceptron
from mixer_kernels.nn._parts import Parts, can_bypass

# Symbolic tracing takes it as it is.
torch.fx.wrap("affine_token_linear")


class AffineTokenLinear(reference.AffineTokenLinear):
    """:class:`mixer_kernels.reference.AffineTokenLinear` in one op.

    It never calls its parts. Where one was replaced by another class or is observed by hooks, the layer runs as its
    plain form, or raises RuntimeError if a backend was asked for.
    """

    bypassed: ClassVar[Parts] = {"norm": reference.Affine, "linear": nn.Linear}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        if not can_bypass(self):
            return super().forward(x)
        return affine_token_linear(
            x,
            self.norm.alpha,
            self.norm.beta,
            self.linear.weight,
            self.linear.bias,
            self.ls,
            backend=self.backend,
        )


class ResMLPBlock(reference.ResMLPBlock):
    """:class:`mixer_kernels.reference.ResMLPBlock` with its token half in one op.

    It never calls the parts of that half. Where one was replaced by another class or is observed by hooks, the layer
    runs as its plain form, or raises RuntimeError if a backend was asked for.
    """

    bypassed: ClassVar[Parts] = {"norm1": reference.Affine, "linear_tokens": nn.Linear}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        if not can_bypass(self):
            return super().forward(x)
        x = affine_token_linear(
            x,
            self.norm1.alpha,
            self.norm1.beta,
            self.linear_tokens.weight,
            self.linear_tokens.bias,
            self.ls1,
            backend=self.backend,
        )
        # Measured: folding the Affine into the first weight at every step costs as much as the passes that it saves.
        return torch.addcmul(x, self.ls2, perceptron(self.mlp_channels, self.norm2(x), self.backend))
