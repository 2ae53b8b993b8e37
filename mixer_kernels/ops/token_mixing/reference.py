"""Token mixing in plain PyTorch: the definition, the oracle of the tests and the eager baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixer_kernels.ops._activation import apply_activation


def layer_norm_token_linear(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    activation: str | None,
) -> torch.Tensor:
    """Return ``act(weight @ LN(x) + bias)``: (B, S, C) to (B, D, C)."""
    # Parameters kept in float32 make it a float32 LayerNorm at least, as under autocast.
    norm_dtype = x.dtype
    for parameter in (norm_weight, norm_bias):
        norm_dtype = norm_dtype if parameter is None else torch.promote_types(norm_dtype, parameter.dtype)
    scale, shift = (None if parameter is None else parameter.to(norm_dtype) for parameter in (norm_weight, norm_bias))
    n = F.layer_norm(x.to(norm_dtype), x.shape[-1:], scale, shift, eps).to(x.dtype)
    return apply_activation(F.linear(n.transpose(1, 2), weight, bias), activation).transpose(1, 2)


def token_mixing(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    eps: float,
    activation: str | None,
) -> torch.Tensor:
    """Return ``x + weight2 @ act(weight1 @ LN(x) + bias1) + bias2``: (B, S, C) to (B, S, C)."""
    hidden = layer_norm_token_linear(x, norm_weight, norm_bias, weight1, bias1, eps, activation)
    return x + F.linear(hidden.transpose(1, 2), weight2, bias2).transpose(1, 2)
