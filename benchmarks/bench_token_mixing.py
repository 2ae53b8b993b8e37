"""The token-mixing half of a Mixer layer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import compiled, gate, shapes
from benchmarks.contest import OURS, PYTORCH, Call, Contender, Group, kernels
from mixer_kernels.ops.token_mixing import op, reference

EPS, ACTIVATION = 1e-6, "gelu"


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for shape, dtype, which in shapes.op_cases("token_mixing", device.type, preset):
        yield make_group(shape, dtype, which, device)


def make_group(shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device) -> Group:
    """Return the contenders of one shape (B, S, C, D), dtype and pass."""
    batch, tokens, channels, hidden = shape
    training = which == "fwd+bwd"

    def make_inputs() -> tuple[torch.Tensor, ...]:
        def randn(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(size, device=device) * scale).to(dtype).requires_grad_(training)

        x = randn(batch, tokens, channels)
        norm = randn(channels), randn(channels)
        linears = (
            *(randn(hidden, tokens, scale=tokens**-0.5), randn(hidden)),
            *(randn(tokens, hidden, scale=hidden**-0.5), randn(tokens)),
        )
        dy = (torch.randn_like(x, requires_grad=False),) if training else ()
        return x, *norm, *linears, *dy

    modes = compiled.modes(device, which).items()
    products = 4 * batch * tokens * channels * hidden
    parameters = 2 * tokens * hidden + 2 * channels + hidden + tokens
    return Group(
        subject="token_mixing",
        kind="op",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=(
            *(Contender(name, OURS, _prepare(_ours(name))) for name in kernels(op, device)),
            Contender("eager", PYTORCH, _prepare(_eager)),
            *(Contender(name, PYTORCH, _prepare(compiled.compile_function(_eager, mode))) for name, mode in modes),
        ),
        make_inputs=make_inputs,
        exact=lambda *inputs: _prepare(_eager)(*gate.in_float64(inputs))(),
        moved=(2 * batch * tokens * channels + parameters) * dtype.itemsize * (2 if training else 1),
        moved_formula="x and the parameters read, y written" + ("; once more with their gradients" * training),
        flops=products * (3 if training else 1),
    )


def _eager(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    return reference.token_mixing(x, *parameters, EPS, ACTIVATION)


def _ours(backend: str) -> Callable[..., torch.Tensor]:
    return lambda *inputs: op.token_mixing(*inputs, eps=EPS, activation=ACTIVATION, backend=backend)


def _prepare(function: Callable[..., torch.Tensor]) -> Callable[..., Call]:
    """Return what binds a function to its seven inputs, and to dy where there is one."""

    def prepare(*inputs: torch.Tensor) -> Call:
        arguments, gradient = inputs[:7], inputs[7:]
        if not gradient:
            return lambda: function(*arguments)

        def step() -> tuple[torch.Tensor, ...]:
            y = function(*arguments)
            return y, *torch.autograd.grad(y, arguments, gradient)

        return step

    return prepare


def test_token_mixing(measure_entry: Callable[[], None]) -> None:
    measure_entry()
