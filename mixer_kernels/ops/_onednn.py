"""Linear layers through oneDNN, which PyTorch carries, in inference, with the GELU behind them in the same pass.

bfloat16 PyTorch multiplies with it, too, but copies the bias into the output before, and takes another pass for the
GELU after. float32 it hands to MKL, which keeps to AVX2 on CPUs of AMD; from Zen 5 on these have AVX-512 of full width,
which oneDNN uses. What whole models win: `benchmarks/results/amd-epyc-avx512-bf16-2-threads`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixer_kernels.ops import _checks, _float32_linear, _linear_call
from mixer_kernels.ops._activation import apply_activation
from mixer_kernels.ops._linear_call import Optional
from mixer_kernels.ops._opaque_op import opaque_op

# oneDNN adds up one product after another: a longer sum of float32 is made of shorter ones, whose error is less.
LONGEST_SUM = 1024

# Activations that oneDNN computes as PyTorch does -> its names for them. Its ReLU turns NaN into zero.
_FUSED: dict[str | None, tuple[str, str]] = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def _faster_in() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    cpu = torch.cpu.get_capabilities()
    faster = set()
    if cpu.get("avx512_bf16", False) and torch.bfloat16 not in _float32_linear.FASTER_FOR:
        faster.add(torch.bfloat16)
    # Of the CPUs of AMD, Zen 5 is the first to have the latter.
    is_zen5 = cpu.get("cpu_name", "").startswith("AMD") and cpu.get("avx512_vp2intersect", False)
    if is_zen5 and torch.backends.mkl.is_available():
        faster.add(torch.float32)
    return frozenset(faster)


# Dtypes whose linear layers oneDNN makes faster on this CPU than what PyTorch does with them.
FASTER_IN = _faster_in()


def may_pay() -> bool:
    """Return whether any linear layer is faster through oneDNN here and now."""
    return bool(FASTER_IN) and _checks.is_inference()


def pays(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> bool:
    """Return whether a linear layer is faster through oneDNN; what it takes no part in, PyTorch has to answer for."""
    return (
        may_pay()
        and x.dtype in FASTER_IN
        and _linear_call.is_ordinary(x, weight, bias, (x.dtype,))
        and not _checks.autocasts(x)
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str | None = None) -> torch.Tensor:
    """Return ``act(x @ weight.T + bias)`` of arguments for which it :func:`pays`."""
    return (opaque_linear if torch.compiler.is_compiling() else _linear)(x, weight, bias, activation)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str | None) -> torch.Tensor:
    if x.numel() == 0 or not torch._C._get_mkldnn_enabled():
        return apply_activation(F.linear(x, weight, bias), activation)
    # Copies, where these are not dense: of others oneDNN takes its reference code.
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    depth = x.shape[-1]
    parts = -(-depth // LONGEST_SUM) if x.dtype == torch.float32 else 1
    if parts > 1:
        return apply_activation(_linear_in_parts(x, weight, bias, parts), activation)
    name, algorithm = _FUSED.get(activation, ("none", ""))
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.contiguous(), bias, name, [], algorithm)
    return y if activation in _FUSED else apply_activation(y, activation)


def _linear_in_parts(x: torch.Tensor, weight: torch.Tensor, bias: Optional, parts: int) -> torch.Tensor:
    def part(value: torch.Tensor, index: int) -> torch.Tensor:
        return value[..., index * depth // parts : (index + 1) * depth // parts].contiguous()

    depth = x.shape[-1]
    pointwise = torch.ops.mkldnn._linear_pointwise
    y: torch.Tensor = pointwise(part(x, 0), part(weight, 0), bias, "none", [], "")
    for index in range(1, parts):
        y = pointwise.binary(part(x, index), y, part(weight, index), None, "add")
    return y


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


opaque_linear = opaque_op("onednn_linear", _fake)(_linear)
