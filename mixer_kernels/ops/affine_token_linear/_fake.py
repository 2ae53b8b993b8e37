"""What the kernels of every backend return, without the values: for torch.compile and torch.export."""

from __future__ import annotations

import torch

from mixer_kernels.ops._tokens import Optional, fake_gradients


def forward(x: torch.Tensor, *parameters: Optional) -> torch.Tensor:
    """Return a tensor like y."""
    return x.new_empty(x.shape)


def backward(dy: torch.Tensor, x: torch.Tensor, *parameters: Optional) -> tuple[torch.Tensor, ...]:
    """Return tensors like the gradients."""
    return fake_gradients(x, *parameters)
