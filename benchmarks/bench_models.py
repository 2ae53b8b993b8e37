"""Whole published models against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import compiled, gate, shapes
from benchmarks.contest import OURS, PYTORCH, Call, Contender, Group
from mixer_kernels import models


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of the models that have a fused layer."""
    fused = {name for name in models.list_models() if has_fused_layers(name)}
    for model, shape, dtype, which in shapes.model_cases(device.type, preset):
        if model in fused:
            yield make_group(model, shape, dtype, which, device, by_block=preset == shapes.QUICK)


def has_fused_layers(name: str) -> bool:
    """Return whether any layer of a model differs from the plain PyTorch of its reference."""
    return any(type(layer).__module__.startswith("mixer_kernels.nn") for layer in _on_meta(name, None).modules())


def make_group(
    model: str, shape: tuple[int, ...], dtype: torch.dtype, which: str, device: torch.device, *, by_block: bool
) -> Group:
    """Return the contenders of one model, input shape, dtype and pass; ``by_block`` as in ``compile_model``."""
    training = which == "fwd+bwd"

    def build(backend: str | None) -> nn.Module:
        # All contenders have the weights of the reference model of one seed.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            plain = models.create_model(model, backend="reference", device=device)
        if backend == "reference":
            return plain.to(dtype).train(training)
        fused = models.create_model(model, backend=backend, device=device)
        fused.load_state_dict(plain.state_dict())
        return fused.to(dtype).train(training)

    def make_inputs() -> tuple[torch.Tensor, ...]:
        x = torch.randn(shape, device=device, dtype=dtype)
        return (x, torch.randn(shape[0], 1000, device=device, dtype=dtype)) if training else (x,)

    def contender(
        name: str, role: str, backend: str | None, compile_: Callable[[nn.Module], nn.Module] | None = None
    ) -> Contender:
        def make_call(*inputs: torch.Tensor) -> Call:
            model = build(backend)
            return _bind(compile_(model) if compile_ else model, *inputs)

        return Contender(name, role, make_call, compiled=compile_ is not None)

    def in_channels_last(name: str, role: str, backend: str | None) -> Contender:
        def make_call(x: torch.Tensor, *rest: torch.Tensor) -> Call:
            model = build(backend).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return _bind(model, x.contiguous(memory_format=torch.channels_last), *rest)

        return Contender(name, role, make_call)

    modes = {(f"{name} by block" if by_block else name): mode for name, mode in compiled.modes(device, which).items()}

    def compiler(mode: str | None) -> Callable[[nn.Module], nn.Module]:
        return lambda module: compiled.compile_model(module, mode, by_block)

    return Group(
        subject=model,
        kind="model",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=(
            contender("mixer_kernels", OURS, None),
            in_channels_last("mixer_kernels, channels_last", OURS, None),
            *(contender(f"mixer_kernels, {name}", OURS, None, compiler(mode)) for name, mode in modes.items()),
            contender("eager", PYTORCH, "reference"),
            in_channels_last("channels_last", PYTORCH, "reference"),
            *(contender(name, PYTORCH, "reference", compiler(mode)) for name, mode in modes.items()),
        ),
        make_inputs=make_inputs,
        exact=lambda *inputs: _bind(build("reference").double(), *gate.in_float64(inputs))(),
        flops=_forward_flops(model, shape) * (3 if training else 1),
    )


def _bind(model: nn.Module, x: torch.Tensor, dy: torch.Tensor | None = None) -> Call:
    if dy is None:
        return lambda: model(x)
    parameters = list(model.parameters())

    def step() -> tuple[torch.Tensor, ...]:
        y = model(x)
        return y, *torch.autograd.grad(y, parameters, dy)

    return step


def _on_meta(name: str, backend: str | None) -> nn.Module:
    return models.create_model(name, backend=backend, device="meta")


def _forward_flops(name: str, shape: tuple[int, ...]) -> int:
    """Count matrix products and convolutions; a backward does twice as many."""
    with FlopCounterMode(display=False) as counter:
        _on_meta(name, "reference")(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops())


def test_models(measure_entry: Callable[[], None]) -> None:
    measure_entry()
