"""The ops in Triton.

Launches are in ``_triton_launch.py``, tiles in ``_triton_tiles.py``, kernels in ``_triton_kernels.py`` and, where they
are not specific to these ops, in ``ops/_triton_linear.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from mixer_kernels.ops import _triton, _triton_cases
from mixer_kernels.ops._opaque_op import opaque_op
from mixer_kernels.ops._triton_cases import BFLOAT16, FLOAT16, FLOAT32, TF32, Case
from mixer_kernels.ops._triton_launch import Launch, run
from mixer_kernels.ops.token_mixing import _fake, _triton_launch
from mixer_kernels.ops.token_mixing._triton_launch import Norm


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    if dtype == torch.float64:
        return "there are no triton kernels of this op for float64"
    return _triton.why_not(device)


@opaque_op("layer_norm_token_linear_triton_fwd", _fake.layer_norm_token_linear_forward)
def layer_norm_token_linear_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``activation(weight @ LayerNorm(x) + bias)`` and the mean and rstd of each token."""
    with torch.cuda.device_of(x):
        return _triton_launch.linear_forward(run, x, norm_weight, norm_bias, weight, bias, eps, activation, allow_tf32)


@opaque_op("layer_norm_token_linear_triton_bwd", _fake.backward)
def layer_norm_token_linear_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight and bias; of an absent one, an empty tensor."""
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    with torch.cuda.device_of(x):
        return _triton_launch.linear_backward(run, dy, x, norm, weight, bias, activation, allow_tf32)


@opaque_op("token_mixing_triton_fwd", _fake.token_mixing_forward)
def token_mixing_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    eps: float,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``x + weight2 @ activation(weight1 @ LayerNorm(x) + bias1) + bias2`` and mean and rstd of each token."""
    with torch.cuda.device_of(x):
        return _triton_launch.mixing_forward(
            run, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, allow_tf32
        )


@opaque_op("token_mixing_triton_bwd", _fake.backward)
def token_mixing_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight1, bias1, weight2 and bias2; of an absent one, empty."""
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    with torch.cuda.device_of(x):
        return _triton_launch.mixing_backward(run, dy, x, norm, weight1, bias1, weight2, bias2, activation, allow_tf32)


# Shape of x, hidden units, activation, dtypes: the published sizes of Mixer-B/16 and S/32, a sequence too long for one
# kernel, channels that vectors divide but Triton does not know to, and sizes that neither tiles nor vectors divide.
COMPILED = (
    ((64, 196, 768), 384, 2, (BFLOAT16, FLOAT16, FLOAT32, TF32)),
    ((64, 49, 512), 256, 3, (BFLOAT16,)),
    ((64, 784, 768), 384, 2, (BFLOAT16,)),
    ((64, 196, 200), 384, 2, (BFLOAT16, TF32)),
    ((3, 17, 30), 7, 1, (BFLOAT16, FLOAT32)),
)


def compile_cases() -> Iterator[Case]:
    """Yield every configuration that a launch can choose, for compilation on a machine without a GPU."""
    return _triton_cases.compile_cases(
        (f"{dtype}, x {shape}, D {hidden}", precision, partial(_launch_all, shape, hidden, activation, dtype))
        for shape, hidden, activation, dtypes in COMPILED
        for dtype, precision in dtypes
    )


def _launch_all(shape: tuple[int, ...], hidden: int, activation: int, dtype: torch.dtype, launch: Launch) -> None:
    """Launch what both ops do, forward and backward, on such inputs."""
    batch, tokens, channels = shape
    x = torch.empty(shape, dtype=dtype, device="meta")
    dh = x.new_empty((batch, hidden, channels))
    norm_weight, norm_bias = x.new_empty(channels), x.new_empty(channels)
    linear1 = x.new_empty((hidden, tokens)), x.new_empty(hidden)
    linear2 = x.new_empty((tokens, hidden)), x.new_empty(tokens)
    parameters = x, norm_weight, norm_bias, *linear1
    _, mean, rstd = _triton_launch.mixing_forward(launch, *parameters, *linear2, 1e-6, activation)
    _triton_launch.linear_forward(launch, *parameters, 1e-6, activation)
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    _triton_launch.mixing_backward(launch, x, x, norm, *linear1, *linear2, activation)
    _triton_launch.linear_backward(launch, dh, x, norm, *linear1, activation)
