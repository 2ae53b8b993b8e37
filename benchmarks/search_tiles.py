"""Times candidate tiles of the Triton kernels on the GPU that is there: `python -m benchmarks.search_tiles`.

Prints, for each entry of an op's TILES table, the candidates from fastest to slowest; the table is then edited by hand.
"""

from __future__ import annotations

import itertools
import sys

import torch

from mixer_kernels.ops.spatial_shift import triton_impl as spatial_shift

# The published shape, and one of the same size whose groups start at odd addresses.
SHAPES = {True: (64, 32, 32, 384), False: (64, 32, 32, 382)}
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def search_spatial_shift() -> None:
    """Time every candidate for every entry of the spatial shift's table."""
    from triton.testing import do_bench

    for (size, vector), current in list(spatial_shift.TILES.items()):
        x = torch.randn(SHAPES[vector > 1], device="cuda").to(DTYPES[size])
        moved = 2 * x.numel() * size
        timed = []
        for block_t, block_v, num_warps in itertools.product((4, 8, 16), (64, 128, 256), (2, 4, 8)):
            spatial_shift.TILES[size, vector] = spatial_shift.Tile(block_t, block_v, num_warps)
            out = do_bench(lambda x=x: spatial_shift.forward(x, (0, 1, 2, 3)), return_mode="median")
            in_place = do_bench(lambda x=x: spatial_shift.forward_(x, (0, 1, 2, 3)), return_mode="median")
            timed.append((out + in_place, out, in_place, spatial_shift.TILES[size, vector]))
        spatial_shift.TILES[size, vector] = current
        print(f"spatial_shift, {size}-byte elements, vectors of {vector}, now {current}")
        for _, out, in_place, tile in sorted(timed)[:5]:
            print(f"  {moved / out / 1e6:6.0f} GB/s out of place, {moved / in_place / 1e6:6.0f} in place  {tile}")


def main() -> int:
    """Run the search; the exit status."""
    if not torch.cuda.is_available():
        print("search_tiles: PyTorch sees no GPU", file=sys.stderr)
        return 2
    search_spatial_shift()
    return 0


if __name__ == "__main__":
    sys.exit(main())
