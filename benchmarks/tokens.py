"""A group of contenders for an op over tokens, whose y is like its x, (B, S, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType

import torch

from benchmarks import gate
from benchmarks.calls import Function, contenders, prepare_call
from benchmarks.contest import Group

# Shape, and the scale of its random values.
Parameter = tuple[tuple[int, ...], float]


def make_group(
    op: ModuleType,
    ours: Callable[[str], Function],
    eager: Function,
    shape: tuple[int, ...],
    parameters: Sequence[Parameter],
    flops: int,
    dtype: torch.dtype,
    which: str,
    device: torch.device,
) -> Group:
    """Return the contenders of one shape, dtype and pass.

    Args:
        op: the op's module, in the room of its name.
        ours: backend -> the function of x and the parameters.
        eager: the same in plain PyTorch.
        shape: (B, S, C), and what else is in the group's name.
        parameters: the op's, in their order.
        flops: of the products in forward.
        dtype: of x and the parameters.
        which: "fwd" or "fwd+bwd".
        device: where it runs.
    """
    training = which == "fwd+bwd"

    def make_inputs() -> tuple[torch.Tensor, ...]:
        def randn(size: tuple[int, ...], scale: float) -> torch.Tensor:
            return (torch.randn(size, device=device) * scale).to(dtype).requires_grad_(training)

        x = randn(shape[:3], 1.0)
        dy = (torch.randn_like(x, requires_grad=False),) if training else ()
        return x, *(randn(*parameter) for parameter in parameters), *dy

    elements = 2 * prod(shape[:3]) + sum(prod(size) for size, _ in parameters)
    return Group(
        subject=op.__name__.split(".")[-2],
        kind="op",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=contenders(op, ours, eager, which, device),
        make_inputs=make_inputs,
        exact=lambda *inputs: prepare_call(eager, training)(*gate.in_float64(inputs))(),
        moved=elements * dtype.itemsize * (2 if training else 1),
        moved_formula="x and the parameters read, y written" + ("; once more with their gradients" * training),
        flops=flops * (3 if training else 1),
    )
