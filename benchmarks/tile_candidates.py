"""What `search_tiles` tries: candidates for the tables of the Triton kernels, and launches that take them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from mixer_kernels.ops._triton_launch import Launch
from mixer_kernels.ops._triton_tiles import Tile, chip
from mixer_kernels.ops.affine_token_linear import _triton_launch as affine
from mixer_kernels.ops.affine_token_linear import _triton_tiles as affine_tiles
from mixer_kernels.ops.depthwise_conv2d import _triton_launch as depthwise
from mixer_kernels.ops.depthwise_conv2d import _triton_tiles as depthwise_tiles
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry
from mixer_kernels.ops.spatial_shift import triton_impl as shift
from mixer_kernels.ops.split_attention import _triton_launch as split
from mixer_kernels.ops.split_attention import _triton_tiles as split_tiles
from mixer_kernels.ops.token_mixing import _triton_launch as mixing
from mixer_kernels.ops.token_mixing import _triton_tiles as mixing_tiles

DTYPE = torch.bfloat16
GELU = 2


class Search(NamedTuple):
    """Candidates for one entry of a table.

    Attributes:
        what: the op, the entry and the shape.
        kernel: the kernel's name.
        run: launches the op's kernels, with the candidate that was put last.
        put: takes a candidate into the table.
        candidates: the one that is there first.
    """

    what: str
    kernel: str
    run: Callable[[Launch], Any]
    put: Callable[[Any], None]
    candidates: tuple[Any, ...]


def searches(device: str) -> Iterator[Search]:
    """Yield every search; its inputs are on the device, and without values on "meta"."""
    draw = partial(_draw, device)
    yield from _spatial_shift(draw)
    yield from _split_attention(draw)
    yield from _token_mixing(draw, (256, 196, 768), 384)
    yield from _token_mixing(draw, (256, 196, 1024), 512)
    yield from _affine(draw, (256, 196, 384))
    yield from _convolution(draw, (64, 1536, 32, 32), 9)


def _draw(device: str, *shape: int, scale: float = 1.0, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return (torch.randn(shape, device=device) * scale).to(dtype)


def _search(
    what: str,
    kernel: str,
    run: Callable[[Launch], Any],
    table: MutableMapping[Any, Any],
    key: Any,
    candidates: Sequence[Any],
) -> Search:
    current = table[key]
    others = tuple(candidate for candidate in candidates if candidate != current)
    return Search(what, kernel, run, partial(table.__setitem__, key), (current, *others))


def _spatial_shift(draw: Callable[..., torch.Tensor]) -> Iterator[Search]:
    shape = (64, 32, 32, 384)
    x, y = draw(*shape), draw(*shape)

    def run(target: torch.Tensor, launch: Launch) -> None:
        (programs,), arguments = shift._arguments(x, target, (0, 1, 2, 3), 0, adjoint=False)
        launch(shift._spatial_shift_kernel, programs, arguments)

    sizes = (4, 8, 16, 32), (16, 32, 64, 128), (1, 2, 4)
    tiles = [shift.Tile(*tile) for tile in itertools.product(*sizes) if 128 <= tile[0] * tile[1] / tile[2] <= 512]
    for name, target in (("out of place", y), ("in place", x)):
        what = f"spatial_shift {shape}, {name}"
        yield _search(what, "_spatial_shift_kernel", partial(run, target), shift.TILES, (2, 8), tiles)


def _split_attention(draw: Callable[..., torch.Tensor]) -> Iterator[Search]:
    shape = (64, 32, 32, 192)
    x, dy = draw(*shape[:3], 3 * shape[3]), draw(*shape)
    weights, da = draw(64, 3, 192, dtype=torch.float32), draw(64, 192, dtype=torch.float32)
    sizes = (8, 16, 32, 64), (8, 32), (1, 2, 4, 8)
    tiles = [split_tiles.Tile(*tile) for tile in itertools.product(*sizes) if 64 <= tile[0] * tile[1] / tile[2] <= 256]
    runs: dict[str, Callable[[Launch], Any]] = {
        "sums": lambda launch: split.sums(launch, x),
        "fwd": lambda launch: split.combine(launch, x, weights),
        "bwd_weights": lambda launch: split.backward_weights(launch, dy, x),
        "bwd_features": lambda launch: split.backward_features(launch, dy, weights, da),
    }
    for name, run in runs.items():
        what = f"split_attention {shape}, {name}"
        yield _search(what, f"split_attention_{name}_kernel", run, split_tiles.TILES, (name, 2, 8), tiles)


# Wide, narrow, strip, depth, warps, stages.
_TILES = [
    Tile(wide, 256, 128, depth, num_warps=wide // 16, num_stages=stages)
    for wide in (64, 128)
    for depth in (32, 64)
    for stages in (2, 3, 4)
]
_NARROWER = [tile._replace(narrow=128) for tile in _TILES] + [
    Tile(128, 128, 128, 64, num_warps=4, num_stages=3),
    Tile(128, 64, 64, 64, num_warps=4, num_stages=3),
]
_ROWS = [
    {"BLOCK_ROWS": rows, "BLOCK_C": channels, "num_warps": warps}
    for rows, channels, warps in (
        *((1, 1024, 1), (2, 1024, 2), (4, 1024, 4), (4, 1024, 8), (8, 1024, 8), (8, 1024, 16), (16, 1024, 16)),
        *((8, 256, 4), (16, 256, 4), (16, 256, 8), (32, 64, 8), (32, 128, 8)),
    )
]


def _token_mixing(draw: Callable[..., torch.Tensor], shape: tuple[int, int, int], hidden: int) -> Iterator[Search]:
    batch, tokens, channels = shape
    x, dy = draw(*shape), draw(*shape)
    norm_weight, norm_bias = draw(channels), draw(channels)
    linears = (
        *(draw(hidden, tokens, scale=tokens**-0.5), draw(hidden)),
        *(draw(tokens, hidden, scale=hidden**-0.5), draw(tokens)),
    )
    norm = mixing.Norm(*(draw(batch, tokens, dtype=torch.float32) for _ in range(2)), norm_weight, norm_bias)

    def forward(launch: Launch) -> None:
        mixing.mixing_forward(launch, x, norm_weight, norm_bias, *linears, 1e-6, GELU)

    def linear_forward(launch: Launch) -> None:
        mixing.linear_forward(launch, x, norm_weight, norm_bias, *linears[:2], 1e-6, GELU)

    def backward(launch: Launch) -> None:
        mixing.mixing_backward(launch, dy, x, norm, *linears, GELU)

    what = f"token_mixing {shape}, D {hidden}"
    fused = [((208, tile),) for tile in _TILES]
    if chip() in mixing_tiles.FUSED:
        yield _search(f"{what}, FUSED", "token_mixing_kernel", forward, mixing_tiles.FUSED, chip(), fused)
    yield _rows(f"{what}, PREPARE", "prepare_kernel", forward, mixing_tiles.PREPARE)
    for name, run, tiles in (
        ("hidden_bwd", backward, _NARROWER),
        ("token_linear", linear_forward, _TILES + _NARROWER),
        ("token_linear", backward, _TILES + _NARROWER),
        ("weight_gradient", backward, _TILES + _NARROWER),
    ):
        table = mixing_tiles.TILES[name, "half"]
        yield _search(f"{what}, {name} in {run.__name__}", f"{name}_kernel", run, table, chip(), tiles)
    yield _rows(f"{what}, LAYER_NORM_BWD", "layer_norm_bwd_kernel", backward, mixing_tiles.LAYER_NORM_BWD)


def _rows(what: str, kernel: str, run: Callable[[Launch], Any], table: dict[str, int]) -> Search:
    current = {key: table[key] for key in _ROWS[0]}
    return Search(what, kernel, run, table.update, (current, *(rows for rows in _ROWS if rows != current)))


def _affine(draw: Callable[..., torch.Tensor], shape: tuple[int, int, int]) -> Iterator[Search]:
    _, tokens, channels = shape
    x, dy = draw(*shape), draw(*shape)
    weight, bias = draw(tokens, tokens, scale=tokens**-0.5), draw(tokens)
    parameters = affine.Parameters(draw(channels), draw(channels), weight, bias, draw(channels))
    for name, kernel, run in (
        ("fwd", "affine_token_linear_fwd_kernel", lambda launch: affine.forward(launch, x, parameters)),
        ("bwd_dx", "affine_token_linear_bwd_dx_kernel", lambda launch: affine.backward(launch, dy, x, parameters)),
        ("weight_gradient", "weight_gradient_kernel", lambda launch: affine.backward(launch, dy, x, parameters)),
    ):
        table = affine_tiles.TILES[name, "half"]
        yield _search(f"affine_token_linear {shape}, {name}", kernel, run, table, chip(), _TILES + _NARROWER)


def _convolution(draw: Callable[..., torch.Tensor], shape: tuple[int, int, int, int], taps: int) -> Iterator[Search]:
    geometry = Geometry((1, 1), (taps // 2,) * 4, (1, 1))
    weight, bias = draw(shape[1], 1, taps, taps, scale=1 / taps), draw(shape[1])
    sizes = {
        "pixels": ((32,), (2, 4, 8), (1, 2, 4), (8, 16)),
        "channels": ((4, 8, 16), (64,), (2, 4, 8), (4, 8)),
    }
    formats = {"pixels": torch.contiguous_format, "channels": torch.channels_last}
    for together, memory_format in formats.items():
        x = draw(*shape).contiguous(memory_format=memory_format)

        def forward(launch: Launch, x: torch.Tensor = x) -> None:
            depthwise.forward(launch, x, weight, bias, None, None, None, geometry, 0)

        def backward_weight(launch: Launch, x: torch.Tensor = x) -> None:
            depthwise.backward_weight(launch, x, x, (taps, taps), geometry)

        tiles = [depthwise_tiles.Tile(*tile) for tile in itertools.product(*sizes[together])]
        one_row = list(dict.fromkeys(tile._replace(rows=1) for tile in tiles))
        for name, kernel, run, candidates in (
            ("conv", "depthwise_conv2d_kernel", forward, tiles),
            ("weight_gradient", "depthwise_conv2d_bwd_weight_kernel", backward_weight, one_row),
        ):
            table = depthwise_tiles.TILES[name, together, 2]
            what = f"depthwise_conv2d {shape}, K={taps}, {name}, {together} side by side"
            yield _search(what, kernel, run, table, max(table), candidates)
