"""What launches of Triton kernels share: how they are run, strides, sums over workspaces, the gradient of a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._triton_tiles import SPLIT_PROGRAMS

# Kernel, number of programs, arguments.
Launch = Callable[[Any, int, dict[str, Any]], None]


def run(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    """Run a kernel."""
    if programs > 0:
        kernel[(programs,)](**arguments)


class Sums:
    """Workspaces that one kernel adds up at the end, all of them in one launch."""

    def __init__(self, x: torch.Tensor) -> None:
        self.absent = x.new_empty(0)
        self.partials: list[torch.Tensor] = []
        self.totals: list[torch.Tensor] = []

    def add(self, partial: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
        """Return the gradient of the parameter, which will be the sum of ``partial`` over its first dimension."""
        if parameter is None:
            return self.absent.clone()
        return self.into(parameter.new_empty(parameter.shape), partial)

    def into(self, total: torch.Tensor, partial: torch.Tensor) -> torch.Tensor:
        """Return ``total``, which will be the sum of ``partial`` over its first dimension."""
        self.partials.append(partial)
        self.totals.append(total)
        return total

    def run(self, launch: Launch) -> None:
        """Launch the kernel."""
        widths = tuple(total.numel() for total in self.totals)
        arguments = {
            "partials": tuple(self.partials),
            "totals": tuple(self.totals),
            "counts": tuple(len(partial) for partial in self.partials),
            "widths": widths,
            "ROWS": _triton_linear.SUM_ROWS,
            "COLUMNS": _triton_linear.SUM_COLUMNS,
            "num_warps": 4,
        }
        programs = sum(cdiv(width, _triton_linear.SUM_COLUMNS) for width in widths)
        launch(_triton_linear.sum_kernel, programs, arguments)


class Factor(NamedTuple):
    """What an input is scaled and shifted by on its way into a product, and the number that the sums are multiplied by.

    Two values for each channel, and one.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    unit: torch.Tensor


def weight_gradient(
    launch: Launch,
    constants: dict[str, Any],
    dy: torch.Tensor,
    x: torch.Tensor,
    factor: Factor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """Return ``dy @ x.T`` summed over images, or its transpose, in parts: their number is the first dimension."""
    batch, tokens, channels = x.shape
    hidden = dy.size(1)
    programs = cdiv(hidden, constants["WIDE"]) * cdiv(tokens, constants["ROWS"])
    chunks = batch * cdiv(channels, constants["DEPTH"])
    chunks_of_split, splits = split(chunks, programs, SPLIT_PROGRAMS)
    partial = x.new_empty((splits, tokens, hidden) if transposed else (splits, hidden, tokens), dtype=torch.float32)
    arguments = {
        "dy_ptr": dy,
        "x_ptr": x,
        "scale_ptr": factor and factor.scale,
        "shift_ptr": factor and factor.shift,
        "unit_ptr": factor and factor.unit,
        "partial_ptr": partial,
        "hidden": hidden,
        "tokens": tokens,
        "channels": channels,
        "chunks": chunks,
        "chunks_of_split": chunks_of_split,
        "stride_dy_b": dy.stride(0),
        "stride_dy_d": dy.stride(1),
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_partial_d": 1 if transposed else tokens,
        "stride_partial_s": hidden if transposed else 1,
        **constants,
    }
    launch(_triton_linear.weight_gradient_kernel, programs * splits, arguments)
    return partial


def split(chunks: int, programs: int, most: int) -> tuple[int, int]:
    """Return how many chunks each of several programs takes that share the work of one, and how many those are.

    There are ``programs`` before they share; of all together there are about ``most``.
    """
    chunks_of_split = max(1, cdiv(chunks, max(1, most // max(1, programs))))
    return chunks_of_split, cdiv(chunks, chunks_of_split)


def channels_together(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` or a copy whose channels lie side by side; the kernels read it more often than a copy does."""
    return x if x.stride(2) == 1 or x.size(2) == 1 else x.contiguous()


def cdiv(value: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-value // divisor)
