"""The public depthwise convolution: checks, choice of a backend, and the autograd Function."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops import _autograd, _backend, _checks
from mixer_kernels.ops._activation import activation_code
from mixer_kernels.ops._dtypes import accumulation_dtype
from mixer_kernels.ops.depthwise_conv2d import native_impl, reference, triton_impl
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry, Optional, Pair, check_convolution

IMPLEMENTATIONS: dict[str, Any] = {_backend.NATIVE: native_impl, _backend.TRITON: triton_impl}

# The automatic order of each device type, by benchmarks/results: *-threads/*.json and nvidia-h200/first-run.txt.
ORDER = {"cpu": (_backend.NATIVE,), "cuda": (_backend.NATIVE, _backend.TRITON)}


class DepthwiseConv2dFunction(torch.autograd.Function):
    """The convolution and what follows it; x and, for an activation or a scale, ``conv(x) + bias`` are saved.

    ``apply(x, weight, bias, scale, shift, residual, residual_is_x, geometry, activation, backend)``, with an
    activation's code. A residual that is x is told by the flag: torch.compile takes no tensor twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional,
        scale: Optional,
        shift: Optional,
        residual: Optional,
        residual_is_x: bool,
        geometry: Geometry,
        activation: int,
        backend: str,
    ) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, H', W')."""
        kernels = IMPLEMENTATIONS[backend]
        ctx.geometry, ctx.activation, ctx.backend = geometry, activation, backend
        ctx.residual_is_x = residual_is_x
        residual = x if residual_is_x else residual
        if activation == 0 and scale is None:
            ctx.save_for_backward(x, weight, None, None)
            return kernels.forward(x, weight, bias, None, shift, residual, *geometry, activation)
        z = kernels.forward(x, weight, bias, None, None, None, *geometry, 0)
        ctx.save_for_backward(x, weight, scale, z)
        return kernels.epilogue_forward(z, scale, shift, residual, activation)

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[Optional, ...]:
        """Return the gradients of ``x``, the parameters and ``residual``."""
        x, weight, scale, z = saved
        kernels = IMPLEMENTATIONS[ctx.backend]
        wants_x, wants_weight, wants_bias, wants_scale, wants_shift, *_ = ctx.needs_input_grad
        dx = dweight = dbias = dscale = dshift = None
        if wants_scale or wants_shift:
            # Without z there is no scale, and only the first sum is asked for.
            dshift, dscale = kernels.epilogue_sums(dy, dy if z is None else z, None, ctx.activation)
        if wants_x or wants_weight or wants_bias:
            dz = dy
            if z is not None:
                c0 = None if scale is None else scale.to(accumulation_dtype(x))
                dz = kernels.epilogue_backward(dy, z, c0, None, None, ctx.activation)
            if wants_x:
                residual = dy if ctx.residual_is_x else None
                dx = kernels.backward_input(dz, weight, residual, *x.shape[2:], *ctx.geometry)
            if wants_weight or wants_bias:
                dweight, dbias = kernels.backward_weight(dz, x, weight.shape[2:], *ctx.geometry)
        gradients = (dx, dweight, dbias, dscale, dshift, dy)
        return *_checks.wanted(gradients, ctx.needs_input_grad), None, None, None, None


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional = None,
    *,
    stride: Pair = 1,
    padding: str | Pair = "same",
    dilation: Pair = 1,
    activation: str | None = None,
    scale: Optional = None,
    shift: Optional = None,
    residual: Optional = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Convolve every channel with its own kernel, and do what follows in the same pass (ConvMixer, eq. 2).

    ``y = residual + scale * act(conv(x) + bias) + shift`` (arXiv 2201.09792); scale and shift are BatchNorm in
    evaluation mode, which comes behind the activation there. Backward keeps x and, for an activation or a scale,
    ``conv(x) + bias``.

    Under autocast ``x``, ``weight``, ``bias`` and ``residual`` are cast to its dtype; ``scale`` and ``shift`` are not.

    Where the CPU multiplies in float32, it does so by minimal filtering (Winograd) if that is faster: what is infinite,
    or larger than half of what float32 holds, makes the outputs that it reaches NaN.

    Args:
        x: maps, (B, C, H, W), float32, float16, bfloat16 or float64, any strides.
        weight: (C, 1, KH, KW), in x's dtype.
        bias: (C,), in x's dtype, or None.
        stride: step along both dimensions, or of each.
        padding: zeros around the map: "same" (stride 1 only; an even kernel has one more at the bottom and at the
            right), "valid" for none, or a number, or one for each dimension.
        dilation: distance between taps, or one for each dimension.
        activation: None, "relu", "gelu" (with erf) or "gelu_tanh".
        scale: (C,), in x's dtype or float32; None stands for ones.
        shift: (C,), in x's dtype or float32; None stands for zeros.
        residual: of y's shape, in x's dtype, any strides; it may be x. None stands for zeros.
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        A tensor (B, C, H', W') of x's dtype; channels_last if x is, else contiguous.

    Raises:
        TypeError: an argument is not a tensor of such a dtype.
        ValueError: a shape, the stride, padding or dilation does not fit, or the activation is none of the four.
        RuntimeError: the tensors are on different devices, or the backend asked for cannot run.
    """
    op = "depthwise_conv2d"
    code = activation_code(op, activation)
    residual_is_x = residual is x
    x, weight, bias, geometry = check_convolution(op, x, weight, bias, stride, padding, dilation)
    scale = _checks.check_channel_parameter(op, "scale", scale, x, x.shape[1])
    shift = _checks.check_channel_parameter(op, "shift", shift, x, x.shape[1])
    if residual is not None:
        size = (*x.shape[:2], *geometry.output_size(x, weight))
        residual = _checks.check_operand(op, "residual", x if residual_is_x else residual, size, x)
    tensors = (x, weight, bias, scale, shift, residual)
    name = choose(op, backend, x, weight)
    if name == _backend.REFERENCE:
        return reference.depthwise_conv2d(*tensors, *geometry, activation)
    if not _checks.needs_grad(*tensors):
        return IMPLEMENTATIONS[name].forward(*tensors, *geometry, code)
    other = None if residual_is_x else residual
    return DepthwiseConv2dFunction.apply(*tensors[:-1], other, residual_is_x, geometry, code, name)


def choose(op: str, backend: str | None, x: torch.Tensor, weight: Optional = None) -> str:
    """Return the name of the backend that runs a convolution, or what follows one."""
    kernel_size = () if weight is None else (weight.shape[2:],)
    order = ORDER.get(x.device.type, ())
    return _backend.choose(op, backend, order, IMPLEMENTATIONS, x.device, x.dtype, *kernel_size)


def why_not(device: torch.device) -> dict[str, str | None]:
    """Return, for each backend, None if it runs this op on the device, else the reason."""
    return _backend.reasons(IMPLEMENTATIONS, device)
