"""The affine-folded linear in plain PyTorch: the definition, the oracle of the tests and the eager baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def affine_token_linear(
    x: torch.Tensor,
    alpha: torch.Tensor | None,
    beta: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Return ``x + layer_scale * (weight @ (alpha * x + beta) + bias)``: (B, S, C) to (B, S, C)."""
    inner = x
    if alpha is not None and beta is not None:
        inner = torch.addcmul(beta, alpha, x)
    elif alpha is not None:
        inner = alpha * x
    elif beta is not None:
        inner = x + beta
    # Parameters kept in float32 make the product float32; the linear takes x's dtype.
    update = F.linear(inner.to(x.dtype).transpose(1, 2), weight, bias).transpose(1, 2)
    return (x + (update if layer_scale is None else layer_scale * update)).to(x.dtype)
