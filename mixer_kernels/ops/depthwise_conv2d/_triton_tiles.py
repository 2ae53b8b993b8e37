"""What one program holds at a time, by kernel and by what lies side by side in memory.

Chosen by what compiles without spills; no GPU has measured them yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """The shape of a tile, a part of one row."""

    # Pixels and channels of the tile.
    columns: int
    channels: int
    # Tiles that a program holds at a time: rows of pixels, or taps of a weight gradient.
    count: int
    num_warps: int


# (kernel, what lies side by side, bytes of an element) -> width of the map or number of channels -> tile. The widest
# stands for everything wider.
TILES: dict[tuple[str, str, int], dict[int, Tile]] = {
    ("conv", "pixels", 2): {8: Tile(8, 16, 8, 4), 16: Tile(16, 8, 8, 4), 32: Tile(32, 4, 8, 4)},
    ("conv", "pixels", 4): {8: Tile(8, 16, 8, 4), 16: Tile(16, 8, 8, 4), 32: Tile(32, 4, 8, 4)},
    ("conv", "channels", 2): {16: Tile(32, 16, 4, 4), 64: Tile(16, 64, 4, 4)},
    ("conv", "channels", 4): {16: Tile(32, 16, 8, 4), 64: Tile(8, 64, 8, 4)},
    ("epilogue", "pixels", 2): {64: Tile(64, 16, 1, 4), 1024: Tile(1024, 1, 1, 4)},
    ("epilogue", "pixels", 4): {64: Tile(64, 16, 1, 4), 1024: Tile(1024, 1, 1, 4)},
    ("epilogue", "channels", 2): {16: Tile(64, 16, 1, 4), 64: Tile(16, 64, 1, 4)},
    ("epilogue", "channels", 4): {16: Tile(64, 16, 1, 4), 64: Tile(16, 64, 1, 4)},
    ("weight_gradient", "pixels", 2): {8: Tile(8, 16, 0, 4), 16: Tile(16, 8, 0, 4), 32: Tile(32, 4, 0, 4)},
    ("weight_gradient", "pixels", 4): {8: Tile(8, 16, 0, 4), 16: Tile(16, 8, 0, 4), 32: Tile(32, 4, 0, 4)},
    ("weight_gradient", "channels", 2): {16: Tile(32, 16, 0, 4), 64: Tile(8, 64, 0, 4)},
    ("weight_gradient", "channels", 4): {16: Tile(32, 16, 0, 4), 64: Tile(8, 64, 0, 4)},
}

# Taps of a weight gradient that a program takes: the first of those with the fewest programs.
TAPS = (3, 5, 7, 9)

# Programs of a weight gradient and of sums: 8 for each processor of an H200. A constant, so that every GPU gives the
# same bits.
SPLIT_PROGRAMS = 1056


def tile(kernel: str, x: torch.Tensor, width: int) -> Tile:
    """Return the tile of a kernel that reads the map x and tiles one of this width."""
    together = side_by_side(x)
    extent = x.size(1) if together == "channels" else width
    tiles = TILES[kernel, together, x.element_size()]
    return tiles[next((size for size in tiles if extent <= size), max(tiles))]


def side_by_side(x: torch.Tensor) -> str:
    """Return what lanes follow in a map: "channels" or "pixels"."""
    return "channels" if x.size(1) > 1 and x.stride(1) == 1 else "pixels"


def taps(kernel_h: int) -> int:
    """Return how many taps of a column of the kernel one program takes."""
    return min(TAPS, key=lambda taps: -(-kernel_h // taps))
