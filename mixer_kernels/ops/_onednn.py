"""Linear layers in float32 through oneDNN, in inference, where PyTorch multiplies them at half speed.

It hands them to MKL, which keeps to AVX2 on CPUs of AMD. From Zen 5 on these have AVX-512 of full width, which oneDNN
uses; PyTorch carries it as well. What a Mixer wins: `mixer_s32_224` in
`benchmarks/results/amd-epyc-avx512-bf16-2-threads`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixer_kernels.ops import _checks
from mixer_kernels.ops._opaque_op import opaque_op

# oneDNN adds up one product after another: a longer sum is made of shorter ones, whose error is less.
LONGEST_SUM = 1024

# Elements of a weight below which a call takes longer than its product.
FEWEST_ELEMENTS = 1 << 16

Optional = torch.Tensor | None


def _is_faster() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpu = torch.cpu.get_capabilities()
    # Of the CPUs of AMD, Zen 5 is the first to have the second.
    return cpu.get("cpu_name", "").startswith("AMD") and cpu.get("avx512_vp2intersect", False)


# Whether oneDNN multiplies float32 faster than what PyTorch takes on this CPU.
IS_FASTER = _is_faster()


def may_pay() -> bool:
    """Return whether any linear layer is faster through oneDNN here and now."""
    return IS_FASTER and _checks.is_inference()


def pays(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> bool:
    """Return whether a linear layer is faster through oneDNN; what it takes no part in, PyTorch has to answer for.

    The answer depends on no size but the weight's, so that a compiled layer takes every batch.
    """
    return (
        may_pay()
        and all(value is None or _is_ordinary(value) for value in (x, weight, bias))
        and weight.dim() == 2
        and weight.numel() >= FEWEST_ELEMENTS
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and not _checks.autocasts(x)
    )


def _is_ordinary(value: torch.Tensor) -> bool:
    """Return whether a tensor is a dense one of float32 on the CPU, without another class's or transform's say."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_nested
        and (torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(value))
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` of arguments for which it :func:`pays`."""
    return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], weight.shape[0])


def _fake(left: torch.Tensor, right: torch.Tensor, bias: Optional) -> torch.Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


@opaque_op("onednn_linear", _fake)
def product(left: torch.Tensor, right: torch.Tensor, bias: Optional) -> torch.Tensor:
    """Return ``left @ right.T + bias`` of an (M, K) and an (N, K) matrix."""
    if left.numel() == 0 or not torch._C._get_mkldnn_enabled():
        return F.linear(left, right, bias)
    onednn = torch.ops.mkldnn._linear_pointwise
    depth = left.shape[1]
    parts = -(-depth // LONGEST_SUM)

    def operands(part: int) -> tuple[torch.Tensor, torch.Tensor]:
        k = slice(part * depth // parts, (part + 1) * depth // parts)
        # Copies, where these are not dense: of others oneDNN takes its reference code.
        return left[:, k].contiguous(), right[:, k].contiguous()

    a, b = operands(0)
    y: torch.Tensor = onednn(a, b, None if bias is None else bias.contiguous(), "none", [], "")
    for part in range(1, parts):
        a, b = operands(part)
        y = onednn.binary(a, y, b, None, "add")
    return y
