"""S2-MLPv2 (Yu et al., arXiv 2108.01072): spatial shifts of an expanded map, fused by split attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mixer_kernels.ops.spatial_shift.reference import SHIFT_1, SHIFT_2, spatial_shift
from mixer_kernels.reference._arguments import check_sizes, checked_backend
from mixer_kernels.reference.mlp import Mlp

# Symbolic tracing takes it as it is.
torch.fx.wrap("spatial_shift")


class SpatialShift(nn.Module):
    """Each group of channels moves one pixel along its direction; the border keeps its own value.

    Args:
        directions: non-empty, each of "+h", "-h", "+w", "-w"; as many equal groups of channels as directions.
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: taken as by every other layer; there are no parameters to place.
        dtype: likewise.
    """

    def __init__(
        self,
        directions: Sequence[str] = SHIFT_1,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(directions, str) or not directions or any(d not in SHIFT_1 for d in directions):
            raise ValueError(
                f"SpatialShift: directions must be a non-empty sequence of '+h', '-h', '+w', '-w', got {directions!r}"
            )
        self.directions = tuple(directions)
        self.backend = checked_backend(type(self).__name__, backend)

    def extra_repr(self) -> str:
        """Show the directions."""
        return f"directions={self.directions}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to a new tensor of that shape."""
        return spatial_shift(x, self.directions)


class SplitAttention(nn.Module):
    """A weighted sum of K branches, one weight for every branch and channel (the paper's split attention).

    ``a = sum over k and pixels of x_k``; ``w = softmax over k of W2 gelu(W1 a)``; ``y = sum over k of w_k * x_k``.
    Neither linear has a bias.

    Args:
        dim: channels C of a branch.
        num_branches: branches K.
        hidden_dim: width between W1 and W2; C by default. The parameter counts in the paper come out with C // 4.
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        num_branches: int = 3,
        hidden_dim: int | None = None,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = dim if hidden_dim is None else hidden_dim
        check_sizes(type(self).__name__, dim=dim, num_branches=num_branches, hidden_dim=hidden_dim)
        self.num_branches = num_branches
        self.mlp1 = nn.Linear(dim, hidden_dim, bias=False, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.mlp2 = nn.Linear(hidden_dim, num_branches * dim, bias=False, device=device, dtype=dtype)
        self.backend = checked_backend(type(self).__name__, backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw narrow normal weights; the paper names no initialisation."""
        nn.init.trunc_normal_(self.mlp1.weight, std=0.02)
        nn.init.trunc_normal_(self.mlp2.weight, std=0.02)

    def forward(self, branches: torch.Tensor) -> torch.Tensor:
        """Map (B, K, H, W, C) to (B, H, W, C)."""
        total = branches.sum(dim=(1, 2, 3))
        weights = self.mlp2(self.act(self.mlp1(total))).unflatten(1, (self.num_branches, -1)).softmax(dim=1)
        return (weights[:, :, None, None, :] * branches).sum(dim=1)


class S2Attention(nn.Module):
    """Expand the channels threefold, shift two of the three parts, fuse them, project.

    ``x1, x2, x3 = split(W1 x + b1)``; ``y = W2 sa(shift1(x1), shift2(x2), x3) + b2`` with the two shifts along
    :data:`SHIFT_1` and :data:`SHIFT_2`.

    Args:
        dim: channels C.
        hidden_dim: hidden width of the split attention; C by default.
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim)
        self.mlp1 = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.mlp2 = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.split_attention = SplitAttention(dim, 3, hidden_dim, device=device, dtype=dtype)
        self.backend = checked_backend(type(self).__name__, backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw narrow normal weights and zero the biases; the paper names no initialisation."""
        for linear in (self.mlp1, self.mlp2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x1, x2, x3 = self.mlp1(x).chunk(3, dim=-1)
        branches = torch.stack((spatial_shift(x1, SHIFT_1), spatial_shift(x2, SHIFT_2), x3), dim=1)
        return self.mlp2(self.split_attention(branches))


class S2Block(nn.Module):
    """An S2-MLPv2 layer: ``z = x + attention(LN(x))``, then ``y = z + mlp(LN(z))`` over the channels.

    Args:
        dim: channels C.
        mlp_ratio: width of the channel perceptron relative to C.
        attention_ratio: hidden width of the split attention relative to C.
        eps: added to the variance in both LN.
        activation: None, "relu", "gelu" or "gelu_tanh", in the channel perceptron.
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    # A subclass with fused layers names its own attention here; the constructor is the same.
    attention_class: type[S2Attention] = S2Attention

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 3.0,
        attention_ratio: float = 1.0,
        *,
        eps: float = 1e-5,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.attention = self.attention_class(
            dim, int(attention_ratio * dim), backend=backend, device=device, dtype=dtype
        )
        self.norm2 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.mlp_channels = Mlp(dim, int(mlp_ratio * dim), activation, device=device, dtype=dtype)
        self.backend = checked_backend(type(self).__name__, backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp_channels(self.norm2(x))
