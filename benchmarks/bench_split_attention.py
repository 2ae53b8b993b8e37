"""The shifted split attention of S2-MLPv2 against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import gate, shapes
from benchmarks.calls import Function, contenders, prepare_call
from benchmarks.contest import CEILING, Call, Contender, Group
from mixer_kernels.ops.split_attention import op, reference

# Maps of C channels that are read or written: x has three.
FORWARD = "x read twice, y written", 2 * 3 + 1
TRAINING = "x read twice, y written; dy read twice, x read, its gradient written", 2 * 3 + 1 + 2 + 3 + 3


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for shape, dtype, which in shapes.op_cases("split_attention", device.type, preset):
        yield make_group(shape, dtype, which, device)


def make_group(shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device) -> Group:
    """Return the contenders of one shape (B, H, W, 3C, D), dtype and pass."""
    batch, height, width, expanded, hidden = shape
    training = which == "fwd+bwd"
    formula, maps = TRAINING if training else FORWARD
    moved = maps * batch * height * width * expanded // 3 * dtype.itemsize

    def make_inputs() -> tuple[torch.Tensor, ...]:
        def randn(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(size, device=device) * scale).to(dtype).requires_grad_(training)

        x = randn(batch, height, width, expanded)
        # The sums over the pixels are large, the softmax is not to pick one branch alone.
        weight1 = randn(hidden, expanded // 3, scale=(height * width * expanded) ** -0.5)
        weight2 = randn(expanded, hidden, scale=hidden**-0.5)
        dy = (randn(batch, height, width, expanded // 3).detach(),) if training else ()
        return x, weight1, weight2, *dy

    def prepare_copy(*_: torch.Tensor) -> Call:
        source, target = torch.empty(2, moved // 2, device=device, dtype=torch.uint8).fill_(1)
        return lambda: target.copy_(source)

    eager = reference.shifted_split_attention
    return Group(
        subject="split_attention",
        kind="op",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=(
            *contenders(op, _ours, eager, which, device),
            Contender("copy_", CEILING, prepare_copy),
        ),
        make_inputs=make_inputs,
        exact=lambda *inputs: prepare_call(eager, training)(*gate.in_float64(inputs))(),
        moved=moved,
        moved_formula=formula,
    )


def _ours(backend: str) -> Function:
    return lambda *inputs: op.shifted_split_attention(*inputs, backend=backend)


def test_split_attention(measure_entry: Callable[[], None]) -> None:
    measure_entry()
