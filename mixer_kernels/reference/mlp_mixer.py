"""MLP-Mixer (Tolstikhin et al., arXiv 2105.01601): its two residual halves and the layer that joins them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mixer_kernels.reference._arguments import check_sizes, checked_backend
from mixer_kernels.reference.mlp import Mlp


class TokenMixing(Mlp):
    """The token-mixing half of a Mixer layer, residual included (first line of eq. 1).

    ``y = x + W2 act(W1 LN(x) + b1) + b2``, where LN runs over the channels and W1, W2 over the tokens.

    Args:
        dim: channels C.
        seq_len: tokens S.
        hidden_dim: width D of the perceptron; C // 2 by default, the ratio of the published models.
        eps: added to the variance in LN.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        hidden_dim: int | None = None,
        *,
        eps: float = 1e-6,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(type(self).__name__, dim=dim, seq_len=seq_len)
        super().__init__(
            seq_len, dim // 2 if hidden_dim is None else hidden_dim, activation, device=device, dtype=dtype
        )
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.backend = checked_backend(type(self).__name__, backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        return x + super().forward(self.norm(x).transpose(1, 2)).transpose(1, 2)


class ChannelMixing(Mlp):
    """The channel-mixing half of a Mixer layer, residual included (second line of eq. 1).

    ``y = x + W4 act(W3 LN(x) + b3) + b4``, everything over the channels.

    Args:
        dim: channels C.
        hidden_dim: width of the perceptron; 4C by default, the ratio of the published models.
        eps: added to the variance in LN.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        *,
        eps: float = 1e-6,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, 4 * dim if hidden_dim is None else hidden_dim, activation, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.backend = checked_backend(type(self).__name__, backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., C) to (..., C)."""
        return x + super().forward(self.norm(x))


class MixerBlock(nn.Module):
    """A Mixer layer: token mixing, then channel mixing (eq. 1), with timm's argument and parameter names.

    Args:
        dim: channels C.
        seq_len: tokens S.
        mlp_ratio: widths of the token and of the channel perceptron, both relative to C; one number serves both.
        eps: added to the variance in both LN.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float | Sequence[float] = (0.5, 4.0),
        *,
        eps: float = 1e-6,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim, seq_len=seq_len)
        tokens_ratio, channels_ratio = mlp_ratio if isinstance(mlp_ratio, Sequence) else (mlp_ratio, mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.mlp_tokens = Mlp(seq_len, int(tokens_ratio * dim), activation, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.mlp_channels = Mlp(dim, int(channels_ratio * dim), activation, device=device, dtype=dtype)
        self.backend = checked_backend(type(self).__name__, backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))
