"""The public shifted split attention: checks, choice of a backend, and the autograd Function."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops import _autograd, _backend, _checks
from mixer_kernels.ops.split_attention import native_impl, reference, triton_impl

IMPLEMENTATIONS = {_backend.NATIVE: native_impl, _backend.TRITON: triton_impl}

# The automatic order of each device type, by benchmarks/results: *-threads/*.json and nvidia-h200/first-run.txt.
ORDER = {"cpu": (_backend.NATIVE,), "cuda": (_backend.NATIVE, _backend.TRITON)}


class ShiftedSplitAttentionFunction(torch.autograd.Function):
    """The shifted split attention; of the activations x is saved for backward, and 4 numbers a channel of an image.

    ``apply(x, weight1, weight2, backend)``.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor, backend: str) -> torch.Tensor:
        """Map (B, H, W, 3C) to (B, H, W, C)."""
        y, total, weights = IMPLEMENTATIONS[backend].forward(x, weight1, weight2)
        ctx.save_for_backward(x, weight1, weight2, total, weights)
        ctx.backend = backend
        return y

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of ``x``, ``weight1`` and ``weight2``."""
        x, weight1, weight2, total, weights = saved
        wants_x, *wants_weights, _ = ctx.needs_input_grad
        wants = wants_x, any(wants_weights)
        gradients = IMPLEMENTATIONS[ctx.backend].backward(dy, x, total, weights, weight1, weight2, *wants)
        return *_checks.wanted(gradients, ctx.needs_input_grad), None


def shifted_split_attention(
    x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor, *, backend: str | None = None
) -> torch.Tensor:
    """Shift two of three branches and fuse all three, with a weight for each branch and channel (S2-MLPv2).

    With ``s = shift(x1, SHIFT_1), shift(x2, SHIFT_2), x3`` (arXiv 2108.01072)::

        a = sum over k and the pixels of s_k
        w = softmax over k of weight2 @ gelu(weight1 @ a)
        y = sum over k of w_k * s_k

    Neither shifted branch is ever written: one pass over x takes the sums, another gathers and weighs. Backward keeps
    x and, of each image, 4 numbers a channel.

    Under autocast a float32 ``x`` stays as it is, another one is cast to autocast's dtype; the weights are cast to x's.

    Args:
        x: the three branches side by side, (B, H, W, 3C), float32, float16, bfloat16 or float64, any strides.
        weight1: (D, C), in x's dtype.
        weight2: (3C, D), in x's dtype.
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        A contiguous tensor (B, H, W, C) of x's dtype.

    Raises:
        TypeError: an argument is not a tensor of such a dtype.
        ValueError: a shape does not fit.
        RuntimeError: the tensors are on different devices, or the backend asked for cannot run.
    """
    op = "shifted_split_attention"
    _checks.check_tensor(op, "x", x)
    _checks.check_dims(op, "x", x, "(B, H, W, 3C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x must have at least one pixel and one channel, got shape {tuple(x.shape)}")
    if x.shape[3] % 3:
        raise ValueError(f"{op}: x must have 3C channels, a multiple of 3, got shape {tuple(x.shape)}")
    x = _checks.promote(x)
    weight1 = _checks.check_operand(op, "weight1", weight1, ("D", x.shape[3] // 3), x)
    weight2 = _checks.check_operand(op, "weight2", weight2, (x.shape[3], weight1.shape[0]), x)
    name = _backend.choose(op, backend, ORDER.get(x.device.type, ()), IMPLEMENTATIONS, x.device, x.dtype)
    if name == _backend.REFERENCE:
        return reference.shifted_split_attention(x, weight1, weight2)
    if _checks.needs_grad(x, weight1, weight2):
        return ShiftedSplitAttentionFunction.apply(x, weight1, weight2, name)
    return IMPLEMENTATIONS[name].forward(x, weight1, weight2)[0]


def why_not(device: torch.device) -> dict[str, str | None]:
    """Return, for each backend, None if it runs this op on the device, else the reason."""
    return _backend.reasons(IMPLEMENTATIONS, device)
