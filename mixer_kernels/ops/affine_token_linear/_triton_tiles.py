"""What one program holds at a time, by kernel, arithmetic and chip.

Chosen by what compiles without spills, and on sm_90 with wgmma instructions that overlap; they run on an H200, where
`benchmarks.search_tiles` is still to be asked for better ones.
"""

from __future__ import annotations

from mixer_kernels.ops._triton_tiles import SHARED_TILES, Tile

# By kernel and arithmetic, as ops/_triton_tiles.py has them.
TILES = SHARED_TILES | {
    ("fwd", "half"): {
        "sm_80": Tile(64, 128, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(128, 256, 64, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 128, 64, 32, num_warps=4, num_stages=2),
    },
    ("bwd_dx", "half"): {
        "sm_80": Tile(64, 128, 64, 32, num_warps=4, num_stages=3),
        "sm_90": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "sm_100": Tile(128, 256, 128, 64, num_warps=8, num_stages=3),
        "gfx942": Tile(64, 128, 64, 32, num_warps=4, num_stages=2),
    },
    # Two inputs beside the accumulator take registers.
    ("bwd_dx", "odd half"): SHARED_TILES["any", "odd half"]
    | {
        "sm_80": Tile(64, 64, 64, 32, num_warps=8, num_stages=2),
        "sm_100": Tile(64, 64, 64, 32, num_warps=8, num_stages=3),
    },
    ("bwd_dx", "odd tf32"): SHARED_TILES["any", "odd tf32"]
    | {"sm_90": Tile(64, 32, 32, 32, num_warps=4, num_stages=3)},
}

# Rows of a weight, their columns, and channels of the kernel that prepares both.
PREPARE = {"BLOCK_ROWS": 8, "BLOCK_S": 256, "BLOCK_C": 1024, "num_warps": 4}
