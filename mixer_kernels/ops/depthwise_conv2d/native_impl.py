"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._prims_common import suggest_memory_format

from mixer_kernels.ops import _native
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry, Optional, accumulation_dtype

# Of taps along either dimension of a kernel.
MAX_TAPS = 63


def why_not(
    device: torch.device, dtype: torch.dtype | None = None, kernel_size: Sequence[int] | None = None
) -> str | None:
    """Return None if this backend runs on the device, and for the dtype and kernel if they are given, else why."""
    if device.type == "cuda" and dtype == torch.float64:
        return "there are no native CUDA kernels of this op for float64"
    if kernel_size is not None and max(kernel_size) > MAX_TAPS:
        return f"its kernels have at most {MAX_TAPS} taps along a dimension, got {tuple(kernel_size)}"
    return _native.why_not(device)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    scale: Optional,
    shift: Optional,
    residual: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> torch.Tensor:
    """Return ``residual + scale * act(conv(x) + bias) + shift`` in one pass."""
    return torch.ops.mixer_kernels.depthwise_conv2d_fwd(
        x, weight, bias, scale, shift, residual, stride, padding, dilation, activation
    )


def backward_input(
    dz: torch.Tensor,
    weight: torch.Tensor,
    residual: Optional,
    height: int,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return the gradient of ``conv(x)`` with respect to x, (B, C, height, width), plus ``residual``."""
    return torch.ops.mixer_kernels.depthwise_conv2d_bwd_input(
        dz, weight, residual, height, width, stride, padding, dilation
    )


def backward_weight(
    dz: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of weight, (C, 1, KH, KW), and bias, (C,)."""
    return torch.ops.mixer_kernels.depthwise_conv2d_bwd_weight(dz, x, kernel_size, stride, padding, dilation)


def statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``z = conv(x) + bias``, and the mean and biased variance of ``act(z)``, (C,), in one pass."""
    return torch.ops.mixer_kernels.depthwise_conv2d_statistics(x, weight, bias, stride, padding, dilation, activation)


def epilogue_forward(
    z: torch.Tensor, scale: Optional, shift: Optional, residual: Optional, activation: int
) -> torch.Tensor:
    """Return ``residual + scale * act(z) + shift``."""
    return torch.ops.mixer_kernels.depthwise_epilogue_fwd(z, scale, shift, residual, activation)


def epilogue_sums(
    dy: torch.Tensor, z: torch.Tensor, center: Optional, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of ``dy`` and of ``dy * (act(z) - center)`` over everything but the channels, (C,)."""
    return torch.ops.mixer_kernels.depthwise_epilogue_sums(dy, z, center, activation)


def epilogue_backward(
    dy: torch.Tensor, z: torch.Tensor, c0: Optional, c1: Optional, c2: Optional, activation: int
) -> torch.Tensor:
    """Return ``(c0 * dy + c1 * act(z) + c2) * act'(z)``; absent coefficients stand for 1, 0 and 0."""
    return torch.ops.mixer_kernels.depthwise_epilogue_bwd(dy, z, c0, c1, c2, activation)


def _convolved(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    return _like(x, (*x.shape[:2], *geometry.output_size(x, weight)))


def _like(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return an empty tensor of this shape in the memory format of ``x``."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))


def _sums(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[1], dtype=accumulation_dtype(x))


if _native.extension is not None:

    @torch.library.register_fake("mixer_kernels::depthwise_conv2d_fwd")
    def _(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional,
        scale: Optional,
        shift: Optional,
        residual: Optional,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        activation: int,
    ) -> torch.Tensor:
        return _convolved(x, weight, Geometry(stride, padding, dilation))

    @torch.library.register_fake("mixer_kernels::depthwise_conv2d_bwd_input")
    def _(
        dz: torch.Tensor,
        weight: torch.Tensor,
        residual: Optional,
        height: int,
        width: int,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> torch.Tensor:
        return _like(dz, (dz.shape[0], dz.shape[1], height, width))

    @torch.library.register_fake("mixer_kernels::depthwise_conv2d_bwd_weight")
    def _(
        dz: torch.Tensor,
        x: torch.Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x.new_empty((x.shape[1], 1, *kernel_size)), x.new_empty(x.shape[1])

    @torch.library.register_fake("mixer_kernels::depthwise_conv2d_statistics")
    def _(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        activation: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _convolved(x, weight, Geometry(stride, padding, dilation)), _sums(x), _sums(x)

    @torch.library.register_fake("mixer_kernels::depthwise_epilogue_fwd")
    def _(z: torch.Tensor, scale: Optional, shift: Optional, residual: Optional, activation: int) -> torch.Tensor:
        return _like(z, z.shape)

    @torch.library.register_fake("mixer_kernels::depthwise_epilogue_sums")
    def _(dy: torch.Tensor, z: torch.Tensor, center: Optional, activation: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _sums(z), _sums(z)

    @torch.library.register_fake("mixer_kernels::depthwise_epilogue_bwd")
    def _(dy: torch.Tensor, z: torch.Tensor, c0: Optional, c1: Optional, c2: Optional, activation: int) -> torch.Tensor:
        return _like(z, z.shape)
