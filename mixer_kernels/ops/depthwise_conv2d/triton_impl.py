"""The op in Triton: launches are in ``_triton_launch.py``, kernels in ``_triton_kernels.py``.

What follows the convolution has files of its own, ``_triton_epilogue*.py``; tiles are in ``_triton_tiles.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from mixer_kernels.ops import _triton, _triton_cases
from mixer_kernels.ops._activation import ACTIVATION_CODES
from mixer_kernels.ops._opaque_op import opaque_op
from mixer_kernels.ops._triton_cases import Case
from mixer_kernels.ops._triton_launch import Launch, run
from mixer_kernels.ops.depthwise_conv2d import _fake, _triton_epilogue, _triton_launch
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry
from mixer_kernels.ops.depthwise_conv2d._triton_kernels import SIZES


def why_not(
    device: torch.device, dtype: torch.dtype | None = None, kernel_size: Sequence[int] | None = None
) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    if dtype == torch.float64:
        return "there are no triton kernels of this op for float64"
    return _triton.why_not(device)


@opaque_op("depthwise_conv2d_triton_fwd", _fake.forward)
def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> torch.Tensor:
    """Return ``residual + scale * act(conv(x) + bias) + shift`` in one pass."""
    geometry = Geometry(stride, padding, dilation)
    with torch.cuda.device_of(x):
        return _triton_launch.forward(run, x, weight, bias, scale, shift, residual, geometry, activation)


@opaque_op("depthwise_conv2d_triton_bwd_input", _fake.backward_input)
def backward_input(
    dz: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    height: int,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return the gradient of ``conv(x)`` with respect to x, (B, C, height, width), plus ``residual``."""
    geometry = Geometry(stride, padding, dilation)
    with torch.cuda.device_of(dz):
        return _triton_launch.backward_input(run, dz, weight, residual, height, width, geometry)


@opaque_op("depthwise_conv2d_triton_bwd_weight", _fake.backward_weight)
def backward_weight(
    dz: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of weight, (C, 1, KH, KW), and bias, (C,)."""
    with torch.cuda.device_of(x):
        return _triton_launch.backward_weight(run, dz, x, kernel_size, Geometry(stride, padding, dilation))


@opaque_op("depthwise_conv2d_triton_statistics", _fake.statistics)
def statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``z = conv(x) + bias``, and the mean and biased variance of ``act(z)``, (C,), in one pass."""
    with torch.cuda.device_of(x):
        return _triton_launch.statistics(run, x, weight, bias, Geometry(stride, padding, dilation), activation)


@opaque_op("depthwise_epilogue_triton_fwd", _fake.epilogue_forward)
def epilogue_forward(
    z: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: int,
) -> torch.Tensor:
    """Return ``residual + scale * act(z) + shift``."""
    with torch.cuda.device_of(z):
        return _triton_epilogue.epilogue_forward(run, z, scale, shift, residual, activation)


@opaque_op("depthwise_epilogue_triton_sums", _fake.epilogue_sums)
def epilogue_sums(
    dy: torch.Tensor, z: torch.Tensor, center: torch.Tensor | None, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of ``dy`` and of ``dy * (act(z) - center)`` over everything but the channels, (C,)."""
    with torch.cuda.device_of(z):
        return _triton_epilogue.epilogue_sums(run, dy, z, center, activation)


@opaque_op("depthwise_epilogue_triton_bwd", _fake.epilogue_backward)
def epilogue_backward(
    dy: torch.Tensor,
    z: torch.Tensor,
    c0: torch.Tensor | None,
    c1: torch.Tensor | None,
    c2: torch.Tensor | None,
    activation: int,
) -> torch.Tensor:
    """Return ``(c0 * dy + c1 * act(z) + c2) * act'(z)``; absent coefficients stand for 1, 0 and 0."""
    with torch.cuda.device_of(z):
        return _triton_epilogue.epilogue_backward(run, dy, z, c0, c1, c2, activation)


GELU = ACTIVATION_CODES["gelu"]

# Shape of x, kernel, stride and dtypes: ConvMixer's, and what takes the other tiles, numbers of taps and strides.
COMPILED = (
    ((64, 768, 32, 32), (9, 9), (1, 1), (torch.bfloat16, torch.float16, torch.float32)),
    ((64, 768, 14, 14), (7, 7), (1, 1), (torch.bfloat16, torch.float32)),
    ((64, 30, 7, 7), (5, 5), (1, 1), (torch.bfloat16, torch.float32)),
    ((64, 30, 7, 7), (3, 3), (2, 1), (torch.bfloat16, torch.float32)),
    ((64, 64, 56, 56), (3, 3), (2, 2), (torch.bfloat16, torch.float32)),
)


def compile_cases() -> Iterator[Case]:
    """Yield every configuration that a launch can choose, for compilation on a machine without a GPU."""
    calls = [
        (shape, kernel_size, stride, memory_format, dtype)
        for shape, kernel_size, stride, dtypes in COMPILED
        for memory_format in (torch.contiguous_format, torch.channels_last)
        for dtype in dtypes
    ]
    named = ((f"{call[4]}, x {call[0]}, {call[3]}", "ieee", partial(_launch_all, *call)) for call in calls)
    return _triton_cases.compile_cases(named, SIZES)


def _launch_all(
    shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    launch: Launch,
) -> None:
    """Launch what forward and backward do on such inputs."""
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
    channels, height, width = shape[1:]
    weight, bias = x.new_empty((channels, 1, *kernel_size)), x.new_empty(channels)
    coefficient = bias.float()
    rows, columns = ((size - 1) // 2 for size in kernel_size)
    geometry = Geometry(stride, (rows, rows, columns, columns), (1, 1))
    y, *_ = _triton_launch.statistics(launch, x, weight, bias, geometry, GELU)
    _triton_launch.forward(launch, x, weight, bias, None, None, None, geometry, 0)
    _triton_launch.forward(launch, x, weight, bias, bias, bias, y, geometry, GELU)
    _triton_launch.backward_input(launch, y, weight, x, height, width, geometry)
    _triton_launch.backward_weight(launch, y, x, kernel_size, geometry)
    _triton_epilogue.epilogue_forward(launch, y, coefficient, coefficient, y, GELU)
    _triton_epilogue.epilogue_sums(launch, y, y, coefficient, GELU)
    _triton_epilogue.epilogue_backward(launch, y, y, coefficient, coefficient, coefficient, GELU)
