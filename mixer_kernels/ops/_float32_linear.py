"""Linear layers of 16-bit floats by products of float32, on CPUs whose own products of them are slower.

Without instructions for a dtype PyTorch multiplies it element by element, or with oneDNN's emulation of bfloat16. And
cores of Intel make four multiply-adds of float32 in the time of one dot product of bfloat16 pairs, twice as many
products: what is fast there are the tile registers of AMX, which some virtual machines hide. What whole models win
there: `benchmarks/results/intel-xeon-avx512-2-threads`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mixer_kernels.ops import _checks, _linear_call
from mixer_kernels.ops._autograd import Gradients
from mixer_kernels.ops._linear_call import Optional


def _faster_for() -> frozenset[torch.dtype]:
    cpu = torch.cpu.get_capabilities()
    if cpu.get("architecture") != "x86_64":
        return frozenset()
    dtypes = {torch.bfloat16, torch.float16}
    # The kernels decide alike (fastest_isa in csrc/common/isa.cpp).
    is_intel = cpu.get("cpu_name", "").startswith("Intel")
    if cpu.get("amx_bf16", False) or (cpu.get("avx512_bf16", False) and not is_intel):
        dtypes.remove(torch.bfloat16)
    if cpu.get("avx512_fp16", False):
        dtypes.remove(torch.float16)
    return frozenset(dtypes)


# Dtypes of linear layers that this CPU multiplies faster as float32.
FASTER_FOR = _faster_for()


def may_pay() -> bool:
    """Return whether any linear layer is faster this way here and now."""
    return bool(FASTER_FOR) and not _checks.is_transformed()


def may_pay_for(x: Any) -> bool:
    """Return whether any linear layer of ``x`` is faster this way here and now."""
    return may_pay() and isinstance(x, torch.Tensor) and x.device.type == "cpu" and _result_dtype(x) in FASTER_FOR


def pays(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> bool:
    """Return whether a linear layer is faster this way; what it takes no part in, PyTorch has to answer for."""
    if not may_pay_for(x) or not _linear_call.is_ordinary(x, weight, bias, (*FASTER_FOR, torch.float32)):
        return False
    # Autocast would round those of float32.
    given = {value.dtype for value in (x, weight, bias) if value is not None}
    return _checks.autocasts(x) or given == {_result_dtype(x)}


def linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` of arguments for which it :func:`pays`, (..., K), (N, K), (N,) -> (..., N)."""
    y: torch.Tensor = Float32LinearFunction.apply(x, weight, bias, _result_dtype(x), False)
    return y


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    """Return the same of the pixels of a map, (B, K, H, W), (N, K), (N,) -> (B, N, H, W), in the map's memory format.

    Linear layers pay where ``x.movedim(1, -1)`` is their input.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    y: torch.Tensor = Float32LinearFunction.apply(x, weight, bias, _result_dtype(x), True)
    return y


def _result_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if _checks.autocasts(x) else x.dtype


class Float32LinearFunction(torch.autograd.Function):
    """Products and sums in float32, results rounded; saves the 16-bit arguments and converts them again in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional, dtype: torch.dtype, planes: bool
    ) -> torch.Tensor:
        """Map (..., K) to (..., N) of ``dtype``, or if ``planes`` (B, K, H, W) to (B, N, H, W)."""
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.planes = planes
        bias = None if bias is None else bias.float()
        with torch.autocast(x.device.type, enabled=False):
            if not planes:
                return F.linear(x.float(), weight.float(), bias).to(dtype)
            y = weight.float() @ x.float().flatten(2)
            if bias is not None:
                y += bias[:, None]
            return y.to(dtype).unflatten(2, x.shape[2:])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Gradients:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        # Dimensions over which products add up, and so those of the bias.
        sums = (0, 2) if ctx.planes else (0,)
        dx = dweight = dbias = None
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(dy, ctx.planes)
            if ctx.needs_input_grad[0]:
                dx = weight.float().t() @ rows if ctx.planes else rows @ weight.float()
                dx = dx.view(x.shape).to(x.dtype)
            if ctx.needs_input_grad[1]:
                dweight = torch.tensordot(rows, _rows(x, ctx.planes), (sums, sums)).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                dbias = rows.sum(sums).to(ctx.bias_dtype)
        return dx, dweight, dbias, None, None


def _rows(value: torch.Tensor, planes: bool) -> torch.Tensor:
    """Return (M, N) in float32, or of planes (B, N, P)."""
    return value.float().flatten(2) if planes else value.float().flatten(end_dim=-2)
