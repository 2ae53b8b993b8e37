"""The depthwise half of a ConvMixer layer in training: the convolution, then BatchNorm of the batch's statistics."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops import _autograd, _backend, _checks
from mixer_kernels.ops._activation import activation_code
from mixer_kernels.ops.depthwise_conv2d import native_impl, reference
from mixer_kernels.ops.depthwise_conv2d._arguments import (
    Geometry,
    Optional,
    Pair,
    check_convolution,
)
from mixer_kernels.ops.depthwise_conv2d.op import IMPLEMENTATIONS, choose


class DepthwiseConvBatchNormFunction(torch.autograd.Function):
    """``x + BN(act(conv(x) + bias))``; x and two numbers a channel are saved for backward.

    On the CPU the native kernels convolve again in backward, some channels at a time; elsewhere ``conv(x) + bias`` is
    saved too.

    ``apply(x, weight, bias, norm_weight, norm_bias, eps, geometry, activation, backend)``, with an activation's code.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional,
        norm_weight: Optional,
        norm_bias: Optional,
        eps: float,
        geometry: Geometry,
        activation: int,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return y, (B, C, H, W), and the mean and variance of the activations, (C,)."""
        y, mean, var, z = _forward(x, weight, bias, norm_weight, norm_bias, eps, geometry, activation, backend)
        ctx.save_for_backward(x, weight, bias, norm_weight, mean, var, z)
        ctx.eps, ctx.geometry, ctx.activation, ctx.backend = eps, geometry, activation, backend
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @_autograd.once_differentiable
    def backward(
        ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor, _mean: Optional, _var: Optional
    ) -> tuple[Optional, ...]:
        """Return the gradients of ``x`` and the parameters."""
        x, weight, bias, norm_weight, mean, var, z = saved
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        given = dy, x, weight, norm_weight, mean, var
        how = ctx.eps, ctx.geometry, ctx.activation, wants_x, wants_weight or wants_bias
        if z is None:
            gradients = native_impl.batch_norm_backward(*given, bias, *how)
        else:
            gradients = _backward(*given, z, *how, IMPLEMENTATIONS[ctx.backend])
        return *_checks.wanted(gradients, ctx.needs_input_grad), None, None, None, None


def depthwise_conv2d_batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    norm_weight: Optional,
    norm_bias: Optional,
    eps: float = 1e-5,
    activation: str | None = "gelu",
    *,
    stride: Pair = 1,
    padding: str | Pair = "same",
    dilation: Pair = 1,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the depthwise half of a ConvMixer layer in training, residual included (ConvMixer, eq. 2).

    ``y = x + norm_weight * (a - mean) / sqrt(var + eps) + norm_bias`` with ``a = act(conv(x) + bias)`` (arXiv
    2201.09792), where mean and variance are those of a over the batch and all pixels. On the CPU the native kernels
    take some channels at a time, and backward keeps x alone; elsewhere there are two passes over the map, of which the
    first convolves and takes the statistics, and backward keeps x and ``conv(x) + bias``.

    Under autocast ``x``, ``weight`` and ``bias`` are cast to its dtype; the parameters of the norm are not.

    Args:
        x: maps, (B, C, H, W), float32, float16, bfloat16 or float64, any strides.
        weight: (C, 1, KH, KW), in x's dtype.
        bias: (C,), in x's dtype, or None.
        norm_weight: (C,), in x's dtype or float32; None stands for ones.
        norm_bias: (C,), in x's dtype or float32; None stands for zeros.
        eps: added to the variance.
        activation: None, "relu", "gelu" (with erf) or "gelu_tanh".
        stride: as in :func:`depthwise_conv2d`; it and padding have to keep the size of the map.
        padding: as in :func:`depthwise_conv2d`.
        dilation: as in :func:`depthwise_conv2d`.
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        y, like x; mean and biased variance, (C,), float32 (float64 for float64), for running statistics: they carry
        no gradient.

    Raises:
        TypeError: an argument is not a tensor of such a dtype.
        ValueError: a shape, the stride, padding or dilation does not fit, there is at most one number a channel, or
            the activation is none of the four.
        RuntimeError: the tensors are on different devices, or the backend asked for cannot run.
    """
    op = "depthwise_conv2d_batch_norm"
    code = activation_code(op, activation)
    x, weight, bias, geometry = check_convolution(op, x, weight, bias, stride, padding, dilation)
    if geometry.output_size(x, weight) != tuple(x.shape[2:]):
        raise ValueError(
            f"{op}: padding must keep the size of x, got shape {tuple(x.shape)} and a map of "
            f"{geometry.output_size(x, weight)} pixels"
        )
    if x.shape[0] * x.shape[2] * x.shape[3] < 2:
        raise ValueError(f"{op}: x must have more than one number a channel, got shape {tuple(x.shape)}")
    norm_weight = _checks.check_channel_parameter(op, "norm_weight", norm_weight, x, x.shape[1])
    norm_bias = _checks.check_channel_parameter(op, "norm_bias", norm_bias, x, x.shape[1])
    name = choose(op, backend, x, weight)
    tensors = (x, weight, bias, norm_weight, norm_bias)
    if name == _backend.REFERENCE:
        return reference.depthwise_conv2d_batch_norm(*tensors, eps, activation, *geometry)
    if not _checks.needs_grad(*tensors):
        y, mean, var, _ = _forward(*tensors, eps, geometry, code, name)
        return y, mean, var
    return DepthwiseConvBatchNormFunction.apply(*tensors, eps, geometry, code, name)


def normalization(
    mean: torch.Tensor, var: torch.Tensor, norm_weight: Optional, norm_bias: Optional, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return BatchNorm as ``scale * a + shift``, (C,) each, in the dtype of ``mean``."""
    rstd = (var + eps).rsqrt()
    scale = rstd if norm_weight is None else rstd * norm_weight
    shift = -mean * scale if norm_bias is None else norm_bias - mean * scale
    return scale, shift


def scaled_activation(
    z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, activation: str | None, backend: str
) -> torch.Tensor:
    """Return ``scale * act(z) + shift`` of a map in one pass: BatchNorm in evaluation mode behind an activation.

    It carries no gradient.

    Args:
        z: (B, C, H, W).
        scale: (C,), in the dtype of sums over ``z``.
        shift: likewise.
        activation: None, "relu", "gelu" (with erf) or "gelu_tanh".
        backend: one that runs on ``z``, by :func:`choose`, and has kernels.
    """
    code = activation_code("scaled_activation", activation)
    return IMPLEMENTATIONS[backend].epilogue_forward(z, scale, shift, None, code)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    norm_weight: Optional,
    norm_bias: Optional,
    eps: float,
    geometry: Geometry,
    activation: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Optional]:
    """Return y, the statistics and, unless backward does without, ``conv(x) + bias``."""
    if backend == _backend.NATIVE and x.device.type == "cpu":
        parameters = weight, bias, norm_weight, norm_bias
        return *native_impl.batch_norm_forward(x, *parameters, eps, geometry, activation), None
    kernels = IMPLEMENTATIONS[backend]
    z, mean, var = kernels.statistics(x, weight, bias, *geometry, activation)
    scale, shift = normalization(mean, var, norm_weight, norm_bias, eps)
    return kernels.epilogue_forward(z, scale, shift, x, activation), mean, var, z


def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: Optional,
    mean: torch.Tensor,
    var: torch.Tensor,
    z: torch.Tensor,
    eps: float,
    geometry: Geometry,
    activation: int,
    wants_input: bool,
    wants_convolution: bool,
    kernels: Any,
) -> tuple[Optional, ...]:
    """Return the gradients of x, weight, bias, norm_weight and norm_bias."""
    rstd = (var + eps).rsqrt()
    dx = dweight = dbias = None
    dnorm_bias, sum_dy_centered = kernels.epilogue_sums(dy, z, mean, activation)
    dnorm_weight = sum_dy_centered * rstd
    if wants_input or wants_convolution:
        # With a = act(z) and n = (a - mean) * rstd of N numbers a channel, the gradient of a is
        # gamma * rstd * (dy - sum(dy) / N - n * sum(dy * n) / N), linear in dy and a.
        c0 = rstd if norm_weight is None else rstd * norm_weight
        count = z.shape[0] * z.shape[2] * z.shape[3]
        c1 = -c0 * rstd * dnorm_weight / count
        c2 = -c0 * dnorm_bias / count - c1 * mean
        dz = kernels.epilogue_backward(dy, z, c0, c1, c2, activation)
        if wants_input:
            dx = kernels.backward_input(dz, weight, dy, *x.shape[2:], *geometry)
        if wants_convolution:
            dweight, dbias = kernels.backward_weight(dz, x, weight.shape[2:], *geometry)
    return dx, dweight, dbias, dnorm_weight, dnorm_bias
