"""Tile configurations, kernel and launchers in Triton."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from mixer_kernels.ops import _triton
from mixer_kernels.ops._opaque_op import opaque_op
from mixer_kernels.ops._triton_launch import cdiv
from mixer_kernels.ops._triton_vectors import vector_length, vector_strides
from mixer_kernels.ops.spatial_shift import _fake

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:
    # Without triton the kernel below stays a plain function that nobody calls: `why_not` gives the reason.
    def jit(**_: Any) -> Any:
        """Return a decorator that leaves its function alone."""
        return lambda function: function


class Tile(NamedTuple):
    """What one program holds at a time: ``block_t`` steps of the walk for ``block_v`` channel vectors."""

    block_t: int
    block_v: int
    num_warps: int


# (bytes of an element, elements of a vector) -> tile. A thread holds 8 steps of one vector, that is 128 bytes on their
# way from memory where alignment allows whole vectors.
TILES = {
    (2, 8): Tile(block_t=8, block_v=128, num_warps=4),
    (4, 4): Tile(block_t=8, block_v=128, num_warps=4),
    (8, 2): Tile(block_t=8, block_v=128, num_warps=4),
    (2, 1): Tile(block_t=8, block_v=128, num_warps=4),
    (4, 1): Tile(block_t=8, block_v=128, num_warps=4),
    (8, 1): Tile(block_t=8, block_v=128, num_warps=4),
}

# Out of place, lines are cut into pieces until about this many programs run: 8 for each processor of a large GPU.
MIN_PROGRAMS = 1024

# Lines of one group that 32 bits count. More take a kernel of their own, with its slow 64-bit divisions; only images of
# very few pixels have so many.
MAX_LINES = 2**31 - 1024

# Directions of one launch, two bits each in one signed 64-bit integer.
MAX_GROUPS = 31


def why_not(device: torch.device) -> str | None:
    """Return None if this backend runs on the device, else the reason."""
    return _triton.why_not(device)


@opaque_op("spatial_shift_triton_fwd", _fake.shifted)
def forward(x: torch.Tensor, directions: Sequence[int]) -> torch.Tensor:
    """Return shifted ``x``, a new tensor."""
    y = torch.empty_like(x)
    _launch(x, y, directions, adjoint=False)
    return y


@opaque_op("spatial_shift_triton_fwd_", _fake.in_place, mutates=("x",))
def forward_(x: torch.Tensor, directions: Sequence[int]) -> None:
    """Shift ``x`` in place."""
    _launch(x, x, directions, adjoint=False)


@opaque_op("spatial_shift_triton_bwd", _fake.shifted)
def backward(dy: torch.Tensor, directions: Sequence[int]) -> torch.Tensor:
    """Return the adjoint of the shift applied to ``dy``, a new tensor."""
    dx = torch.empty_like(dy)
    _launch(dy, dx, directions, adjoint=True)
    return dx


@opaque_op("spatial_shift_triton_bwd_", _fake.in_place, mutates=("dy",))
def backward_(dy: torch.Tensor, directions: Sequence[int]) -> None:
    """Apply the adjoint of the shift to ``dy`` in place."""
    _launch(dy, dy, directions, adjoint=True)


def _launch(x: torch.Tensor, y: torch.Tensor, directions: Sequence[int], adjoint: bool) -> None:
    """Write the shift of ``x`` (or its adjoint) to ``y``, which is ``x`` itself or shares no memory with it."""
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            for first_group in range(0, len(directions), MAX_GROUPS):
                grid, arguments = _arguments(x, y, directions, first_group, adjoint)
                _spatial_shift_kernel[grid](**arguments)
    if y is x and not x.is_inference():
        # For autograd, as PyTorch's own in-place operations do.
        torch.autograd.graph.increment_version(x)


def _arguments(
    x: torch.Tensor, y: torch.Tensor, directions: Sequence[int], first_group: int, adjoint: bool
) -> tuple[tuple[int], dict[str, Any]]:
    """Return the grid and the arguments of the launch for the groups from ``first_group`` on."""
    batch, height, width, channels = x.shape
    n_groups = len(directions)
    codes = directions[first_group : first_group + MAX_GROUPS]
    bounds = [group * channels // n_groups for group in range(first_group, first_group + len(codes) + 1)]
    # The kernel finds the same bounds with small numbers: 64-bit division is slow.
    group_size, group_rest = divmod(channels, n_groups)
    axes = {(height, width) if code < 2 else (width, height) for code in codes}
    widest = max(high - low for low, high in pairwise(bounds))
    wide = batch * max(height, width) * widest >= MAX_LINES
    vector = 1 if wide else vector_length((x, y), bounds)
    tile = TILES[x.element_size(), vector]
    in_place = y is x

    # The most programs that any group needs; a program beyond its own group's need returns at once.
    tiles = {extent: cdiv(batch * across * (widest // vector), tile.block_v) for extent, across in axes}
    # In place, a program walks whole lines: what one segment overwrites, another would still have to read.
    pieces = 1 if in_place else cdiv(MIN_PROGRAMS, max(1, len(codes) * min(tiles.values())))
    segment = cdiv(cdiv(max(tiles), pieces), tile.block_t) * tile.block_t
    programs = max(count * cdiv(extent, segment) for extent, count in tiles.items())

    return (programs * len(codes),), {
        "x_ptr": x,
        "y_ptr": y,
        "batch": batch,
        "height": height,
        "width": width,
        "n_groups": n_groups,
        "launched_groups": len(codes),
        "first_channel": bounds[0],
        "first_rest": first_group * channels % n_groups,
        "group_size": group_size,
        "group_rest": group_rest,
        "directions": sum(code << (2 * position) for position, code in enumerate(codes)),
        "segment": segment,
        **vector_strides("x", x, vector),
        **vector_strides("y", y, vector),
        "WIDE": wide,
        "ADJOINT": adjoint,
        "IN_PLACE": in_place,
        "BLOCK_T": tile.block_t,
        "BLOCK_V": tile.block_v,
        "VECTOR": vector,
        "num_warps": tile.num_warps,
    }


# Sizes are 32 bits wide where they fit, and never constants: one compiled kernel serves every shape.
@jit(
    do_not_specialize=(
        "batch",
        "height",
        "width",
        "n_groups",
        "launched_groups",
        "first_channel",
        "first_rest",
        "group_size",
        "group_rest",
        "segment",
    )
)
def _spatial_shift_kernel(
    x_ptr,
    y_ptr,
    batch,
    height,
    width,
    n_groups,
    launched_groups,
    first_channel,
    first_rest,
    group_size,
    group_rest,
    segment,
    directions: tl.int64,
    stride_x_b: tl.int64,
    stride_x_h: tl.int64,
    stride_x_w: tl.int64,
    stride_x_c: tl.int64,
    stride_y_b: tl.int64,
    stride_y_h: tl.int64,
    stride_y_w: tl.int64,
    stride_y_c: tl.int64,
    WIDE: tl.constexpr,
    ADJOINT: tl.constexpr,
    IN_PLACE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Each program walks a segment of BLOCK_V lines of one group; a line is a channel vector along the moving axis.

    It walks so that every step but the borders pulls from the next, ``y[t] = x[t + 1]``, and none needs what an earlier
    one overwrote: for "+h" from the last row to the first, for its adjoint from the first to the last. The loads of
    BLOCK_T steps are on their way at once.
    """
    # Neighbouring programs take the groups of the same pixels: together they read whole rows of memory.
    program = tl.program_id(0)
    group = program % launched_groups
    piece = program // launched_groups
    low = first_channel + group.to(tl.int64) * group_size + (first_rest + group * group_rest) // n_groups
    group += 1
    high = first_channel + group.to(tl.int64) * group_size + (first_rest + group * group_rest) // n_groups
    code = (directions >> (2 * group - 2)) & 3

    along_h = code < 2
    extent = tl.where(along_h, height, width)
    across = tl.where(along_h, width, height)
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    vectors = ((high - low) // VECTOR).to(index)
    lines = batch.to(index) * across.to(index) * vectors
    segments = (extent - 1) // segment + 1
    # Groups differ in size, and in shape where the image is not square.
    if piece // segments >= (lines + BLOCK_V - 1) // BLOCK_V:
        return
    first = (piece % segments).to(tl.int64) * segment
    last = tl.minimum(first + segment, extent)

    line = (piece // segments).to(index) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = (line < lines)[None, :, None]
    vector = low // VECTOR + line % vectors
    position = line // vectors % across
    image = line // vectors // across

    step_x = tl.where(along_h, stride_x_h, stride_x_w)
    step_y = tl.where(along_h, stride_y_h, stride_y_w)
    across_x = tl.where(along_h, stride_x_w, stride_x_h)
    across_y = tl.where(along_h, stride_y_w, stride_y_h)
    start_x = image * stride_x_b + position * across_x + vector * stride_x_c
    start_y = image * stride_y_b + position * across_y + vector * stride_y_c
    # Even codes ("+h", "+w") move from the first pixel towards the last, so the walk is the other way; not the adjoint.
    backwards = (code % 2 == 0) != ADJOINT
    start_x += tl.where(backwards, extent - 1, 0) * step_x
    start_y += tl.where(backwards, extent - 1, 0) * step_y
    step_x = tl.where(backwards, -step_x, step_x)
    step_y = tl.where(backwards, -step_y, step_y)
    element = tl.arange(0, VECTOR)[None, None, :]

    x_ptrs = x_ptr + start_x[None, :, None] * VECTOR + element  # [1, BLOCK_V, VECTOR]
    y_ptrs = y_ptr + start_y[None, :, None] * VECTOR + element
    step_x *= VECTOR
    step_y *= VECTOR

    if ADJOINT and first == 0:
        # The border went to itself and to its neighbour: it takes the sum of both.
        sum_type: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
        has_neighbour = (line < tl.where(extent > 1, lines, 0))[None, :, None]
        y = tl.load(x_ptrs, mask=inside).to(sum_type)
        y += tl.load(x_ptrs + step_x, mask=has_neighbour, other=0.0).to(sum_type)
        if IN_PLACE:
            tl.debug_barrier()
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside)

    begin = tl.maximum(first, 1) if ADJOINT else first
    end = tl.minimum(last, extent - 1)
    for chunk in range(begin, end, BLOCK_T):
        t = chunk + tl.arange(0, BLOCK_T)[:, None, None]
        mask = inside & (t < end)
        y = tl.load(x_ptrs + (t + 1) * step_x, mask=mask)  # [BLOCK_T, BLOCK_V, VECTOR]
        if IN_PLACE:
            # Whichever thread writes a step, all have read it.
            tl.debug_barrier()
        tl.store(y_ptrs + t * step_y, y, mask=mask)

    if last == extent:
        if not ADJOINT:
            # The other border keeps its own value.
            if not IN_PLACE:
                y = tl.load(x_ptrs + (extent - 1) * step_x, mask=inside)
                tl.store(y_ptrs + (extent - 1) * step_y, y, mask=inside)
        elif extent > 1:
            # Nothing came from beyond it: it takes zero.
            y = tl.zeros((1, BLOCK_V, VECTOR), y_ptr.dtype.element_ty)
            tl.store(y_ptrs + (extent - 1) * step_y, y, mask=inside)


def compile_cases() -> Iterator[tuple[str, Any, dict[str, Any], set[str]]]:
    """Yield every configuration that a launch can choose, for compilation on a machine without a GPU.

    Yields:
        A name, the kernel, the arguments of a launch (tensors without memory), and what the machine code must hold.
    """
    shapes = [(64, 32, 32, 384), (64, 32, 32, 30)]
    cases = [
        (shape, dtype) for shape in shapes for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ]
    # One dtype stands for all where lines are counted in 64 bits.
    for shape, dtype in [*cases, ((2**31, 2, 2, 30), torch.float32)]:
        x = torch.empty(shape, dtype=dtype, device="meta")
        for adjoint in (False, True):
            for y in (torch.empty_like(x), x):
                _, arguments = _arguments(x, y, (0, 1, 2, 3), 0, adjoint)
                name = f"{'bwd' if adjoint else 'fwd'}{'_' if y is x else ''}, {dtype} x {arguments['VECTOR']}"
                features = {"128-bit load", "128-bit store"} if arguments["VECTOR"] > 1 else set()
                features |= {"barrier"} if arguments["IN_PLACE"] else set()
                yield name + ", wide" * arguments["WIDE"], _spatial_shift_kernel, arguments, features
