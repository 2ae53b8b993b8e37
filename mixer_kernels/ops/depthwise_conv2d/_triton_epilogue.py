"""What the kernels of the epilogue are launched with, as in ``_triton_launch.py``."""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops._triton_launch import Launch, Sums, cdiv, split
from mixer_kernels.ops.depthwise_conv2d import _fake
from mixer_kernels.ops.depthwise_conv2d import _triton_epilogue_kernels as kernels
from mixer_kernels.ops.depthwise_conv2d import _triton_tiles as tiles
from mixer_kernels.ops.depthwise_conv2d._arguments import Optional
from mixer_kernels.ops.depthwise_conv2d._triton_launch import strides, tile_arguments


def epilogue_forward(
    launch: Launch, z: torch.Tensor, scale: Optional, shift: Optional, residual: Optional, activation: int
) -> torch.Tensor:
    """Return ``residual + scale * act(z) + shift``."""
    y = _fake.like(z, z.shape)
    arguments = {"scale_ptr": scale, "shift_ptr": shift}
    maps = {"residual": residual, "y": y}
    _compute_map(launch, kernels.depthwise_epilogue_fwd_kernel, z, maps, activation, arguments)
    return y


def epilogue_backward(
    launch: Launch, dy: torch.Tensor, z: torch.Tensor, c0: Optional, c1: Optional, c2: Optional, activation: int
) -> torch.Tensor:
    """Return ``(c0 * dy + c1 * act(z) + c2) * act'(z)``."""
    dz = _fake.like(z, z.shape)
    arguments = {"c0_ptr": c0, "c1_ptr": c1, "c2_ptr": c2}
    _compute_map(launch, kernels.depthwise_epilogue_bwd_kernel, z, {"dy": dy, "dz": dz}, activation, arguments)
    return dz


def epilogue_sums(
    launch: Launch, dy: torch.Tensor, z: torch.Tensor, center: Optional, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of ``dy`` and of ``dy * (act(z) - center)`` over everything but the channels."""
    z, maps = _flattened(z, {"dy": dy})
    batch, channels, rows, pixels = z.shape
    tile = tiles.tile("epilogue", z, pixels)
    programs, chunks = cdiv(channels, tile.channels), batch * rows * cdiv(pixels, tile.columns)
    chunks_of_split, splits = split(chunks, programs, tiles.SPLIT_PROGRAMS)
    partial_dy, partial_product = (z.new_empty((splits, channels), dtype=torch.float32) for _ in range(2))
    arguments = {
        "center_ptr": center,
        "partial_dy_ptr": partial_dy,
        "partial_product_ptr": partial_product,
        "chunks": chunks,
        "chunks_of_split": chunks_of_split,
        **_map_arguments(z, maps, activation, tile),
    }
    launch(kernels.depthwise_epilogue_sums_kernel, programs * splits, arguments)
    sums = Sums(z)
    totals = sums.into(_fake.sums(z), partial_dy), sums.into(_fake.sums(z), partial_product)
    sums.run(launch)
    return totals


def _compute_map(
    launch: Launch,
    kernel: Any,
    z: torch.Tensor,
    maps: dict[str, Optional],
    activation: int,
    arguments: dict[str, Optional],
) -> None:
    """Launch a kernel that computes a map from z, tile by tile."""
    z, maps = _flattened(z, maps)
    batch, channels, rows, pixels = z.shape
    tile = tiles.tile("epilogue", z, pixels)
    programs = batch * rows * cdiv(pixels, tile.columns) * cdiv(channels, tile.channels)
    launch(kernel, programs, {**arguments, **_map_arguments(z, maps, activation, tile)})


def _map_arguments(z: torch.Tensor, maps: dict[str, Optional], activation: int, tile: tiles.Tile) -> dict[str, Any]:
    arguments: dict[str, Any] = {"channels": z.size(1), "rows": z.size(2), "pixels": z.size(3)}
    for name, x in {"z": z, **maps}.items():
        arguments |= {f"{name}_ptr": x, **strides(name, x)}
    return {**arguments, "ACTIVATION": activation, **tile_arguments(tile)}


def _flattened(z: torch.Tensor, maps: dict[str, Optional]) -> tuple[torch.Tensor, dict[str, Optional]]:
    """Return the maps as maps of one row, if the rows of all of them follow on one another."""
    present = [z, *(x for x in maps.values() if x is not None)]
    if any(x.size(2) > 1 and x.stride(2) != x.size(3) * x.stride(3) for x in present):
        return z, maps
    one_row = {name: None if x is None else _one_row(x) for name, x in maps.items()}
    return _one_row(z), one_row


def _one_row(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).unsqueeze(2)
