"""The dtypes that kernels compute in."""

from __future__ import annotations

import torch


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of sums over ``x``, and of the coefficients that come from them."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
