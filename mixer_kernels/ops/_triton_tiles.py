"""What one program holds at a time, by kernel, arithmetic and chip; a room adds its own kernels to SHARED_TILES.

Chosen by what compiles without spills, and on sm_90 with wgmma instructions that overlap; they run on an H200, where
`benchmarks.search_tiles` is still to be asked for better ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mixer_kernels.ops import _triton


class Tile(NamedTuple):
    """What one program holds of a product."""

    # On the 64-granular side: channels, or hidden units in a weight gradient.
    wide: int
    # The most rows on the side of the strips, and the widest strip.
    narrow: int
    strip: int
    # Steps of the reduction at a time.
    depth: int
    num_warps: int
    num_stages: int


# (kernel, arithmetic) -> chip -> tile.
Tiles = Mapping[tuple[str, str], Mapping[str, Tile]]

# Arithmetic: "half" is float16 and bfloat16; "tf32" and "ieee" are the two ways of float32, the second without matrix
# instructions on NVIDIA. Where channels are not :func:`aligned`, the first two are "odd": loads without vectors take
# more registers. Chip: one for each generation.
SHARED_TILES: dict[tuple[str, str], dict[str, Tile]] = {
    ("weight_gradient", "half"): {
        "sm_80": Tile(128, 128, 64, 32, num_warps=8, num_stages=3),
        "sm_90": Tile(128, 256, 64, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(128, 256, 128, 64, num_warps=8, num_stages=2),
        "gfx942": Tile(64, 128, 64, 32, num_warps=4, num_stages=2),
    },
    ("any", "odd half"): {
        "sm_80": Tile(64, 64, 64, 32, num_warps=4, num_stages=2),
        "sm_90": Tile(64, 64, 64, 32, num_warps=4, num_stages=2),
        "sm_100": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
        "gfx942": Tile(64, 64, 64, 32, num_warps=4, num_stages=2),
    },
    ("any", "tf32"): {
        "sm_80": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
        "sm_100": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
    },
    ("any", "odd tf32"): {
        "sm_80": Tile(64, 64, 64, 32, num_warps=8, num_stages=3),
        "sm_90": Tile(64, 64, 64, 32, num_warps=8, num_stages=3),
        "sm_100": Tile(64, 64, 64, 32, num_warps=8, num_stages=3),
    },
    ("weight_gradient", "ieee"): {
        "sm_80": Tile(32, 64, 64, 16, num_warps=8, num_stages=1),
        "sm_90": Tile(32, 64, 64, 16, num_warps=8, num_stages=1),
        "sm_100": Tile(32, 64, 64, 16, num_warps=8, num_stages=2),
        "gfx942": Tile(64, 64, 64, 16, num_warps=4, num_stages=2),
    },
    ("any", "ieee"): {
        "sm_80": Tile(64, 64, 64, 16, num_warps=8, num_stages=1),
        "sm_90": Tile(64, 64, 64, 16, num_warps=8, num_stages=1),
        "sm_100": Tile(64, 64, 64, 16, num_warps=8, num_stages=1),
        "gfx942": Tile(64, 64, 64, 16, num_warps=4, num_stages=2),
    },
}

# Programs of a weight gradient: one for each processor of an H200. A constant, so that every GPU gives the same bits.
SPLIT_PROGRAMS = 132


def block(tiles: Tiles, kernel: str, x: torch.Tensor, allow_tf32: bool = False) -> dict[str, Any]:
    """Return the constants of a launch of ``kernel``, which computes blocks of rows and channels."""
    return _constants(_tile(tiles, kernel, x, allow_tf32), x, allow_tf32)


def in_strips(tiles: Tiles, kernel: str, x: torch.Tensor, rows: int, allow_tf32: bool = False) -> dict[str, Any]:
    """Return the constants of a launch of ``kernel``, which computes strips of ``rows`` rows in all."""
    return with_strips(_tile(tiles, kernel, x, allow_tf32), x, rows, allow_tf32)


def with_strips(tile: Tile, x: torch.Tensor, rows: int, allow_tf32: bool = False) -> dict[str, Any]:
    """Return the constants of a launch with this tile, cut into strips."""
    widths = strips(rows, tile)
    return _constants(tile, x, allow_tf32) | {"STRIPS": widths, "ROWS": sum(widths)}


def strips(rows: int, tile: Tile) -> tuple[int, ...]:
    """Return widths of strips that cover ``rows`` rows, or as many of them as one of several programs takes."""
    programs = -(-rows // tile.narrow)
    left = -(-rows // programs)
    widths = []
    while left > 0:
        cover = max(16, 1 << (left - 1).bit_length())
        # A half and then more strips, if that saves more than one step of 16.
        width = cover if cover - left <= 16 else cover // 2
        widths.append(min(width, tile.strip))
        left -= widths[-1]
    return tuple(widths)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is no less than ``value``."""
    return -(-value // multiple) * multiple


def input_precision(x: torch.Tensor, allow_tf32: bool = False) -> str:
    """Return how a product of float32 numbers is computed: "tf32" where that, or PyTorch's own, may be, else "ieee"."""
    allowed = allow_tf32 or torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if x.dtype == torch.float32 and allowed and _triton.target().startswith("sm_") else "ieee"


def chip() -> str:
    """Return the chip in the tables that comes closest to the one that kernels are compiled for."""
    target = _triton.target()
    if not target.startswith("sm_"):
        return "gfx942"
    capability = int(target.removeprefix("sm_"))
    # The Blackwell of workstations, sm_120, has the matrix instructions of sm_80 and about its shared memory.
    return "sm_80" if capability < 90 or capability >= 120 else "sm_90" if capability < 100 else "sm_100"


def aligned(x: torch.Tensor) -> bool:
    """Return whether Triton loads the channels in whole vectors.

    Multiples of 4 or 8 can be whole vectors, too, but of an argument Triton knows only whether 16 divides it.
    """
    return x.size(2) % 16 == 0


def _tile(tiles: Tiles, kernel: str, x: torch.Tensor, allow_tf32: bool = False) -> Tile:
    arithmetic = "half" if x.element_size() == 2 else input_precision(x, allow_tf32)
    if arithmetic != "ieee" and not aligned(x):
        arithmetic = f"odd {arithmetic}"
    chips = tiles.get((kernel, arithmetic)) or tiles["any", arithmetic]
    return chips[chip()]


def _constants(tile: Tile, x: torch.Tensor, allow_tf32: bool = False) -> dict[str, Any]:
    return {
        "PRECISION": input_precision(x, allow_tf32),
        "ROWS": tile.narrow,
        "WIDE": tile.wide,
        "DEPTH": tile.depth,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
