"""What tests of Triton kernels share: where they run, views of tensors, and tiles small enough for the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._triton_tiles import Tile

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# The interpreter multiplies bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]
CHIPS = ("sm_80", "sm_90", "sm_100", "gfx942")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return normally distributed numbers on the device of these tests."""
    return torch.randn(shape, device=DEVICE).to(dtype)


# Name -> a tensor (B, S, C) of a given shape that is not contiguous.
VIEWS = {
    "transposed": lambda *shape: random(shape[0], shape[2], shape[1]).transpose(1, 2),
    "cropped": lambda *shape: random(shape[0], shape[1] + 2, shape[2] + 5)[:, 1:-1, 3:-2],
    "every_second": lambda *shape: random(shape[0], shape[1] * 2, shape[2] * 2)[:, ::2, ::2],
    "one_image": lambda *shape: random(1, *shape[1:]).expand(shape),
    "one_token": lambda *shape: random(shape[0], 1, shape[2]).expand(shape),
    "one_number": lambda *shape: random(1, 1, 1).expand(shape),
}


def use_small_tiles(monkeypatch: pytest.MonkeyPatch, tiles: Any) -> None:
    """Make the tiles of a room so small that tiny shapes need several."""
    small = Tile(16, 64, 32, 16, num_warps=4, num_stages=2)
    monkeypatch.setattr(tiles, "TILES", dict.fromkeys(tiles.TILES, dict.fromkeys(CHIPS, small)))
    monkeypatch.setattr(_triton_linear, "SUM_ROWS", 4)


def unused_tiles(monkeypatch: pytest.MonkeyPatch, tiles: Any, implementation: Any) -> list[tuple[str, str]]:
    """Return the entries of a room's table that none of its compile cases uses."""
    used = set()

    class Recorded(dict):
        def __getitem__(self, key: str) -> Tile:
            used.add(id(self))
            return super().__getitem__(key)

    tables = {key: Recorded(table) for key, table in tiles.TILES.items()}
    monkeypatch.setattr(tiles, "TILES", tables)
    names = [name for name, *_ in implementation.compile_cases()]
    assert len(set(names)) == len(names)
    return [key for key, table in tables.items() if id(table) not in used]
