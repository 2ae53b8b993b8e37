"""The public spatial shift: checks, choice of a backend, and the autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixer_kernels.ops import _autograd, _backend, _checks
from mixer_kernels.ops.spatial_shift import native_impl, reference, triton_impl
from mixer_kernels.ops.spatial_shift.reference import SHIFT_1, SHIFT_2

# As in csrc/spatial_shift/spatial_shift.h.
DIRECTION_CODES = {"+h": 0, "-h": 1, "+w": 2, "-w": 3}

# At hand, for on a small map the checks take as long as the shift.
PUBLISHED = tuple((names, tuple(DIRECTION_CODES[name] for name in names)) for names in (SHIFT_1, SHIFT_2))

IMPLEMENTATIONS = {_backend.NATIVE: native_impl, _backend.TRITON: triton_impl}

# The automatic order of each device type, by benchmarks/results: *-threads/*.json and nvidia-h200/first-run.txt.
ORDER = {"cpu": (_backend.NATIVE,), "cuda": (_backend.NATIVE, _backend.TRITON)}


class SpatialShiftFunction(torch.autograd.Function):
    """The shift and its exact adjoint; nothing is saved for backward.

    ``apply(x, codes, backend, inplace)``, with the direction codes of :data:`DIRECTION_CODES`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: Sequence[int], backend: str, inplace: bool) -> torch.Tensor:
        """Shift ``x``, (B, H, W, C)."""
        ctx.codes, ctx.backend = codes, backend
        if not inplace:
            return IMPLEMENTATIONS[backend].forward(x, codes)
        ctx.mark_dirty(x)
        IMPLEMENTATIONS[backend].forward_(x, codes)
        return x

    @staticmethod
    @_autograd.once_differentiable
    def backward(ctx: Any, _saved: tuple[torch.Tensor, ...], dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the adjoint shift of ``dy``: for "+h", dx[0] = dy[0] + dy[1], dx[h] = dy[h + 1], dx[H - 1] = 0."""
        # A new tensor also for the in-place form: autograd may hand the same gradient to other nodes.
        return IMPLEMENTATIONS[ctx.backend].backward(dy, ctx.codes), None, None, None


def spatial_shift(x: torch.Tensor, directions: Sequence[str] = SHIFT_1, *, backend: str | None = None) -> torch.Tensor:
    """Move each group of channels one pixel along its direction (S2-MLP, arXiv 2106.07477, Section 3.2).

    With n directions, group i holds the channels [iC/n, (i+1)C/n), bounds rounded down. For "+h"::

        y[:, h] = x[:, h - 1]  for h >= 1,    y[:, 0] = x[:, 0]

    and likewise for "-h", "+w" and "-w": the border keeps its own value.

    Args:
        x: feature map, (B, H, W, C), float32, float16, bfloat16 or float64, any strides.
        directions: one of "+h", "-h", "+w", "-w" for each group; ``SHIFT_1`` and ``SHIFT_2`` are those of S2-MLPv2.
        backend: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        A new tensor like ``x``.

    Raises:
        TypeError: ``x`` is not a tensor of such a dtype.
        ValueError: ``x`` has not 4 dimensions, or ``directions`` is empty or holds another name.
        RuntimeError: the backend asked for cannot run.
    """
    codes = _check("spatial_shift", x, directions)
    name = _backend.choose("spatial_shift", backend, ORDER.get(x.device.type, ()), IMPLEMENTATIONS, x.device)
    if name == _backend.REFERENCE:
        return reference.spatial_shift(x, directions)
    if not _checks.needs_grad(x):
        return IMPLEMENTATIONS[name].forward(x, codes)
    return SpatialShiftFunction.apply(x, codes, name, False)


def spatial_shift_(x: torch.Tensor, directions: Sequence[str] = SHIFT_1, *, backend: str | None = None) -> torch.Tensor:
    """Shift ``x`` in place and return it; without a copy, and without the race of overlapping slices.

    The equation, arguments and errors are those of :func:`spatial_shift`; also:

    Raises:
        RuntimeError: ``x`` is a leaf that requires grad, or overlaps itself in memory (an expanded tensor).
    """
    codes = _check("spatial_shift_", x, directions)
    _checks.check_writable("spatial_shift_", "x", x)
    if torch.compiler.is_exporting():
        # torch.export does not see through mark_dirty, and writes every mutation as a copy anyway.
        return x.copy_(spatial_shift(x, directions, backend=backend))
    name = _backend.choose("spatial_shift_", backend, ORDER.get(x.device.type, ()), IMPLEMENTATIONS, x.device)
    if name == _backend.REFERENCE:
        return x.copy_(reference.spatial_shift(x, directions))
    if not _checks.needs_grad(x):
        IMPLEMENTATIONS[name].forward_(x, codes)
        return x
    return SpatialShiftFunction.apply(x, codes, name, True)


def why_not(device: torch.device) -> dict[str, str | None]:
    """Return, for each backend, None if it runs this op on the device, else the reason."""
    return _backend.reasons(IMPLEMENTATIONS, device)


def _check(op: str, x: torch.Tensor, directions: Sequence[str]) -> tuple[int, ...]:
    _checks.check_tensor(op, "x", x)
    _checks.check_dims(op, "x", x, "(B, H, W, C)")
    if type(directions) is tuple:
        for names, codes in PUBLISHED:
            if directions == names:
                return codes
    if isinstance(directions, str) or not isinstance(directions, Sequence):
        raise TypeError(f"{op}: directions must be a sequence of direction names, got {directions!r}")
    if not directions:
        raise ValueError(f"{op}: directions must name at least one direction, got {directions!r}")
    for direction in directions:
        if not isinstance(direction, str) or direction not in DIRECTION_CODES:
            raise ValueError(f"{op}: directions must be of '+h', '-h', '+w', '-w', got {direction!r}")
    return tuple(DIRECTION_CODES[direction] for direction in directions)
