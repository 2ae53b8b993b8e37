"""The ops in Triton.

Launches are in ``_triton_launch.py``, tiles in ``_triton_tiles.py``, kernels in ``_triton_kernels.py`` and, where they
are not specific to these ops, in ``ops/_triton_linear.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mixer_kernels.ops import _triton, _triton_linear
from mixer_kernels.ops.token_mixing import _fake, _triton_launch
from mixer_kernels.ops.token_mixing._triton_launch import Norm


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    if dtype == torch.float64:
        return "there are no triton kernels of this op for float64"
    return _triton.why_not(device)


@torch.library.custom_op("mixer_kernels::layer_norm_token_linear_triton_fwd", mutates_args=())
def layer_norm_token_linear_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``activation(weight @ LayerNorm(x) + bias)`` and the mean and rstd of each token."""
    with torch.cuda.device_of(x):
        return _triton_launch.linear_forward(_run, x, norm_weight, norm_bias, weight, bias, eps, activation)


layer_norm_token_linear_forward.register_fake(_fake.layer_norm_token_linear_forward)


@torch.library.custom_op("mixer_kernels::layer_norm_token_linear_triton_bwd", mutates_args=())
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight and bias; of an absent one, an empty tensor."""
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    with torch.cuda.device_of(x):
        return _triton_launch.linear_backward(_run, dy, x, norm, weight, bias, activation)


layer_norm_token_linear_backward.register_fake(_fake.backward)


@torch.library.custom_op("mixer_kernels::token_mixing_triton_fwd", mutates_args=())
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``x + weight2 @ activation(weight1 @ LayerNorm(x) + bias1) + bias2`` and mean and rstd of each token."""
    with torch.cuda.device_of(x):
        return _triton_launch.mixing_forward(
            _run, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation
        )


token_mixing_forward.register_fake(_fake.token_mixing_forward)


@torch.library.custom_op("mixer_kernels::token_mixing_triton_bwd", mutates_args=())
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight1, bias1, weight2 and bias2; of an absent one, empty."""
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    with torch.cuda.device_of(x):
        return _triton_launch.mixing_backward(_run, dy, x, norm, weight1, bias1, weight2, bias2, activation)


token_mixing_backward.register_fake(_fake.backward)


def _run(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    if programs > 0:
        kernel[(programs,)](**arguments)


# Shape of x, hidden units, activation, dtypes: the published sizes of Mixer-B/16 and S/32, a sequence too long for one
# kernel, and sizes that neither tiles nor vectors divide.
BFLOAT16, FLOAT16 = (torch.bfloat16, "ieee"), (torch.float16, "ieee")
FLOAT32, TF32 = (torch.float32, "ieee"), (torch.float32, "tf32")
COMPILED = (
    ((64, 196, 768), 384, 2, (BFLOAT16, FLOAT16, FLOAT32, TF32)),
    ((64, 49, 512), 256, 3, (BFLOAT16,)),
    ((64, 784, 768), 384, 2, (BFLOAT16,)),
    ((3, 17, 30), 7, 1, (BFLOAT16, FLOAT32)),
)


def compile_cases() -> Iterator[tuple[str, Any, dict[str, Any], set[str]]]:
    """Yield every configuration that a launch can choose, for compilation on a machine without a GPU.

    Yields:
        A name, the kernel, the arguments of a launch (tensors without memory), and what the machine code must hold.
    """
    seen = set()
    for shape, hidden, activation, dtypes in COMPILED:
        for dtype, precision in dtypes:
            for kernel, arguments in _launches(shape, hidden, activation, dtype, precision):
                product = "PRECISION" in arguments
                relevant = [value for name, value in arguments.items() if name not in _triton_linear.SIZES]
                key = kernel, str([_specialisation(value) for value in relevant])
                if key in seen:
                    continue
                seen.add(key)
                name = f"{kernel.fn.__name__} {len(seen)}, {dtype}, x {shape}, D {hidden}"
                matrix = product and (dtype != torch.float32 or arguments["PRECISION"] == "tf32")
                yield name + ", tf32" * (precision == "tf32"), kernel, arguments, {"matrix"} if matrix else set()


def _launches(
    shape: tuple[int, ...], hidden: int, activation: int, dtype: torch.dtype, precision: str
) -> list[tuple[Any, dict[str, Any]]]:
    """Return what both ops launch, forward and backward, on such inputs."""
    launches: list[tuple[Any, dict[str, Any]]] = []

    def note(kernel: Any, _: int, arguments: dict[str, Any]) -> None:
        launches.append((kernel, arguments))

    batch, tokens, channels = shape
    x = torch.empty(shape, dtype=dtype, device="meta")
    dh = x.new_empty((batch, hidden, channels))
    norm_weight, norm_bias = x.new_empty(channels), x.new_empty(channels)
    linear1 = x.new_empty((hidden, tokens)), x.new_empty(hidden)
    linear2 = x.new_empty((tokens, hidden)), x.new_empty(tokens)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        parameters = x, norm_weight, norm_bias, *linear1
        _, mean, rstd = _triton_launch.mixing_forward(note, *parameters, *linear2, 1e-6, activation)
        _triton_launch.linear_forward(note, *parameters, 1e-6, activation)
        norm = Norm(mean, rstd, norm_weight, norm_bias)
        _triton_launch.mixing_backward(note, x, x, norm, *linear1, *linear2, activation)
        _triton_launch.linear_backward(note, dh, x, norm, *linear1, activation)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    return launches


def _specialisation(value: Any) -> Any:
    """Return what of an argument a compiled kernel depends on."""
    if isinstance(value, tuple):
        return len(value)
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, int):
        return value == 1, value % 16 == 0
    return type(value) if isinstance(value, float) else value
