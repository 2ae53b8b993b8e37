"""The cross-patch half of a ResMLP layer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import compiled, gate, shapes
from benchmarks.contest import OURS, PYTORCH, Call, Contender, Group, kernels
from mixer_kernels.ops.affine_token_linear import op, reference


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for shape, dtype, which in shapes.op_cases("affine_token_linear", device.type, preset):
        yield make_group(shape, dtype, which, device)


def make_group(shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device) -> Group:
    """Return the contenders of one shape (B, S, C), dtype and pass."""
    batch, tokens, channels = shape
    training = which == "fwd+bwd"

    def make_inputs() -> tuple[torch.Tensor, ...]:
        def randn(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(size, device=device) * scale).to(dtype).requires_grad_(training)

        x = randn(batch, tokens, channels)
        affine = randn(channels), randn(channels)
        linear = randn(tokens, tokens, scale=tokens**-0.5), randn(tokens)
        dy = (torch.randn_like(x, requires_grad=False),) if training else ()
        return x, *affine, *linear, randn(channels, scale=1e-4), *dy

    modes = compiled.modes(device, which).items()
    products = 2 * batch * tokens * tokens * channels
    parameters = tokens * tokens + tokens + 3 * channels
    return Group(
        subject="affine_token_linear",
        kind="op",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=(
            *(Contender(name, OURS, _prepare(_ours(name))) for name in kernels(op, device)),
            Contender("eager", PYTORCH, _prepare(reference.affine_token_linear)),
            *(
                Contender(name, PYTORCH, _prepare(compiled.compile_function(reference.affine_token_linear, mode)))
                for name, mode in modes
            ),
        ),
        make_inputs=make_inputs,
        exact=lambda *inputs: _prepare(reference.affine_token_linear)(*gate.in_float64(inputs))(),
        moved=(2 * batch * tokens * channels + parameters) * dtype.itemsize * (2 if training else 1),
        moved_formula="x and the parameters read, y written" + ("; once more with their gradients" * training),
        flops=products * (3 if training else 1),
    )


def _ours(backend: str) -> Callable[..., torch.Tensor]:
    return lambda *inputs: op.affine_token_linear(*inputs, backend=backend)


def _prepare(function: Callable[..., torch.Tensor]) -> Callable[..., Call]:
    """Return what binds a function to its six inputs, and to dy where there is one."""

    def prepare(*inputs: torch.Tensor) -> Call:
        arguments, gradient = inputs[:6], inputs[6:]
        if not gradient:
            return lambda: function(*arguments)

        def step() -> tuple[torch.Tensor, ...]:
            y = function(*arguments)
            return y, *torch.autograd.grad(y, arguments, gradient)

        return step

    return prepare


def test_affine_token_linear(measure_entry: Callable[[], None]) -> None:
    measure_entry()
