"""What the ops over tokens share: checks of (B, S, C) and of a linear layer over S, and the shapes of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixer_kernels.ops import _checks

Optional = torch.Tensor | None


def check_tokens(op: str, x: torch.Tensor) -> None:
    """Check ``x``, (B, S, C)."""
    _checks.check_tensor(op, "x", x)
    _checks.check_dims(op, "x", x, "(B, S, C)")
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"{op}: x must have at least one token and one channel, got shape {tuple(x.shape)}")


def check_linear(
    op: str,
    x: torch.Tensor,
    weight_name: str,
    weight: torch.Tensor,
    shape: Sequence[int | str],
    bias_name: str,
    bias: Optional,
) -> tuple[torch.Tensor, Optional]:
    """Check a linear layer over the tokens; return its parameters as the kernels take them."""
    weight = _checks.check_operand(op, weight_name, weight, shape, x).contiguous()
    if bias is not None:
        bias = _checks.check_operand(op, bias_name, bias, weight.shape[:1], x).contiguous()
    return weight, bias


def fake_gradients(x: torch.Tensor, *parameters: Optional) -> tuple[torch.Tensor, ...]:
    """Return tensors like the gradients of ``x`` and the parameters, of which an absent one has an empty one."""
    return x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters)
