"""The spatial shift of S2-MLPv2 against PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks import compiled, gate, shapes
from benchmarks.contest import CEILING, OURS, PYTORCH, Call, Contender, Group, kernels
from mixer_kernels.ops.spatial_shift import op, reference

Function = Callable[[torch.Tensor], torch.Tensor]

CODES = [op.DIRECTION_CODES[name] for name in reference.SHIFT_1]


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for shape, dtype, which in shapes.op_cases("spatial_shift", device.type, preset):
        yield make_group(shape, dtype, which, device)


def make_group(shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device) -> Group:
    """Return the contenders of one shape, dtype and pass."""

    def make_inputs() -> tuple[torch.Tensor, ...]:
        x = torch.randn(shape, device=device, dtype=dtype)
        if which in ("fwd", "fwd_", "bwd_"):
            return (x,)
        return x.requires_grad_(), torch.randn(shape, device=device, dtype=dtype)

    elements = torch.Size(shape).numel()
    directions = 2 if which == "fwd+bwd" else 1
    baselines = [
        Contender("eager", PYTORCH, _prepare(which, reference.spatial_shift)),
        *(
            Contender(name, PYTORCH, _prepare(which, compiled.compile_function(reference.spatial_shift, mode)))
            for name, mode in compiled.modes(device, which).items()
        ),
    ]
    ours = [Contender(name, OURS, _prepare_ours(which, name)) for name in kernels(op, device)]
    return Group(
        subject="spatial_shift",
        kind="op",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=(*ours, *baselines, *_ceilings(which)),
        make_inputs=make_inputs,
        exact=lambda *inputs: _prepare(which, reference.spatial_shift)(*gate.in_float64(inputs))(),
        in_place=which in ("fwd_", "bwd_"),
        moved=2 * directions * elements * dtype.itemsize,
        moved_formula="each element read once and written once" + (", in both directions" if directions == 2 else ""),
    )


def _prepare(which: str, function: Function) -> Callable[..., Call]:
    """Return what binds one of PyTorch's forms, out of place: what is correct there in place takes a copy as well."""

    def prepare(x: torch.Tensor, dy: torch.Tensor | None = None) -> Call:
        if which in ("fwd", "fwd_"):
            return lambda: function(x)
        if which == "fwd+bwd":
            return lambda: _with_gradient(function(x), x, dy)
        if which == "bwd_":
            x, dy = torch.empty_like(x).requires_grad_(), x
        y = function(x)
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    return prepare


def _prepare_ours(which: str, backend: str) -> Callable[..., Call]:
    implementation = op.IMPLEMENTATIONS[backend]

    def prepare_in_place(x: torch.Tensor) -> Call:
        if which == "fwd_":
            return lambda: op.spatial_shift_(x, backend=backend)

        def adjoint() -> torch.Tensor:
            implementation.backward_(x, CODES)
            return x

        return adjoint

    if which in ("fwd_", "bwd_"):
        return prepare_in_place
    return _prepare(which, lambda x: op.spatial_shift(x, backend=backend))


def _with_gradient(y: torch.Tensor, x: torch.Tensor, dy: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return y, *torch.autograd.grad(y, x, dy)


def _ceilings(which: str) -> list[Contender]:
    """Return copies that move as many bytes, in place or out of place.

    Two of each: on a CPU `mul_` in low precision waits for conversions rather than memory, and the pages of a large
    new tensor cost more than filling them.
    """
    if which in ("fwd_", "bwd_"):
        return [
            Contender("mul_", CEILING, lambda x: lambda: x.mul_(1.0)),
            Contender("add_ as int32", CEILING, lambda x: functools.partial(x.detach().view(torch.int32).add_, 0)),
        ]

    def sources(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return [value.detach() for value in (inputs[1:] if which == "bwd" else inputs)]

    def prepare_clone(*inputs: torch.Tensor) -> Call:
        return lambda: [source.clone() for source in sources(*inputs)]

    def prepare_copy(*inputs: torch.Tensor) -> Call:
        pairs = [(torch.empty_like(source), source) for source in sources(*inputs)]
        return lambda: [target.copy_(source) for target, source in pairs]

    return [Contender("clone", CEILING, prepare_clone), Contender("copy_", CEILING, prepare_copy)]


def test_spatial_shift(measure_entry: Callable[[], None]) -> None:
    measure_entry()
