"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

import torch

from mixer_kernels.ops import _native
from mixer_kernels.ops.split_attention import _fake


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    return _native.why_not(device, dtype)


def forward(
    x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y (B, H, W, C), the sums over the pixels (B, C), and the weights of the branches (B, 3, C)."""
    return torch.ops.mixer_kernels.split_attention_fwd(x, weight1, weight2)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    total: torch.Tensor,
    weights: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
    wants_input: bool,
    wants_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x and the two matrices; those that are not wanted are empty."""
    arguments = dy, x, total, weights, weight1, weight2, wants_input, wants_weights
    return torch.ops.mixer_kernels.split_attention_bwd(*arguments)


_native.register_fake("split_attention_fwd", _fake.forward)
_native.register_fake("split_attention_bwd", _fake.backward)
