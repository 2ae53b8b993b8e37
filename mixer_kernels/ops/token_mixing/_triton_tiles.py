"""What one program holds at a time, by kernel, arithmetic and chip.

Chosen by what compiles without spills, and on sm_90 with wgmma instructions that overlap; they run on an H200, where
`benchmarks.search_tiles` is still to be asked for better ones.
"""

from __future__ import annotations

from typing import Any

import torch

from mixer_kernels.ops._triton_tiles import SHARED_TILES, Tile, aligned, chip, with_strips

# By kernel and arithmetic, as ops/_triton_tiles.py has them.
TILES = SHARED_TILES | {
    ("hidden_bwd", "half"): {
        "sm_80": Tile(64, 64, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 128, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(64, 128, 128, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 64, 64, 32, num_warps=4, num_stages=2),
    },
    # A second accumulator takes registers.
    ("hidden_bwd", "odd half"): SHARED_TILES["any", "odd half"]
    | {
        "sm_90": Tile(64, 64, 64, 32, num_warps=8, num_stages=2),
        "sm_100": Tile(64, 64, 64, 32, num_warps=8, num_stages=3),
    },
    ("hidden_bwd", "ieee"): SHARED_TILES["any", "ieee"] | {"sm_80": Tile(64, 32, 32, 16, num_warps=8, num_stages=1)},
    ("token_linear", "half"): {
        "sm_80": Tile(64, 128, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 128, 64, 32, num_warps=4, num_stages=2),
    },
}

# Rows and channels of one program of the kernels that only pass over memory, and elements of a weight to pad.
PREPARE = {"BLOCK_ROWS": 2, "BLOCK_C": 1024, "BLOCK_PAD": 2048, "num_warps": 4}
LAYER_NORM_BWD = {"BLOCK_ROWS": 32, "BLOCK_C": 64, "num_warps": 8}

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
    return None if tile is None else with_strips(tile, x, x.size(1))


def fused_tile(x: torch.Tensor) -> Tile | None:
    """Return the tile of the whole MLP in one kernel for such an input, if there is one."""
    if x.element_size() > 2 or not aligned(x):
        return None
    return next((tile for most, tile in FUSED.get(chip(), ()) if x.size(1) <= most), None)
