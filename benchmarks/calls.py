"""Functions bound to their inputs, and the contenders that ops with one eager form have in common."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from benchmarks import compiled
from benchmarks.contest import OURS, PYTORCH, Call, Contender, kernels

Function = Callable[..., torch.Tensor]


def prepare_call(function: Function, training: bool) -> Callable[..., Call]:
    """Return what binds a function to its inputs; the last of them is dy in training."""
    if not training:
        return lambda *inputs: lambda: function(*inputs)

    def prepare(*inputs: torch.Tensor) -> Call:
        *arguments, dy = inputs

        def step() -> tuple[torch.Tensor, ...]:
            y = function(*arguments)
            return y, *torch.autograd.grad(y, arguments, dy)

        return step

    return prepare


def contenders(
    op: ModuleType, ours: Callable[[str], Function], eager: Function, which: str, device: torch.device
) -> tuple[Contender, ...]:
    """Return every backend of an op, eager PyTorch and what torch.compile makes of it.

    Args:
        op: the op's module.
        ours: backend -> the function of the inputs.
        eager: the same in plain PyTorch.
        which: "fwd" or "fwd+bwd".
        device: where it runs.
    """
    training = which == "fwd+bwd"
    return (
        *(Contender(name, OURS, prepare_call(ours(name), training)) for name in kernels(op, device)),
        Contender("eager", PYTORCH, prepare_call(eager, training)),
        *(
            Contender(name, PYTORCH, prepare_call(compiled.compile_function(eager, mode), training))
            for name, mode in compiled.modes(device, which).items()
        ),
    )
