"""The checks that both functions of the room share, and padding in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import torch

from mixer_kernels.ops import _checks

Optional = torch.Tensor | None
Pair = int | Sequence[int]

# Above every step and every padding: no product of two sizes overflows.
MOST = 1 << 24


class Geometry(NamedTuple):
    """How a kernel moves over a map."""

    stride: Sequence[int]
    padding: Sequence[int]  # top, bottom, left, right
    dilation: Sequence[int]

    def reach(self, weight: torch.Tensor) -> tuple[int, int]:
        """Return how far the last tap is from the first along both dimensions."""
        rows, columns = (step * (taps - 1) for step, taps in zip(self.dilation, weight.shape[2:], strict=True))
        return rows, columns

    def output_size(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[int, int]:
        """Return the height and width of the convolved map; 0 or less where the kernel reaches too far."""
        top, bottom, left, right = self.padding
        padded = x.shape[2] + top + bottom, x.shape[3] + left + right
        height, width = (
            (size - reach - 1) // stride + 1
            for size, reach, stride in zip(padded, self.reach(weight), self.stride, strict=True)
        )
        return height, width


def check_convolution(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Pair,
    padding: str | Pair,
    dilation: Pair,
) -> tuple[torch.Tensor, torch.Tensor, Optional, Geometry]:
    """Check a convolution; return its tensors as the kernels take them, and its geometry in numbers."""
    _checks.check_tensor(op, "x", x)
    _checks.check_dims(op, "x", x, "(B, C, H, W)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x must have at least one channel and one pixel, got shape {tuple(x.shape)}")
    x = _checks.autocast(x)
    weight = _checks.check_operand(op, "weight", weight, (x.shape[1], 1, "KH", "KW"), x)
    if 0 in weight.shape:
        raise ValueError(f"{op}: weight must have at least one tap, got shape {tuple(weight.shape)}")
    geometry = _geometry(op, weight, stride, padding, dilation)
    if max(*geometry.stride, *geometry.padding, *geometry.dilation, *geometry.reach(weight)) >= MOST:
        raise ValueError(
            f"{op}: stride, padding and dilation * (kernel_size - 1) must be below 2**24, got {stride}, {padding} and "
            f"{dilation} for a kernel {tuple(weight.shape[2:])}"
        )
    if min(geometry.output_size(x, weight)) < 1:
        raise ValueError(
            f"{op}: x must reach, with its padding, over the kernel, got shape {tuple(x.shape)} with padding "
            f"{geometry.padding} for a kernel {tuple(weight.shape[2:])} with dilation {geometry.dilation}"
        )
    if bias is not None:
        bias = _checks.check_operand(op, "bias", bias, x.shape[1:2], x).contiguous()
    return x, weight.contiguous(), bias, geometry


def _geometry(op: str, weight: torch.Tensor, stride: Pair, padding: str | Pair, dilation: Pair) -> Geometry:
    strides, dilations = _pair(op, "stride", stride), _pair(op, "dilation", dilation)
    valid = Geometry(strides, (0, 0, 0, 0), dilations)
    if padding == "valid":
        return valid
    if padding == "same":
        if strides != (1, 1):
            raise ValueError(f"{op}: stride must be 1 with padding 'same', got {stride}")
        # As in PyTorch, the odd one of an even kernel goes to the bottom and to the right.
        rows, columns = valid.reach(weight)
        return valid._replace(padding=(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2))
    if isinstance(padding, str):
        raise ValueError(f"{op}: padding must be 'same', 'valid', an integer or a pair of them, got {padding!r}")
    rows, columns = _pair(op, "padding", padding, least=0)
    return valid._replace(padding=(rows, rows, columns, columns))


def _pair(op: str, name: str, value: Pair, least: int = 1) -> tuple[int, int]:
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    pair = numbers * 2 if len(numbers) == 1 else numbers
    if len(pair) != 2 or not all(isinstance(number, Integral) and number >= least for number in pair):
        raise ValueError(f"{op}: {name} must be an integer of at least {least} or a pair of them, got {value!r}")
    return int(pair[0]), int(pair[1])
