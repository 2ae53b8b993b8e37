"""What one program holds at a time, by kernel, bytes of an element and channels of a vector.

Chosen by what compiles without spills; they run on an H200, where `benchmarks.search_tiles` is still to be asked for
better ones.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Pixels of an image and vectors of channels."""

    pixels: int
    vectors: int
    num_warps: int


# A thread has the same vector of several pixels; whole vectors follow one another for 128 bytes.
TILES = {
    ("sums", 2, 8): Tile(pixels=32, vectors=8, num_warps=2),
    ("sums", 4, 4): Tile(pixels=32, vectors=8, num_warps=2),
    ("sums", 2, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("sums", 4, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("fwd", 2, 8): Tile(pixels=32, vectors=8, num_warps=2),
    ("fwd", 4, 4): Tile(pixels=32, vectors=8, num_warps=2),
    ("fwd", 2, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("fwd", 4, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("bwd_weights", 2, 8): Tile(pixels=32, vectors=8, num_warps=4),
    ("bwd_weights", 4, 4): Tile(pixels=32, vectors=8, num_warps=2),
    ("bwd_weights", 2, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("bwd_weights", 4, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("bwd_features", 2, 8): Tile(pixels=32, vectors=8, num_warps=2),
    ("bwd_features", 4, 4): Tile(pixels=32, vectors=8, num_warps=2),
    ("bwd_features", 2, 1): Tile(pixels=16, vectors=64, num_warps=4),
    ("bwd_features", 4, 1): Tile(pixels=16, vectors=64, num_warps=4),
}

# Programs of sums over pixels: 8 for each processor of an H200. A constant, so that every GPU gives the same bits.
SPLIT_PROGRAMS = 1056
