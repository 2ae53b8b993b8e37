"""The layers of ResMLP for inference, with Affine and LayerScale folded."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from mixer_kernels.functional import affine_token_linear
from mixer_kernels.nn._channels import perceptron
from mixer_kernels.nn._parts import Parts, can_bypass

# Symbolic tracing takes it as it is.
torch.fx.wrap("affine_token_linear")


class FoldedTokenLinear(nn.Module):
    """The cross-patch half of a ResMLP layer, residual included, as one op.

    ``y = x + scale * (W x) + shift`` with ``scale = ls * alpha`` for every channel and ``shift = ls * (beta * rowsum(W)
    + b)``, of rank two: no (S, S) weight can hold either, the epilogue of :func:`functional.affine_token_linear`
    computes both, without a pass over the tokens.

    It never calls the linear layer. Where that was replaced by another class or is observed by hooks, the equation runs
    in plain PyTorch, or raises RuntimeError if a backend was asked for.

    Args:
        alpha: (C,).
        beta: (C,).
        linear: the linear layer over the tokens; it is shared, not copied.
        layer_scale: (C,).
        backend: "native", "triton", "reference" or None, the fastest that can run.
    """

    bypassed: ClassVar[Parts] = {"linear": nn.Linear}

    alpha: torch.Tensor
    beta: torch.Tensor
    layer_scale: torch.Tensor

    def __init__(
        self,
        alpha: torch.Tensor,
        beta: torch.Tensor,
        linear: nn.Linear,
        layer_scale: torch.Tensor,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.backend = backend
        self.register_buffer("alpha", alpha.detach().reshape(-1).clone())
        self.register_buffer("beta", beta.detach().reshape(-1).clone())
        self.register_buffer("layer_scale", layer_scale.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        if not can_bypass(self):
            mixed = self.linear(torch.addcmul(self.beta, self.alpha, x).transpose(1, 2)).transpose(1, 2)
            return torch.addcmul(x, self.layer_scale, mixed)
        return affine_token_linear(
            x, self.alpha, self.beta, self.linear.weight, self.linear.bias, self.layer_scale, backend=self.backend
        )


class FoldedResMLPBlock(nn.Module):
    """A ResMLP layer: :class:`FoldedTokenLinear`, then ``y = z + mlp(z)``.

    Args:
        tokens: the cross-patch half.
        mlp_channels: the channel perceptron, with Affine and LayerScale in its weights.
        layer_scale: (C,), if the weights do not hold it.
    """

    layer_scale: torch.Tensor | None

    def __init__(
        self, tokens: FoldedTokenLinear, mlp_channels: nn.Module, layer_scale: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.mlp_channels = mlp_channels
        self.backend = tokens.backend
        self.register_buffer("layer_scale", layer_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        x = self.tokens(x)
        update = perceptron(self.mlp_channels, x, self.backend)
        return x + update if self.layer_scale is None else torch.addcmul(x, self.layer_scale, update)


class FoldedClassMLPBlock(nn.Module):
    """A class-MLP layer: ``z = c + scale * (a [c; x]) + shift``, then ``c' = z + mlp(z)``.

    Args:
        scale: (C,), LayerScale times alpha.
        shift: (C,), LayerScale times (beta times the sum of a, plus its bias).
        weight: a, (1, 1 + S).
        mlp_channels: the perceptron, with Affine and LayerScale in its weights.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    weight: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, mlp_channels: nn.Module) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("weight", weight)
        self.mlp_channels = mlp_channels

    def forward(self, c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Map the class embedding, (B, 1, C), and the tokens, (B, S, C), to the next class embedding."""
        c = torch.addcmul(c + self.shift, self.scale, self.weight @ torch.cat((c, x), dim=1))
        return c + self.mlp_channels(c)
