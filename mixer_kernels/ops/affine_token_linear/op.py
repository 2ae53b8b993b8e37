"""The public affine-folded linear: checks, choice of a backend, and the autograd Function."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops import _autograd, _backend, _checks, _tokens
from mixer_kernels.ops.affine_token_linear import native_impl, reference, triton_impl

IMPLEMENTATIONS = {_backend.NATIVE: native_impl, _backend.TRITON: triton_impl}

# The automatic order of each device type, by benchmarks/results: *-threads/*.json and nvidia-h200/first-run.txt.
ORDER = {"cpu": (_backend.NATIVE,), "cuda": (_backend.NATIVE, _backend.TRITON)}

Optional = torch.Tensor | None


class AffineTokenLinearFunction(torch.autograd.Function):
    """The cross-patch half of a ResMLP layer; of the activations only x is saved for backward.

    ``apply(x, alpha, beta, weight, bias, layer_scale, backend)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        alpha: Optional,
        beta: Optional,
        weight: torch.Tensor,
        bias: Optional,
        layer_scale: Optional,
        backend: str,
    ) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        ctx.save_for_backward(x, alpha, beta, weight, bias, layer_scale)
        ctx.backend, ctx.allow_tf32 = backend, _checks.autocasts(x)
        return IMPLEMENTATIONS[backend].forward(x, alpha, beta, weight, bias, layer_scale, ctx.allow_tf32)

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[Optional, ...]:
        """Return the gradients of ``x`` and the parameters."""
        gradients = IMPLEMENTATIONS[ctx.backend].backward(dy, *saved, ctx.allow_tf32)
        return *_checks.wanted(gradients, ctx.needs_input_grad), None


def affine_token_linear(
    x: torch.Tensor,
    alpha: Optional,
    beta: Optional,
    weight: torch.Tensor,
    bias: Optional,
    layer_scale: Optional,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Run the cross-patch half of a ResMLP layer, residual included (ResMLP, eq. 2).

    ``y = x + layer_scale * (weight @ (alpha * x + beta) + bias)``, where the product runs over the tokens and all
    else over the channels (arXiv 2105.03404). It is one product: Affine, bias, LayerScale and residual fold exactly
    into what follows it, in float32, so that a small LayerScale loses nothing in half precision. Backward keeps x.

    Under autocast ``y`` is of the dtype that it has in eager PyTorch. Where ``x`` or ``layer_scale`` is float32, that
    is float32, as in a published ResMLP from its first layer on: a LayerScale may be too small for an ``x`` in half
    precision. The op runs in float32 then, and its products keep at least the digits of TF32, as many as float16 has.
    Where both are of autocast's dtype, ``weight`` and ``bias`` are cast to it.

    Args:
        x: tokens, (B, S, C), float32, float16, bfloat16 or float64, any strides.
        alpha: (C,) or (1, 1, C), in x's dtype or float32; None stands for ones.
        beta: (C,) or (1, 1, C), in x's dtype or float32; None stands for zeros.
        weight: (S, S), in x's dtype.
        bias: (S,), in x's dtype, or None.
        layer_scale: (C,) or (1, 1, C), in x's dtype or float32; None stands for ones.
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        A contiguous tensor (B, S, C) of x's dtype.

    Raises:
        TypeError: an argument is not a tensor of such a dtype.
        ValueError: a shape does not fit.
        RuntimeError: the tensors are on different devices, or the backend asked for cannot run.
    """
    op = "affine_token_linear"
    _tokens.check_tokens(op, x)
    x = _checks.promote(x, layer_scale)
    alpha = _channel_parameter(op, "alpha", alpha, x)
    beta = _channel_parameter(op, "beta", beta, x)
    weight, bias = _tokens.check_linear(op, x, "weight", weight, (x.shape[1], x.shape[1]), "bias", bias)
    layer_scale = _channel_parameter(op, "layer_scale", layer_scale, x)
    name = _backend.choose(op, backend, ORDER.get(x.device.type, ()), IMPLEMENTATIONS, x.device, x.dtype)
    arguments = (x, alpha, beta, weight, bias, layer_scale)
    if name == _backend.REFERENCE:
        return reference.affine_token_linear(*arguments)
    if not _checks.needs_grad(*arguments):
        return IMPLEMENTATIONS[name].forward(*arguments, _checks.autocasts(x))
    return AffineTokenLinearFunction.apply(*arguments, name)


def why_not(device: torch.device) -> dict[str, str | None]:
    """Return, for each backend, None if it runs this op on the device, else the reason."""
    return _backend.reasons(IMPLEMENTATIONS, device)


def _channel_parameter(op: str, name: str, parameter: Optional, x: torch.Tensor) -> Optional:
    """Check a parameter of the channels; return it as the kernels take it, (C,) and contiguous."""
    if isinstance(parameter, torch.Tensor) and parameter.dim() == 3:
        _checks.check_shape(op, name, parameter, (1, 1, x.shape[2]), x)
        parameter = parameter.reshape(-1)
    return _checks.check_channel_parameter(op, name, parameter, x, x.shape[2])
