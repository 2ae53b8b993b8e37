"""Linear layers over the channels in float32, where PyTorch multiplies them at half speed.

It hands them to MKL, which keeps to AVX2 on CPUs of AMD. Where these have AVX-512, oneDNN, which PyTorch carries as
well, takes half the time (`benchmarks/results/amd-epyc-avx512-bf16-2-threads`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mixer_kernels.ops import _autograd, _checks
from mixer_kernels.ops._opaque_op import opaque_op

# oneDNN adds up one product after another: a longer sum is made of shorter ones, whose error is less.
LONGEST_SUM = 1024

# Elements of a weight below which a call takes longer than its product.
FEWEST_ELEMENTS = 1 << 16

Optional = torch.Tensor | None


def _is_held_back() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpu = torch.cpu.get_capabilities()
    return cpu.get("cpu_name", "").startswith("AMD") and cpu.get("avx512_f", False)


# Whether PyTorch multiplies float32 below this CPU's rate, and oneDNN does not.
IS_HELD_BACK = _is_held_back()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    """Return what ``torch.nn.functional.linear`` does: ``x @ weight.T + bias``."""
    if not _pays(x, weight):
        return F.linear(x, weight, bias)
    if not _checks.needs_grad(x, weight, bias):
        return _linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


# The answer depends on no size but the weight's, so that a compiled layer takes every batch.
def _pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and weight.numel() >= FEWEST_ELEMENTS
        and IS_HELD_BACK
        and not _checks.autocasts(x)
        and torch.autograd.forward_ad._current_level < 0
    )


class _Linear(torch.autograd.Function):
    """The layer; x and weight are saved for backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[Optional, ...]:
        x, weight = saved
        rows = dy.flatten(0, -2)
        dx, dweight, dbias = ctx.needs_input_grad
        return (
            product(rows, weight.t(), None).view(x.shape) if dx else None,
            product(rows.t(), x.flatten(0, -2).t(), None) if dweight else None,
            rows.sum(0) if dbias else None,
        )


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], weight.shape[0])


def _fake(left: torch.Tensor, right: torch.Tensor, bias: Optional) -> torch.Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


@opaque_op("linear", _fake)
def product(left: torch.Tensor, right: torch.Tensor, bias: Optional) -> torch.Tensor:
    """Return ``left @ right.T + bias`` of an (M, K) and an (N, K) matrix, through oneDNN."""
    if left.numel() == 0:
        return F.linear(left, right, bias)
    onednn = torch.ops.mkldnn._linear_pointwise
    depth = left.shape[1]
    parts = -(-depth // LONGEST_SUM)

    def operands(part: int) -> tuple[torch.Tensor, torch.Tensor]:
        k = slice(part * depth // parts, (part + 1) * depth // parts)
        # Copies, where these are not dense: of others oneDNN takes its reference code.
        return left[:, k].contiguous(), right[:, k].contiguous()

    a, b = operands(0)
    y: torch.Tensor = onednn(a, b, bias, "none", [], "")
    for part in range(1, parts):
        a, b = operands(part)
        y = onednn.binary(a, y, b, None, "add")
    return y
