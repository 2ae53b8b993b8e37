"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

import torch

from mixer_kernels.ops import _native
from mixer_kernels.ops.split_attention import _fake, _gate


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    return _native.why_not(device, dtype)


def sums(x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the pixels of all three branches, two of them shifted, (B, C)."""
    return torch.ops.mixer_kernels.split_attention_sums(x)


def gate(x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums and the weights of the branches that follow from them, (B, C) and (B, 3, C)."""
    return torch.ops.mixer_kernels.split_attention_gate(x, weight1, weight2)


def combine(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of the branches, two of them shifted, each times its weights: (B, H, W, C)."""
    return torch.ops.mixer_kernels.split_attention_combine(x, weights)


def backward_weights(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the pixels of ``dy`` times each branch, two of them shifted: (B, 3, C)."""
    return torch.ops.mixer_kernels.split_attention_bwd_weights(dy, x)


def backward_gate(
    dy: torch.Tensor,
    x: torch.Tensor,
    total: torch.Tensor,
    weights: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
) -> _gate.Gradient:
    """Return the gradient of the sums, and the factors of the matrices' gradients."""
    return _gate.Gradient(*torch.ops.mixer_kernels.split_attention_bwd_gate(dy, x, total, weights, weight1, weight2))


def backward_features(dy: torch.Tensor, weights: torch.Tensor, da: torch.Tensor) -> torch.Tensor:
    """Return ``weights * dy + da`` for each branch, behind the adjoint of its shift: (B, H, W, 3C)."""
    return torch.ops.mixer_kernels.split_attention_bwd_features(dy, weights, da)


if _native.extension is not None:
    torch.library.register_fake("mixer_kernels::split_attention_sums", _fake.sums)
    torch.library.register_fake("mixer_kernels::split_attention_gate", _fake.gate)
    torch.library.register_fake("mixer_kernels::split_attention_bwd_gate", _fake.backward_gate)
    torch.library.register_fake("mixer_kernels::split_attention_combine", _fake.combine)
    torch.library.register_fake("mixer_kernels::split_attention_bwd_weights", _fake.backward_weights)
    torch.library.register_fake("mixer_kernels::split_attention_bwd_features", _fake.backward_features)
