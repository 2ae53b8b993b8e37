"""What the kernels of every backend return, without the values: for torch.compile and torch.export."""

from __future__ import annotations

import torch

from mixer_kernels.ops._tokens import Optional, fake_gradients


def forward(
    x: torch.Tensor,
    alpha: Optional,
    beta: Optional,
    weight: torch.Tensor,
    bias: Optional,
    layer_scale: Optional,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Return a tensor like y."""
    return x.new_empty(x.shape)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    alpha: Optional,
    beta: Optional,
    weight: torch.Tensor,
    bias: Optional,
    layer_scale: Optional,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Return tensors like the gradients."""
    return fake_gradients(x, alpha, beta, weight, bias, layer_scale)
