"""The public token mixing: checks, choice of a backend, and the autograd Functions."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops import _autograd, _backend, _checks, _tokens
from mixer_kernels.ops._activation import activation_code
from mixer_kernels.ops.token_mixing import native_impl, reference, triton_impl

IMPLEMENTATIONS = {_backend.NATIVE: native_impl, _backend.TRITON: triton_impl}

# The automatic order of each device type, by benchmarks/results: *-threads/*.json and nvidia-h200/first-run.txt.
ORDER = {"cpu": (_backend.NATIVE,), "cuda": (_backend.NATIVE, _backend.TRITON)}

Optional = torch.Tensor | None


class LayerNormTokenLinearFunction(torch.autograd.Function):
    """LayerNorm and a linear layer over the tokens; x and two numbers a token are saved for backward.

    ``apply(x, norm_weight, norm_bias, weight, bias, eps, activation, backend)``, with an activation's code.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm_weight: Optional,
        norm_bias: Optional,
        weight: torch.Tensor,
        bias: Optional,
        eps: float,
        activation: int,
        backend: str,
    ) -> torch.Tensor:
        """Map (B, S, C) to (B, D, C)."""
        allow_tf32 = _checks.autocasts(x)
        y, mean, rstd = IMPLEMENTATIONS[backend].layer_norm_token_linear_forward(
            x, norm_weight, norm_bias, weight, bias, eps, activation, allow_tf32
        )
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, weight, bias)
        ctx.activation, ctx.backend, ctx.allow_tf32 = activation, backend, allow_tf32
        return y

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[Optional, ...]:
        """Return the gradients of ``x`` and the parameters."""
        backward = IMPLEMENTATIONS[ctx.backend].layer_norm_token_linear_backward
        gradients = backward(dy, *saved, ctx.activation, ctx.allow_tf32)
        return *_checks.wanted(gradients, ctx.needs_input_grad), None, None, None


class TokenMixingFunction(torch.autograd.Function):
    """The token-mixing half of a Mixer layer; x and two numbers a token are saved for backward.

    ``apply(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, backend)``, with an
    activation's code.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm_weight: Optional,
        norm_bias: Optional,
        weight1: torch.Tensor,
        bias1: Optional,
        weight2: torch.Tensor,
        bias2: Optional,
        eps: float,
        activation: int,
        backend: str,
    ) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        allow_tf32 = _checks.autocasts(x)
        y, mean, rstd = IMPLEMENTATIONS[backend].token_mixing_forward(
            x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, allow_tf32
        )
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
        ctx.activation, ctx.backend, ctx.allow_tf32 = activation, backend, allow_tf32
        return y

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[Optional, ...]:
        """Return the gradients of ``x`` and the parameters."""
        backward = IMPLEMENTATIONS[ctx.backend].token_mixing_backward
        gradients = backward(dy, *saved, ctx.activation, ctx.allow_tf32)
        return *_checks.wanted(gradients, ctx.needs_input_grad), None, None, None


def layer_norm_token_linear(
    x: torch.Tensor,
    norm_weight: Optional,
    norm_bias: Optional,
    weight: torch.Tensor,
    bias: Optional = None,
    *,
    eps: float = 1e-6,
    activation: str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Normalise each token and mix the tokens: LayerNorm and a matmul on the transpose (MLP-Mixer, eq. 1).

    ``y[b, :, c] = act(weight @ n[b, :, c] + bias)``, where ``n[b, s, :] = LN(x[b, s, :])`` over the channels
    (arXiv 2105.01601). No transposed copy is made.

    Under autocast ``y`` is of its dtype, as in eager PyTorch. A float32 ``x`` is normalised as it is: the op runs in
    float32 then, and its products keep at least the digits of TF32. Otherwise ``weight`` and ``bias`` are cast to
    autocast's dtype; the parameters of the norm never are.

    Args:
        x: tokens, (B, S, C), float32, float16, bfloat16 or float64, any strides.
        norm_weight: (C,), in x's dtype or float32; None stands for ones.
        norm_bias: (C,), in x's dtype or float32; None stands for zeros.
        weight: (D, S), in x's dtype.
        bias: (D,), in x's dtype, or None.
        eps: added to the variance.
        activation: None, "relu", "gelu" (with erf) or "gelu_tanh".
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        A contiguous tensor (B, D, C) of x's dtype, or of autocast's.

    Raises:
        TypeError: an argument is not a tensor of such a dtype.
        ValueError: a shape does not fit, or the activation is none of the four.
        RuntimeError: the tensors are on different devices, or the backend asked for cannot run.
    """
    op = "layer_norm_token_linear"
    code = activation_code(op, activation)
    x, norm_weight, norm_bias = _check_tokens(op, x, norm_weight, norm_bias)
    weight, bias = _tokens.check_linear(op, x, "weight", weight, ("D", x.shape[1]), "bias", bias)
    name = _choose(op, backend, x)
    if name == _backend.REFERENCE:
        return reference.layer_norm_token_linear(x, norm_weight, norm_bias, weight, bias, eps, activation)
    arguments = (x, norm_weight, norm_bias, weight, bias)
    if _checks.needs_grad(*arguments):
        y = LayerNormTokenLinearFunction.apply(*arguments, eps, code, name)
    else:
        y, *_ = IMPLEMENTATIONS[name].layer_norm_token_linear_forward(*arguments, eps, code, _checks.autocasts(x))
    return _checks.autocast(y)


def token_mixing(
    x: torch.Tensor,
    norm_weight: Optional,
    norm_bias: Optional,
    weight1: torch.Tensor,
    bias1: Optional,
    weight2: torch.Tensor,
    bias2: Optional,
    *,
    eps: float = 1e-6,
    activation: str | None = "gelu",
    backend: str | None = None,
) -> torch.Tensor:
    """Run the token-mixing half of a Mixer layer, residual included (MLP-Mixer, first line of eq. 1).

    ``y = x + weight2 @ act(weight1 @ LN(x) + bias1) + bias2``, where LN runs over the channels and both products over
    the tokens (arXiv 2105.01601). No transposed copy is made; backward keeps x and two numbers a token.

    Under autocast ``y`` is of the dtype that it has in eager PyTorch. Where ``x`` is float32, that is float32: the op
    runs in it then, and its products keep at least the digits of TF32. Otherwise the weights and their biases are cast
    to autocast's dtype; the parameters of the norm never are.

    Args:
        x: tokens, (B, S, C), float32, float16, bfloat16 or float64, any strides.
        norm_weight: (C,), in x's dtype or float32; None stands for ones.
        norm_bias: (C,), in x's dtype or float32; None stands for zeros.
        weight1: (D, S), in x's dtype.
        bias1: (D,), in x's dtype, or None.
        weight2: (S, D), in x's dtype.
        bias2: (S,), in x's dtype, or None.
        eps: added to the variance.
        activation: None, "relu", "gelu" (with erf) or "gelu_tanh".
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        A contiguous tensor (B, S, C) of x's dtype.

    Raises:
        TypeError: an argument is not a tensor of such a dtype.
        ValueError: a shape does not fit, or the activation is none of the four.
        RuntimeError: the tensors are on different devices, or the backend asked for cannot run.
    """
    op = "token_mixing"
    code = activation_code(op, activation)
    x, norm_weight, norm_bias = _check_tokens(op, x, norm_weight, norm_bias)
    weight1, bias1 = _tokens.check_linear(op, x, "weight1", weight1, ("D", x.shape[1]), "bias1", bias1)
    if weight1.shape[0] == 0:
        raise ValueError(f"{op}: weight1 must have at least one row, got shape {tuple(weight1.shape)}")
    second_shape = (x.shape[1], weight1.shape[0])
    weight2, bias2 = _tokens.check_linear(op, x, "weight2", weight2, second_shape, "bias2", bias2)
    name = _choose(op, backend, x)
    if name == _backend.REFERENCE:
        return reference.token_mixing(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation)
    arguments = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    if not _checks.needs_grad(*arguments):
        return IMPLEMENTATIONS[name].token_mixing_forward(*arguments, eps, code, _checks.autocasts(x))[0]
    return TokenMixingFunction.apply(*arguments, eps, code, name)


def why_not(device: torch.device) -> dict[str, str | None]:
    """Return, for each backend, None if it runs this op on the device, else the reason."""
    return _backend.reasons(IMPLEMENTATIONS, device)


def _choose(op: str, backend: str | None, x: torch.Tensor) -> str:
    order = ORDER.get(x.device.type, ())
    return _backend.choose(op, backend, order, IMPLEMENTATIONS, x.device, x.dtype)


def _check_tokens(
    op: str, x: torch.Tensor, norm_weight: Optional, norm_bias: Optional
) -> tuple[torch.Tensor, Optional, Optional]:
    """Check x and the parameters of its norm; return them as the kernels take them."""
    _tokens.check_tokens(op, x)
    x = _checks.promote(x)
    norm_weight = _checks.check_channel_parameter(op, "norm_weight", norm_weight, x, x.shape[2])
    norm_bias = _checks.check_channel_parameter(op, "norm_bias", norm_bias, x, x.shape[2])
    if norm_weight is not None and norm_bias is not None and norm_bias.dtype != norm_weight.dtype:
        raise TypeError(f"{op}: norm_bias must have norm_weight's dtype {norm_weight.dtype}, got {norm_bias.dtype}")
    return x, norm_weight, norm_bias
