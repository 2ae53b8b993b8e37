"""The op in Triton.

Launches are in ``_triton_launch.py``, tiles in ``_triton_tiles.py``, kernels in ``_triton_kernels.py`` and, where they
are not specific to this op, in ``ops/_triton_linear.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from mixer_kernels.ops import _triton, _triton_cases
from mixer_kernels.ops._opaque_op import opaque_op
from mixer_kernels.ops._triton_cases import BFLOAT16, FLOAT16, FLOAT32, TF32, Case
from mixer_kernels.ops._triton_launch import Launch, run
from mixer_kernels.ops.affine_token_linear import _fake, _triton_launch
from mixer_kernels.ops.affine_token_linear._triton_launch import Parameters


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    if dtype == torch.float64:
        return "there are no triton kernels of this op for float64"
    return _triton.why_not(device)


@opaque_op("affine_token_linear_triton_fwd", _fake.forward)
def forward(
    x: torch.Tensor,
    alpha: torch.Tensor | None,
    beta: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer_scale: torch.Tensor | None,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Return ``x + layer_scale * (weight @ (alpha * x + beta) + bias)``."""
    with torch.cuda.device_of(x):
        return _triton_launch.forward(run, x, Parameters(alpha, beta, weight, bias, layer_scale), allow_tf32)


@opaque_op("affine_token_linear_triton_bwd", _fake.backward)
def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    alpha: torch.Tensor | None,
    beta: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer_scale: torch.Tensor | None,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x and the five parameters in their order; of an absent one, an empty tensor."""
    with torch.cuda.device_of(x):
        return _triton_launch.backward(run, dy, x, Parameters(alpha, beta, weight, bias, layer_scale), allow_tf32)


# Shape of x and dtypes: the published sizes of ResMLP at two patch sizes, more tokens than one program takes,
# channels that vectors divide but Triton does not know to, and sizes that neither tiles nor vectors divide.
COMPILED = (
    ((64, 196, 384), (BFLOAT16, FLOAT16, FLOAT32, TF32)),
    ((64, 49, 384), (BFLOAT16, TF32)),
    ((64, 784, 768), (BFLOAT16, TF32)),
    ((64, 196, 200), (BFLOAT16, TF32)),
    ((3, 17, 30), (BFLOAT16, FLOAT32)),
)


def compile_cases() -> Iterator[Case]:
    """Yield every configuration that a launch can choose, for compilation on a machine without a GPU."""
    return _triton_cases.compile_cases(
        (f"{dtype}, x {shape}", precision, partial(_launch_all, shape, dtype))
        for shape, dtypes in COMPILED
        for dtype, precision in dtypes
    )


def _launch_all(shape: tuple[int, ...], dtype: torch.dtype, launch: Launch) -> None:
    """Launch what forward and backward do on such inputs."""
    _, tokens, channels = shape
    x = torch.empty(shape, dtype=dtype, device="meta")
    weight, bias = x.new_empty((tokens, tokens)), x.new_empty(tokens)
    alpha, beta, layer_scale = (x.new_empty(channels) for _ in range(3))
    parameters = Parameters(alpha, beta, weight, bias, layer_scale)
    _triton_launch.forward(launch, x, parameters)
    _triton_launch.backward(launch, x, x, parameters)
