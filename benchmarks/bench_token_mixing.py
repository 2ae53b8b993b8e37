"""The token-mixing half of a Mixer layer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import shapes, tokens
from benchmarks.contest import Group
from mixer_kernels.ops.token_mixing import op, reference

EPS, ACTIVATION = 1e-6, "gelu"


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for shape, dtype, which in shapes.op_cases("token_mixing", device.type, preset):
        yield make_group(shape, dtype, which, device)


def make_group(shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device) -> Group:
    """Return the contenders of one shape (B, S, C, D), dtype and pass."""
    batch, seq_len, channels, hidden = shape
    norm = ((channels,), 1.0), ((channels,), 1.0)
    linear1 = ((hidden, seq_len), seq_len**-0.5), ((hidden,), 1.0)
    linear2 = ((seq_len, hidden), hidden**-0.5), ((seq_len,), 1.0)
    flops = 4 * batch * seq_len * channels * hidden
    return tokens.make_group(op, _ours, _eager, shape, (*norm, *linear1, *linear2), flops, dtype, which, device)


def _eager(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    return reference.token_mixing(x, *parameters, EPS, ACTIVATION)


def _ours(backend: str) -> tokens.Function:
    return lambda *inputs: op.token_mixing(*inputs, eps=EPS, activation=ACTIVATION, backend=backend)


def test_token_mixing(measure_entry: Callable[[], None]) -> None:
    measure_entry()
