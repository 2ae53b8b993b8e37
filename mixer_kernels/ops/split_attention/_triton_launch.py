"""What the Triton kernels are launched with: workspaces, grids and arguments.

Every function takes ``launch``, which runs a kernel or, for compilation without a GPU, notes what would have run.
"""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops._triton_launch import Launch, Sums, cdiv, split
from mixer_kernels.ops._triton_vectors import vector_length, vector_strides
from mixer_kernels.ops.split_attention import _fake
from mixer_kernels.ops.split_attention import _triton_kernels as kernels
from mixer_kernels.ops.split_attention import _triton_tiles as tiles


def sums(launch: Launch, x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the pixels of all three branches."""
    return _sums(launch, "sums", kernels.split_attention_sums_kernel, _fake.sums(x), {"x": x})


def combine(launch: Launch, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of the branches, each times its weights."""
    y = _fake.combine(x, weights)
    geometry, programs = _geometry("fwd", y.shape, {"x": x})
    arguments = {"weights_ptr": weights.contiguous(), "y_ptr": y, **geometry}
    launch(kernels.split_attention_fwd_kernel, programs * geometry["chunks"], arguments)
    return y


def backward_weights(launch: Launch, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the pixels of ``dy`` times each branch."""
    total = _fake.backward_weights(dy, x)
    return _sums(launch, "bwd_weights", kernels.split_attention_bwd_weights_kernel, total, {"dy": dy, "x": x})


def backward_features(launch: Launch, dy: torch.Tensor, weights: torch.Tensor, da: torch.Tensor) -> torch.Tensor:
    """Return ``weights * dy + da`` for each branch, behind the adjoint of its shift."""
    dx = _fake.backward_features(dy, weights, da)
    geometry, programs = _geometry("bwd_features", dy.shape, {"dy": dy})
    arguments = {"weights_ptr": weights.contiguous(), "da_ptr": da.contiguous(), "dx_ptr": dx, **geometry}
    launch(kernels.split_attention_bwd_features_kernel, programs * geometry["chunks"], arguments)
    return dx


def _sums(launch: Launch, name: str, kernel: Any, total: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return ``total``, to which a kernel of sums adds up the pixels."""
    batch, height, width, _ = maps["x"].shape
    geometry, programs = _geometry(name, (batch, height, width, total.shape[-1]), maps)
    chunks_of_split, splits = split(geometry["chunks"], programs, tiles.SPLIT_PROGRAMS)
    partial = total.new_empty((splits, *total.shape))
    arguments = {
        **geometry,
        "partial_ptr": partial,
        "images": batch,
        "chunks_of_split": chunks_of_split,
        "splits": splits,
    }
    launch(kernel, programs * splits, arguments)
    if splits == 1:
        return partial[0]
    to_total = Sums(total)
    to_total.into(total, partial)
    to_total.run(launch)
    return total


def _geometry(name: str, shape: tuple[int, ...], maps: dict[str, torch.Tensor]) -> tuple[dict[str, Any], int]:
    """Return what all kernels take, for maps of ``shape``, (B, H, W, C), and the number of programs for each chunk."""
    batch, height, width, channels = shape
    x = next(iter(maps.values()))
    bounds = [group * channels // 4 for group in range(5)]
    vector = vector_length(list(maps.values()), bounds)
    tile = tiles.TILES[name, x.element_size(), vector]
    arguments: dict[str, Any] = {}
    for key, value in maps.items():
        arguments |= {f"{key}_ptr": value, **vector_strides(key, value, vector)}
    arguments |= {
        "height": height,
        "width": width,
        "pixels": height * width,
        "vectors": channels // vector,
        "chunks": cdiv(height * width, tile.pixels),
        "PIXELS": tile.pixels,
        "VECTORS": tile.vectors,
        "VECTOR": vector,
        "num_warps": tile.num_warps,
    }
    return arguments, batch * cdiv(channels // vector, tile.vectors)
