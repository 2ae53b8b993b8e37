"""What the kernels of every backend return, without the values: for torch.compile and torch.export.

The native ones are the whole op; Triton's are its passes.
"""

from __future__ import annotations

import torch

from mixer_kernels.ops._dtypes import accumulation_dtype


def forward(
    x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors like y, the sums and the weights, (B, H, W, C), (B, C) and (B, 3, C)."""
    total = sums(x)
    weights = total.new_empty((total.shape[0], 3, total.shape[1]))
    return combine(x, weights), total, weights


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
    """Return tensors like the gradients of x and the matrices; those that are not wanted are empty."""
    dx = x.new_empty(x.shape if wants_input else 0)
    dweight1, dweight2 = (w.new_empty(w.shape if wants_weights else 0) for w in (weight1, weight2))
    return dx, dweight1, dweight2


def sums(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor like the sums of all branches, (B, C)."""
    return x.new_empty((x.shape[0], x.shape[3] // 3), dtype=accumulation_dtype(x))


def combine(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return a tensor like y, (B, H, W, C)."""
    return x.new_empty((*x.shape[:3], x.shape[3] // 3))


def backward_weights(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a tensor like the gradient of the weights, (B, 3, C)."""
    return dy.new_empty((dy.shape[0], 3, dy.shape[3]), dtype=accumulation_dtype(dy))


def backward_features(dy: torch.Tensor, weights: torch.Tensor, da: torch.Tensor) -> torch.Tensor:
    """Return a tensor like the gradient of x, (B, H, W, 3C)."""
    return dy.new_empty((*dy.shape[:3], 3 * dy.shape[3]))
