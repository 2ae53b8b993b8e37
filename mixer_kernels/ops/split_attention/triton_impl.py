"""The op in Triton.

Launches are in ``_triton_launch.py``, tiles in ``_triton_tiles.py``, kernels in ``_triton_kernels.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from mixer_kernels.ops import _triton, _triton_cases
from mixer_kernels.ops._opaque_op import opaque_op
from mixer_kernels.ops._triton_cases import Case
from mixer_kernels.ops._triton_launch import Launch, run
from mixer_kernels.ops.split_attention import _fake, _gate, _triton_launch
from mixer_kernels.ops.split_attention._triton_kernels import SIZES


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    if dtype == torch.float64:
        return "there are no triton kernels of this op for float64"
    return _triton.why_not(device)


@opaque_op("split_attention_triton_sums", _fake.sums)
def sums(x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the pixels of all three branches, two of them shifted, (B, C)."""
    with torch.cuda.device_of(x):
        return _triton_launch.sums(run, x)


@opaque_op("split_attention_triton_combine", _fake.combine)
def combine(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of the branches, two of them shifted, each times its weights: (B, H, W, C)."""
    with torch.cuda.device_of(x):
        return _triton_launch.combine(run, x, weights)


@opaque_op("split_attention_triton_bwd_weights", _fake.backward_weights)
def backward_weights(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the pixels of ``dy`` times each branch, two of them shifted: (B, 3, C)."""
    with torch.cuda.device_of(x):
        return _triton_launch.backward_weights(run, dy, x)


@opaque_op("split_attention_triton_bwd_features", _fake.backward_features)
def backward_features(dy: torch.Tensor, weights: torch.Tensor, da: torch.Tensor) -> torch.Tensor:
    """Return ``weights * dy + da`` for each branch, behind the adjoint of its shift: (B, H, W, 3C)."""
    with torch.cuda.device_of(dy):
        return _triton_launch.backward_features(run, dy, weights, da)


def forward(
    x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y (B, H, W, C), the sums over the pixels (B, C), and the weights of the branches (B, 3, C)."""
    total = sums(x)
    weights = _gate.weights_of(total, weight1, weight2)
    return combine(x, weights), total, weights


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    total: torch.Tensor,
    weights: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
    wants_input: bool,
    wants_weights: bool,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, if it is wanted, and the two matrices; these cost next to nothing."""
    da, dweight1, dweight2 = _gate.gradients_of(backward_weights(dy, x), total, weights, weight1, weight2)
    return backward_features(dy, weights, da) if wants_input else None, dweight1, dweight2


# Shape of x, order of its dimensions in memory, and dtypes: a published size, channels that vectors do not divide, and
# channels that do not lie side by side.
COMPILED = (
    ((64, 32, 32, 3 * 192), (0, 1, 2, 3), (torch.bfloat16, torch.float16, torch.float32)),
    ((3, 7, 5, 3 * 30), (0, 1, 2, 3), (torch.bfloat16, torch.float16, torch.float32)),
    ((64, 32, 32, 3 * 192), (0, 3, 1, 2), (torch.bfloat16,)),
)


def compile_cases() -> Iterator[Case]:
    """Yield every configuration that a launch can choose, for compilation on a machine without a GPU."""
    calls = (
        (f"{dtype}, x {shape} as {order}", "ieee", partial(_launch_all, shape, order, dtype))
        for shape, order, dtypes in COMPILED
        for dtype in dtypes
    )
    for name, kernel, arguments, _ in _triton_cases.compile_cases(calls, SIZES):
        features = {"128-bit load"} if arguments.get("VECTOR", 1) > 1 else set()
        # Sums over pixels are a few numbers for each program.
        stores = features and "partial_ptr" not in arguments
        yield name, kernel, arguments, features | ({"128-bit store"} if stores else set())


def _launch_all(shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype, launch: Launch) -> None:
    """Launch what forward and backward do on such inputs."""
    batch, height, width, expanded = shape
    x = torch.empty_permuted(shape, order, dtype=dtype, device="meta")
    dy = torch.empty_permuted((batch, height, width, expanded // 3), order, dtype=dtype, device="meta")
    weights = x.new_empty((batch, 3, expanded // 3), dtype=torch.float32)
    _triton_launch.sums(launch, x)
    _triton_launch.combine(launch, x, weights)
    _triton_launch.backward_weights(launch, dy, x)
    _triton_launch.backward_features(launch, dy, weights, weights[:, 0])
