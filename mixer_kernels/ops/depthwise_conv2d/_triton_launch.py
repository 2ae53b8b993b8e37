"""What the Triton kernels are launched with: workspaces, grids and arguments.

Every function takes ``launch``, which runs a kernel or, for compilation without a GPU, notes what would have run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._triton_launch import Launch, Sums, cdiv
from mixer_kernels.ops.depthwise_conv2d import _fake
from mixer_kernels.ops.depthwise_conv2d import _triton_epilogue as epilogue
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
    parts = z.size(0) * cdiv(z.size(2), tile.count) * cdiv(z.size(3), tile.columns)
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
    chunks_of_split, splits = _split(chunks, programs)
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
        **_strides("dz", dz),
        **_strides("x", x),
        "SLIDE": geometry.stride[0] == geometry.dilation[0],
        "TAPS": taps,
        **_tile_arguments(tile),
    }
    launch(kernels.depthwise_conv2d_bwd_weight_kernel, programs * splits, arguments)
    sums = Sums(x)
    sums.into(dweight, partial_weight)
    sums.into(dbias, partial_bias)
    sums.run(launch)
    return dweight, dbias


def epilogue_forward(
    launch: Launch, z: torch.Tensor, scale: Optional, shift: Optional, residual: Optional, activation: int
) -> torch.Tensor:
    """Return ``residual + scale * act(z) + shift``."""
    y = _fake.like(z, z.shape)
    arguments = {"scale_ptr": scale, "shift_ptr": shift}
    _epilogue(
        launch, epilogue.depthwise_epilogue_fwd_kernel, {"z": z, "residual": residual, "y": y}, activation, arguments
    )
    return y


def epilogue_backward(
    launch: Launch, dy: torch.Tensor, z: torch.Tensor, c0: Optional, c1: Optional, c2: Optional, activation: int
) -> torch.Tensor:
    """Return ``(c0 * dy + c1 * act(z) + c2) * act'(z)``."""
    dz = _fake.like(z, z.shape)
    arguments = {"c0_ptr": c0, "c1_ptr": c1, "c2_ptr": c2}
    _epilogue(launch, epilogue.depthwise_epilogue_bwd_kernel, {"dy": dy, "z": z, "dz": dz}, activation, arguments)
    return dz


def epilogue_sums(
    launch: Launch, dy: torch.Tensor, z: torch.Tensor, center: Optional, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of ``dy`` and of ``dy * (act(z) - center)`` over everything but the channels."""
    sum_dy, sum_product = _fake.sums(z), _fake.sums(z)
    maps = _flattened({"dy": dy, "z": z})
    batch, channels, height, width = maps["z"].shape
    tile = tiles.tile("epilogue", z, width)
    programs = cdiv(channels, tile.channels)
    chunks_of_split, splits = _split(batch * height, programs)
    partial_dy, partial_product = (x.new_empty((splits, channels), dtype=torch.float32) for x in (z, z))
    arguments = {
        "center_ptr": center,
        "partial_dy_ptr": partial_dy,
        "partial_product_ptr": partial_product,
        "chunks": batch * height,
        "chunks_of_split": chunks_of_split,
        **_map_arguments(maps, activation, tile),
    }
    launch(epilogue.depthwise_epilogue_sums_kernel, programs * splits, arguments)
    sums = Sums(z)
    sums.into(sum_dy, partial_dy)
    sums.into(sum_product, partial_product)
    sums.run(launch)
    return sum_dy, sum_product


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
    step, zoom = geometry.stride, (1, 1)
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
        **_strides("x", x),
        "stride_weight_c": taps.stride(1),
        "stride_weight_t": stride_t,
        **_strides("residual", residual),
        **_strides("y", y),
        "ACTIVATION": activation,
        "SLIDE": step[0] == geometry.dilation[0],
        "ROWS": tile.count,
        **_tile_arguments(tile),
    }
    programs = cdiv(y.size(2), tile.count) * cdiv(y.size(3), tile.columns) * cdiv(y.size(1), tile.channels) * y.size(0)
    launch(kernels.depthwise_conv2d_kernel, programs, arguments)


def _epilogue(
    launch: Launch, kernel: Any, maps: dict[str, Optional], activation: int, arguments: dict[str, Optional]
) -> None:
    """Launch a kernel that computes a map from maps, tile by tile."""
    maps = _flattened(maps)
    batch, channels, height, width = maps["z"].shape
    tile = tiles.tile("epilogue", maps["z"], width)
    programs = batch * height * cdiv(width, tile.columns) * cdiv(channels, tile.channels)
    launch(kernel, programs, {**arguments, **_map_arguments(maps, activation, tile)})


def _map_arguments(maps: dict[str, Optional], activation: int, tile: tiles.Tile) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, x in maps.items():
        arguments |= {f"{name}_ptr": x, **_strides(name, x)}
    _, channels, height, width = maps["z"].shape
    sizes = {"channels": channels, "height": height, "width": width}
    return {**arguments, **sizes, "ACTIVATION": activation, **_tile_arguments(tile)}


def _flattened(maps: dict[str, Optional]) -> dict[str, Optional]:
    """Return the maps as maps of one row, if the rows of all of them follow on one another."""
    present = [x for x in maps.values() if x is not None]
    if all(x.size(2) == 1 or x.stride(2) == x.size(3) * x.stride(3) for x in present):
        return {name: x if x is None else x.flatten(2).unsqueeze(2) for name, x in maps.items()}
    return maps


def _convolved(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    return _fake.like(x, (*x.shape[:2], *geometry.output_size(x, weight)))


def _split(chunks: int, programs: int) -> tuple[int, int]:
    """Return how many chunks each of several programs takes that share the work of one, and how many those are."""
    chunks_of_split = max(1, cdiv(chunks, max(1, tiles.SPLIT_PROGRAMS // programs)))
    return chunks_of_split, max(1, cdiv(chunks, chunks_of_split))


def _pair(name: str, pair: Sequence[int]) -> dict[str, int]:
    return {f"{name}_h": pair[0], f"{name}_w": pair[1]}


def _strides(name: str, x: Optional) -> dict[str, int]:
    """Return the strides of a map; those of dimensions without a second element are zero, as good as any."""
    strides = (0, 0, 0, 0) if x is None else x.stride()
    sizes = (1, 1, 1, 1) if x is None else x.shape
    steps = (0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))
    return {f"stride_{name}_{dim}": step for dim, step in zip("bchw", steps, strict=True)}


def _tile_arguments(tile: tiles.Tile) -> dict[str, int]:
    return {"COLUMNS": tile.columns, "CHANNELS": tile.channels, "num_warps": tile.num_warps}
