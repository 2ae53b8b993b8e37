"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixer_kernels.ops import _native
from mixer_kernels.ops.depthwise_conv2d import _fake
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry, Optional

# Of taps along either dimension of a kernel.
MAX_TAPS = 63


def why_not(
    device: torch.device, dtype: torch.dtype | None = None, kernel_size: Sequence[int] | None = None
) -> str | None:
    """Return None if this backend runs on the device, and for the dtype and kernel if they are given, else why."""
    if kernel_size is not None and max(kernel_size) > MAX_TAPS:
        return f"its kernels have at most {MAX_TAPS} taps along a dimension, got {tuple(kernel_size)}"
    return _native.why_not(device, dtype)


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


def batch_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    norm_weight: Optional,
    norm_bias: Optional,
    eps: float,
    geometry: Geometry,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``x + BN(act(conv(x) + bias))``, and mean and biased variance of the activations, (C,); on the CPU."""
    return torch.ops.mixer_kernels.depthwise_conv2d_batch_norm_fwd(
        x, weight, bias, norm_weight, norm_bias, eps, *geometry, activation
    )


def batch_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: Optional,
    mean: torch.Tensor,
    var: torch.Tensor,
    bias: Optional,
    eps: float,
    geometry: Geometry,
    activation: int,
    wants_input: bool,
    wants_convolution: bool,
) -> tuple[Optional, ...]:
    """Return the gradients of x, weight, bias, norm_weight and norm_bias, empty where they are not wanted."""
    return torch.ops.mixer_kernels.depthwise_conv2d_batch_norm_bwd(
        dy, x, weight, bias, norm_weight, mean, var, eps, *geometry, activation, wants_input, wants_convolution
    )


_native.register_fake("depthwise_conv2d_fwd", _fake.forward)
_native.register_fake("depthwise_conv2d_bwd_input", _fake.backward_input)
_native.register_fake("depthwise_conv2d_bwd_weight", _fake.backward_weight)
_native.register_fake("depthwise_conv2d_statistics", _fake.statistics)
_native.register_fake("depthwise_epilogue_fwd", _fake.epilogue_forward)
_native.register_fake("depthwise_epilogue_sums", _fake.epilogue_sums)
_native.register_fake("depthwise_epilogue_bwd", _fake.epilogue_backward)
_native.register_fake("depthwise_conv2d_batch_norm_fwd", _fake.batch_norm_forward)
_native.register_fake("depthwise_conv2d_batch_norm_bwd", _fake.batch_norm_backward)
