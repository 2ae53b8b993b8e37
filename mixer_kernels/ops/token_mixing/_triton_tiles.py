"""What one program holds at a time, by kernel, arithmetic and chip.

Chosen by what compiles without spills, and on sm_90 with wgmma instructions that overlap; no GPU has measured them yet.
"""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops import _triton, _triton_linear
from mixer_kernels.ops._triton_linear import Tile, input_precision

# Arithmetic: "half" is float16 and bfloat16, "odd half" the same with rows that do not start on 16 bytes; "tf32" and
# "ieee" are the two ways of float32, the second without matrix instructions on NVIDIA. Chip: one for each generation.
TILES = {
    ("normalized_linear", "half"): {
        "sm_80": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 128, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(128, 128, 128, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 64, 64, 32, num_warps=4, num_stages=2),
    },
    ("hidden_bwd", "half"): {
        "sm_80": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 128, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(64, 128, 128, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 64, 64, 32, num_warps=4, num_stages=2),
    },
    ("token_linear", "half"): {
        "sm_80": Tile(64, 128, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 128, 64, 32, num_warps=4, num_stages=2),
    },
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

# Rows and channels of one program of the kernels that only pass over memory, and elements of a weight to pad.
PREPARE = {"BLOCK_ROWS": 4, "BLOCK_C": 1024, "BLOCK_PAD": 2048, "num_warps": 4}
LAYER_NORM_BWD = {"BLOCK_ROWS": 32, "BLOCK_C": 64, "num_warps": 8}

# Programs of a weight gradient: one for each processor of an H200. A constant, so that every GPU gives the same bits.
SPLIT_PROGRAMS = 132

# The whole MLP in one kernel, with all tokens of WIDE channels in registers: (most tokens, tile), fewest first. Where
# no entry holds the tokens, and on chips without one, the two products are two kernels. Not on Blackwell: two products
# in a row into one accumulator are wrong there up to Triton 3.8 (triton-lang/triton issue 10821).
FUSED = {
    "sm_80": ((64, Tile(64, 64, 64, 32, num_warps=4, num_stages=3)),),
    "sm_90": (
        (64, Tile(128, 64, 64, 64, num_warps=8, num_stages=3)),
        (208, Tile(128, 256, 128, 32, num_warps=8, num_stages=2)),
    ),
}


def fused(x: torch.Tensor) -> dict[str, Any] | None:
    """Return the constants of a launch of the whole MLP in one kernel, or None if it takes two."""
    tile = fused_tile(x)
    return None if tile is None else _with_strips(tile, x, x.size(1))


def fused_tile(x: torch.Tensor) -> Tile | None:
    """Return the tile of the whole MLP in one kernel for such an input, if there is one."""
    if x.element_size() > 2 or x.size(2) % 8:
        return None
    return next((tile for most, tile in FUSED.get(_chip(), ()) if x.size(1) <= most), None)


def block(kernel: str, x: torch.Tensor) -> dict[str, Any]:
    """Return the constants of a launch of ``kernel``, which computes blocks of rows and channels."""
    return _constants(_tile(kernel, x), x)


def strips(kernel: str, x: torch.Tensor, rows: int) -> dict[str, Any]:
    """Return the constants of a launch of ``kernel``, which computes strips of ``rows`` rows in all."""
    return _with_strips(_tile(kernel, x), x, rows)


def _tile(kernel: str, x: torch.Tensor) -> Tile:
    half = "half" if x.size(2) % 8 == 0 else "odd half"
    arithmetic = half if x.element_size() == 2 else input_precision(x)
    tiles = TILES.get((kernel, arithmetic)) or TILES["any", arithmetic]
    return tiles[_chip()]


def _with_strips(tile: Tile, x: torch.Tensor, rows: int) -> dict[str, Any]:
    widths = _triton_linear.strips(rows, tile)
    return _constants(tile, x) | {"STRIPS": widths, "ROWS": sum(widths)}


def _constants(tile: Tile, x: torch.Tensor) -> dict[str, Any]:
    return {
        "PRECISION": input_precision(x),
        "ROWS": tile.narrow,
        "WIDE": tile.wide,
        "DEPTH": tile.depth,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _chip() -> str:
    target = _triton.target()
    if not target.startswith("sm_"):
        return "gfx942"
    capability = int(target.removeprefix("sm_"))
    # The Blackwell of workstations, sm_120, has the matrix instructions of sm_80 and about its shared memory.
    return "sm_80" if capability < 90 or capability >= 120 else "sm_90" if capability < 100 else "sm_100"
