"""The cross-patch half of a ResMLP layer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import shapes, tokens
from benchmarks.contest import Group
from mixer_kernels.ops.affine_token_linear import op, reference


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for shape, dtype, which in shapes.op_cases("affine_token_linear", device.type, preset):
        yield make_group(shape, dtype, which, device)


def make_group(shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device) -> Group:
    """Return the contenders of one shape (B, S, C), dtype and pass."""
    batch, seq_len, channels = shape
    affine = ((channels,), 1.0), ((channels,), 1.0)
    linear = ((seq_len, seq_len), seq_len**-0.5), ((seq_len,), 1.0)
    parameters = (*affine, *linear, ((channels,), 1e-4))
    flops = 2 * batch * seq_len * seq_len * channels
    eager = reference.affine_token_linear
    return tokens.make_group(op, _ours, eager, shape, parameters, flops, dtype, which, device)


def _ours(backend: str) -> tokens.Function:
    return lambda *inputs: op.affine_token_linear(*inputs, backend=backend)


def test_affine_token_linear(measure_entry: Callable[[], None]) -> None:
    measure_entry()
