"""Which calls of a linear layer may go another way than PyTorch's own."""

from __future__ import annotations

from collections.abc import Collection

import torch

Optional = torch.Tensor | None

# Elements of a weight below which a call takes longer than its product.
FEWEST_ELEMENTS = 1 << 16


def is_ordinary(x: torch.Tensor, weight: torch.Tensor, bias: Optional, dtypes: Collection[torch.dtype]) -> bool:
    """Return whether a call has nothing that only PyTorch can answer for, and products enough to go another way.

    The answer depends on no size but the weight's, so that a compiled layer takes every batch.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,) or None.
        dtypes: those that each of the three may have.
    """
    return (
        all(value is None or _is_dense(value, dtypes) for value in (x, weight, bias))
        and weight.dim() == 2
        and weight.numel() >= FEWEST_ELEMENTS
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _is_dense(value: torch.Tensor, dtypes: Collection[torch.dtype]) -> bool:
    """Return whether a tensor is a dense one on the CPU, without another class's or transform's say."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.dtype in dtypes
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_nested
        and (torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(value))
    )
