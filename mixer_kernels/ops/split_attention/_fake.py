"""What the kernels of every backend return, without the values: for torch.compile and torch.export."""

from __future__ import annotations

import torch

from mixer_kernels.ops._dtypes import accumulation_dtype


def sums(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor like the sums of all branches, (B, C)."""
    return x.new_empty((x.shape[0], x.shape[3] // 3), dtype=accumulation_dtype(x))


def gate(x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors like the sums of all branches and the weights, (B, C) and (B, 3, C)."""
    total = sums(x)
    return total, total.new_empty((total.shape[0], 3, total.shape[1]))


def combine(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return a tensor like y, (B, H, W, C)."""
    return x.new_empty((*x.shape[:3], x.shape[3] // 3))


def backward_weights(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a tensor like the gradient of the weights, (B, 3, C)."""
    return dy.new_empty((dy.shape[0], 3, dy.shape[3]), dtype=accumulation_dtype(dy))


def backward_gate(
    dy: torch.Tensor,
    x: torch.Tensor,
    total: torch.Tensor,
    weights: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors like the gradient of the sums, (B, C), and the total, hidden, dinner and dlogits in x's dtype."""
    batch, channels, hidden = dy.shape[0], dy.shape[3], weight1.shape[0]
    da, of_total = total.new_empty((batch, channels)), dy.new_empty((batch, channels))
    of_hidden, dinner = dy.new_empty((batch, hidden)), dy.new_empty((batch, hidden))
    return da, of_total, of_hidden, dinner, dy.new_empty((batch, 3 * channels))


def backward_features(dy: torch.Tensor, weights: torch.Tensor, da: torch.Tensor) -> torch.Tensor:
    """Return a tensor like the gradient of x, (B, H, W, 3C)."""
    return dy.new_empty((*dy.shape[:3], 3 * dy.shape[3]))
