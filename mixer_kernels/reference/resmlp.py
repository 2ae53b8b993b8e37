"""ResMLP (Touvron et al., arXiv 2105.03404): Affine in place of normalisation, one linear across the patches."""

from __future__ import annotations

import torch
from torch import nn

from mixer_kernels.reference._arguments import check_sizes, checked_backend
from mixer_kernels.reference.mlp import Mlp


class Affine(nn.Module):
    """A scale and an offset for every channel (eq. 1): ``y = alpha * x + beta``.

    Args:
        dim: channels C.
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim)
        self.alpha = nn.Parameter(torch.empty(1, 1, dim, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(1, 1, dim, device=device, dtype=dtype))
        self.backend = checked_backend(type(self).__name__, backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity."""
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.beta)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        return torch.addcmul(self.beta, self.alpha, x)


class AffineTokenLinear(nn.Module):
    """The cross-patch half of a ResMLP layer, residual included (eq. 2).

    ``y = x + ls * (W (alpha * x + beta) + b)``, where W and b run over the tokens, all others over the channels.

    Args:
        dim: channels C.
        seq_len: tokens S.
        init_values: where the LayerScale ls starts; the published models use less the deeper they are.
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        *,
        init_values: float = 1e-4,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim, seq_len=seq_len)
        self.norm = Affine(dim, device=device, dtype=dtype)
        self.linear = nn.Linear(seq_len, seq_len, device=device, dtype=dtype)
        self.ls = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.init_values = init_values
        self.backend = checked_backend(type(self).__name__, backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a Xavier-uniform weight; zero the bias, set the LayerScale."""
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.constant_(self.ls, self.init_values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        return x + self.ls * self.linear(self.norm(x).transpose(1, 2)).transpose(1, 2)


class ResMLPBlock(nn.Module):
    """A ResMLP layer: cross-patch linear (eq. 2), then channel perceptron (eq. 3), with timm's names.

    ``z = x + ls1 * (A Aff1(x) + a)`` across the tokens, ``y = z + ls2 * mlp(Aff2(z))`` across the channels.

    Args:
        dim: channels C.
        seq_len: tokens S.
        mlp_ratio: width of the channel perceptron relative to C.
        init_values: where both LayerScales start.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float = 4.0,
        init_values: float = 1e-4,
        *,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim, seq_len=seq_len)
        self.norm1 = Affine(dim, device=device, dtype=dtype)
        self.linear_tokens = nn.Linear(seq_len, seq_len, device=device, dtype=dtype)
        self.norm2 = Affine(dim, device=device, dtype=dtype)
        self.mlp_channels = Mlp(dim, int(mlp_ratio * dim), activation, device=device, dtype=dtype)
        self.ls1 = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.ls2 = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.init_values = init_values
        self.backend = checked_backend(type(self).__name__, backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a Xavier-uniform cross-patch weight; zero its bias, set the LayerScales."""
        nn.init.xavier_uniform_(self.linear_tokens.weight)
        nn.init.zeros_(self.linear_tokens.bias)
        nn.init.constant_(self.ls1, self.init_values)
        nn.init.constant_(self.ls2, self.init_values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        x = x + self.ls1 * self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.ls2 * self.mlp_channels(self.norm2(x))
