"""What the kernels of every backend return, without the values: for torch.compile and torch.export."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops._tokens import Optional, fake_gradients


def layer_norm_token_linear_forward(
    x: torch.Tensor, norm_weight: Optional, norm_bias: Optional, weight: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors like y, mean and rstd."""
    return x.new_empty((x.shape[0], weight.shape[0], x.shape[2])), _statistic(x), _statistic(x)


def token_mixing_forward(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors like y, mean and rstd."""
    return x.new_empty(x.shape), _statistic(x), _statistic(x)


def backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, *arguments: Any
) -> tuple[torch.Tensor, ...]:
    """Return tensors like the gradients, of either op."""
    # Behind the parameters stand an activation and, unless it has its default, allow_tf32.
    parameters = [value for value in arguments if value is None or isinstance(value, torch.Tensor)]
    return fake_gradients(x, *parameters)


def _statistic(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
