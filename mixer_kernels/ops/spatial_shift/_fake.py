"""What the kernels of every backend return, without the values: for torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def shifted(x: torch.Tensor, directions: Sequence[int]) -> torch.Tensor:
    """Return a tensor like the shifted one, or like its gradient."""
    return torch.empty_like(x)


def in_place(x: torch.Tensor, directions: Sequence[int]) -> None:
    """Return nothing."""
