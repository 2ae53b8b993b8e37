"""The shifted split attention in plain PyTorch: the definition, the oracle of the tests and the eager baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixer_kernels.ops._shift import SHIFT_1, SHIFT_2, spatial_shift


def shifted_split_attention(x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor) -> torch.Tensor:
    """Shift two of the three branches in (B, H, W, 3C), and return the weighted sum of all three, (B, H, W, C)."""
    x1, x2, x3 = x.chunk(3, dim=-1)
    branches = torch.stack((spatial_shift(x1, SHIFT_1), spatial_shift(x2, SHIFT_2), x3), dim=1)
    hidden = F.gelu(F.linear(branches.sum(dim=(1, 2, 3)), weight1))
    weights = F.linear(hidden, weight2).unflatten(1, (3, -1)).softmax(dim=1)
    # Under autocast the softmax, and all that it touches, is float32.
    return (weights[:, :, None, None, :] * branches).sum(dim=1).to(x.dtype)
