"""What one program holds at a time, by kernel and by what lies side by side in memory.

Chosen by what compiles without spills; they run on an H200, where `benchmarks.search_tiles` is still to be asked for
better ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """The shape of a tile, a part of one row."""

    # Pixels and channels of the tile.
    columns: int
    channels: int
    num_warps: int
    # Rows that a program convolves at a time.
    rows: int = 1


# (kernel, what lies side by side, bytes of an element) -> width of the map or number of channels -> tile. The widest
# stands for everything wider.
TILES: dict[tuple[str, str, int], dict[int, Tile]] = {
    ("conv", "pixels", 2): {
        8: Tile(columns=8, channels=16, num_warps=4, rows=8),
        16: Tile(columns=16, channels=8, num_warps=4, rows=8),
        32: Tile(columns=32, channels=4, num_warps=4, rows=8),
    },
    ("conv", "pixels", 4): {
        8: Tile(columns=8, channels=16, num_warps=4, rows=8),
        16: Tile(columns=16, channels=8, num_warps=4, rows=8),
        32: Tile(columns=32, channels=4, num_warps=4, rows=8),
    },
    ("conv", "channels", 2): {
        32: Tile(columns=8, channels=32, num_warps=4, rows=8),
        64: Tile(columns=16, channels=64, num_warps=4, rows=4),
    },
    ("conv", "channels", 4): {
        32: Tile(columns=8, channels=32, num_warps=4, rows=8),
        64: Tile(columns=8, channels=64, num_warps=4, rows=8),
    },
    ("weight_gradient", "pixels", 2): {
        8: Tile(columns=8, channels=16, num_warps=4),
        16: Tile(columns=16, channels=8, num_warps=4),
        32: Tile(columns=32, channels=4, num_warps=4),
    },
    ("weight_gradient", "pixels", 4): {
        8: Tile(columns=8, channels=16, num_warps=4),
        16: Tile(columns=16, channels=8, num_warps=4),
        32: Tile(columns=32, channels=4, num_warps=4),
    },
    ("weight_gradient", "channels", 2): {
        32: Tile(columns=8, channels=32, num_warps=4),
        64: Tile(columns=8, channels=64, num_warps=4),
    },
    ("weight_gradient", "channels", 4): {
        32: Tile(columns=8, channels=32, num_warps=4),
        64: Tile(columns=4, channels=64, num_warps=4),
    },
    ("epilogue", "pixels", 2): {
        64: Tile(columns=64, channels=16, num_warps=4),
        256: Tile(columns=256, channels=4, num_warps=4),
        1024: Tile(columns=1024, channels=1, num_warps=4),
    },
    ("epilogue", "pixels", 4): {
        64: Tile(columns=64, channels=16, num_warps=4),
        256: Tile(columns=256, channels=4, num_warps=4),
        1024: Tile(columns=1024, channels=1, num_warps=4),
    },
    ("epilogue", "channels", 2): {
        32: Tile(columns=16, channels=32, num_warps=4),
        64: Tile(columns=16, channels=64, num_warps=4),
    },
    ("epilogue", "channels", 4): {
        32: Tile(columns=16, channels=32, num_warps=4),
        64: Tile(columns=16, channels=64, num_warps=4),
    },
}

# Taps of a weight gradient that a program takes: the first of those with the fewest programs.
TAPS = (3, 5, 7, 9)

# Taps of a convolution in a row that take the sliding window from register to register without a move.
UNROLL = 3

# Programs of a weight gradient and of sums: 8 for each processor of an H200. A constant, so that every GPU gives the
# same bits.
SPLIT_PROGRAMS = 1056


def tile(kernel: str, x: torch.Tensor, width: int) -> Tile:
    """Return the tile of a kernel that reads the map x and tiles one of this width."""
    together = side_by_side(x)
    extent = width
    if together == "channels":
        # Channels that vectors do not divide take the narrowest tile.
        extent = x.size(1) if x.size(1) % 8 == 0 else 1
    tiles = TILES[kernel, together, x.element_size()]
    return tiles[next((size for size in tiles if extent <= size), max(tiles))]


def side_by_side(x: torch.Tensor) -> str:
    """Return what lanes follow in a map: "channels" or "pixels"."""
    return "channels" if x.size(1) > 1 and x.stride(1) == 1 else "pixels"


def taps(kernel_h: int) -> int:
    """Return how many taps of a column of the kernel one program takes."""
    return min(TAPS, key=lambda taps: -(-kernel_h // taps))
