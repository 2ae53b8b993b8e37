"""The place of the op's Triton kernels."""

from __future__ import annotations

import torch

Optional = torch.Tensor | None


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    return "there are no triton kernels of this op yet"
