"""What the Triton kernels are launched with: workspaces, grids and arguments.

Every function takes ``launch``, which runs a kernel or, for compilation without a GPU, notes what would have run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._triton_launch import Launch, Sums, cdiv, split
from mixer_kernels.ops.depthwise_conv2d import _fake
from mixer_kernels.ops.depthwise_conv2d import _triton_kernels as kernels
from mixer_kernels.ops.depthwise_conv2d import _triton_tiles as tiles
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry, Optional


def forward(
    launch: Launch,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    scale: Optional,
    shift: Optional,
    residual: Optional,
    geometry: Geometry,
    activation: int,
) -> torch.Tensor:
    """Return ``residual + scale * act(conv(x) + bias) + shift``."""
    y = _convolved(x, weight, geometry)
    parameters = {"bias_ptr": bias, "scale_ptr": scale, "shift_ptr": shift}
    _convolve(launch, x, weight, y, geometry, activation, residual, None, parameters)
    return y


def statistics(
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bias: Optional, geometry: Geometry, activation: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``z = conv(x) + bias``, and the mean and biased variance of ``act(z)``."""
    z = _convolved(x, weight, geometry)
    mean, var = _fake.sums(x), _fake.sums(x)
    tile = tiles.tile("conv", x, z.size(3))
    parts = z.size(0) * cdiv(z.size(2), tile.rows) * cdiv(z.size(3), tile.columns)
    # Of each part and channel: a count, a mean and squared deviations.
    partial = x.new_empty((parts, 3, x.size(1)), dtype=torch.float32)
    parameters = {"bias_ptr": bias, "scale_ptr": None, "shift_ptr": None}
    _convolve(launch, x, weight, z, geometry, activation, None, partial, parameters)
    arguments = {
        "partial_ptr": partial,
        "mean_ptr": mean,
        "var_ptr": var,
        "parts": parts,
        "channels": x.size(1),
        # Those of an empty batch are zero.
        "count": float(max(1, z.size(0) * z.size(2) * z.size(3))),
        "ROWS": _triton_linear.SUM_ROWS,
        "COLUMNS": _triton_linear.SUM_COLUMNS,
        "num_warps": 4,
    }
    launch(kernels.statistics_kernel, cdiv(x.size(1), _triton_linear.SUM_COLUMNS), arguments)
    return z, mean, var


def backward_input(
    launch: Launch,
    dz: torch.Tensor,
    weight: torch.Tensor,
    residual: Optional,
    height: int,
    width: int,
    geometry: Geometry,
) -> torch.Tensor:
    """Return the gradient of ``conv(x)`` with respect to x, plus ``residual``."""
    dx = _fake.like(dz, (*dz.shape[:2], height, width))
    absent = dict.fromkeys(("bias_ptr", "scale_ptr", "shift_ptr"))
    _convolve(launch, dz, weight, dx, geometry, 0, residual, None, absent, adjoint=True)
    return dx


def backward_weight(
    launch: Launch, dz: torch.Tensor, x: torch.Tensor, kernel_size: Sequence[int], geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of weight and bias."""
    dweight, dbias = _fake.backward_weight(dz, x, kernel_size, *geometry)
    batch, channels, out_height, out_width = dz.shape
    tile = tiles.tile("weight_gradient", x, out_width)
    taps = tiles.taps(kernel_size[0])
    chunks = batch * cdiv(out_width, tile.columns)
    programs = kernel_size[1] * cdiv(kernel_size[0], taps) * cdiv(channels, tile.channels)
    chunks_of_split, splits = split(chunks, programs, tiles.SPLIT_PROGRAMS)
    partial_weight = x.new_empty((splits, *dweight.shape), dtype=torch.float32)
    partial_bias = x.new_empty((splits, channels), dtype=torch.float32)
    arguments = {
        "dz_ptr": dz,
        "x_ptr": x,
        "partial_weight_ptr": partial_weight,
        "partial_bias_ptr": partial_bias,
        "channels": channels,
        "height": x.size(2),
        "width": x.size(3),
        "out_height": out_height,
        "out_width": out_width,
        **_pair("kernel", kernel_size),
        "chunks": chunks,
        "chunks_of_split": chunks_of_split,
        **_pair("step", geometry.stride),
        **_pair("dilation", geometry.dilation),
        **_pair("pad", geometry.padding[::2]),
        **strides("dz", dz),
        **strides("x", x),
        "SLIDE": geometry.stride[0] == geometry.dilation[0],
        "TAPS": taps,
        **tile_arguments(tile),
    }
    launch(kernels.depthwise_conv2d_bwd_weight_kernel, programs * splits, arguments)
    sums = Sums(x)
    sums.into(dweight, partial_weight)
    sums.into(dbias, partial_bias)
    sums.run(launch)
    return dweight, dbias


def _convolve(
    launch: Launch,
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    activation: int,
    residual: Optional,
    partial: Optional,
    parameters: dict[str, Optional],
    adjoint: bool = False,
) -> None:
    """Write a convolution to y; the adjoint of one is another, of a map with zeros between its pixels."""
    kernel_size, before = weight.shape[2:], geometry.padding[::2]
    step: Sequence[int] = geometry.stride
    zoom: Sequence[int] = (1, 1)
    # A program takes channels side by side, and so their weights.
    taps = weight.flatten(1).t()
    if tiles.side_by_side(x) == "channels":
        taps = taps.contiguous()
    first, stride_t = 0, taps.stride(0)
    if adjoint:
        reach = [dilation * (size - 1) for dilation, size in zip(geometry.dilation, kernel_size, strict=True)]
        before = [far - near for far, near in zip(reach, before, strict=True)]
        step, zoom = (1, 1), geometry.stride
        # Turned around: from the last tap back to the first.
        first, stride_t = len(taps) - 1, -stride_t
    tile = tiles.tile("conv", x, y.size(3))
    slide = step[0] == geometry.dilation[0]
    arguments = {
        "x_ptr": x,
        "weight_ptr": taps[first:],
        **parameters,
        "residual_ptr": residual,
        "y_ptr": y,
        "partial_ptr": partial,
        "channels": x.size(1),
        "height": x.size(2),
        "width": x.size(3),
        "out_height": y.size(2),
        "out_width": y.size(3),
        **_pair("kernel", kernel_size),
        **_pair("step", step),
        **_pair("zoom", zoom),
        **_pair("dilation", geometry.dilation),
        **_pair("pad", before),
        **strides("x", x),
        "stride_weight_c": taps.stride(1),
        "stride_weight_t": stride_t,
        **strides("residual", residual),
        **strides("y", y),
        "ACTIVATION": activation,
        "SLIDE": slide,
        "UNROLL": tiles.UNROLL if slide else 1,
        "ROWS": tile.rows,
        **tile_arguments(tile),
    }
    programs = cdiv(y.size(2), tile.rows) * cdiv(y.size(3), tile.columns) * cdiv(y.size(1), tile.channels) * y.size(0)
    launch(kernels.depthwise_conv2d_kernel, programs, arguments)


def _convolved(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    return _fake.like(x, (*x.shape[:2], *geometry.output_size(x, weight)))


def _pair(name: str, pair: Sequence[int]) -> dict[str, int]:
    return {f"{name}_h": pair[0], f"{name}_w": pair[1]}


def strides(name: str, x: Optional) -> dict[str, int]:
    """Return the strides of a map; those of dimensions without a second element are zero, as good as any."""
    dims = [(1, 0)] * 4 if x is None else zip(x.shape, x.stride(), strict=True)
    return {f"stride_{name}_{dim}": stride * (size > 1) for dim, (size, stride) in zip("bchw", dims, strict=True)}


def tile_arguments(tile: tiles.Tile) -> dict[str, int]:
    """Return the constants of a launch with this tile."""
    return {"COLUMNS": tile.columns, "CHANNELS": tile.channels, "num_warps": tile.num_warps}
