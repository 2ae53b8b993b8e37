"""The layers inside PyTorch's larger machinery: compilation, data-parallel and sharded training, adapters, hooks.

Compilation ahead of time and process groups leave state behind: they run in processes of their own, with one thread.
"""

from __future__ import annotations

import copy
import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import mixer_kernels
from mixer_kernels import reference
from mixer_kernels.ops._opaque_op import opaque_op

# name -> (how to build the layer, shape of its input without the batch). A layer that gets a kernel needs one line.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SpatialShift": (lambda: mixer_kernels.SpatialShift(), (5, 6, 8)),
    "S2Block": (lambda: mixer_kernels.S2Block(8), (5, 6, 8)),
    "TokenMixing": (lambda: mixer_kernels.TokenMixing(12, 10), (10, 12)),
    "AffineTokenLinear": (lambda: mixer_kernels.AffineTokenLinear(12, 10, init_values=1.0), (10, 12)),
    "DepthwiseConv2d": (lambda: mixer_kernels.DepthwiseConv2d(8, 5), (8, 7, 6)),
}

PROCESSES = 2
TIMEOUT = 240  # seconds, for a loaded machine


class Scaled(nn.Module):
    """A layer behind learned weights: without the gradient of the layer's input, theirs would be wrong."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.randn(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * self.scale)


def scaled_layers() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Yield name, model and input, the same in every process."""
    for name, (build, shape) in LAYERS.items():
        torch.manual_seed(0)
        yield name, Scaled(build(), shape).double(), torch.randn(2 * PROCESSES, *shape, dtype=torch.float64)


def spawn(function: Callable[..., None], *args: Any, processes: int = 1) -> None:
    """Run ``function(rank, *args)`` in processes, pass their errors on, and leave none behind."""
    context = multiprocessing.spawn(function, args, processes, join=False)
    deadline = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"not done after {TIMEOUT} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
        for path in context.error_files:
            Path(path).unlink(missing_ok=True)


def compile_ahead_of_time(_: int, device: str, package: str) -> None:
    """Compile every layer into one package (each compilation costs seconds) and run it at two batch sizes."""
    torch.set_num_threads(1)
    layers = nn.ModuleDict({name: build() for name, (build, _) in LAYERS.items()}).to(device).eval()

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: layer(inputs[name]) for name, layer in self.layers.items()}

    def inputs(batch: int) -> dict[str, torch.Tensor]:
        return {name: torch.randn(batch, *shape, device=device) for name, (_, shape) in LAYERS.items()}

    with torch.no_grad():
        batch = torch.export.Dim("batch")
        dynamic_shapes = {"inputs": {name: {0: batch} for name in LAYERS}}
        program = torch.export.export(Together(), (inputs(2),), dynamic_shapes=dynamic_shapes)
        called = {str(node.target) for node in program.graph.nodes}
        assert any(target.startswith("mixer_kernels.spatial_shift_fwd") for target in called), called
        options = {"compile_threads": 1}
        torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=options)
        compiled = torch._inductor.aoti_load_package(package)
        for size in (2, 3):
            x = inputs(size)
            y = compiled(x)
            for name, layer in layers.items():
                torch.testing.assert_close(y[name], layer(x[name]), msg=lambda text, name=name: f"{name}: {text}")


def replicate(model: nn.Module) -> nn.Module:
    """Copy the model to every process; gradients are averaged over them."""
    return DistributedDataParallel(model)


def shard(model: nn.Module) -> nn.Module:
    """Split every parameter over the processes."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model.layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_together(rank: int, store: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Train every layer in a group of processes."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    for name, model, x in scaled_layers():
        compare_gradients(name, model, x, rank, wrap)
    # Sharded models are cycles, and hold the group: its threads would end with the interpreter, which aborts them.
    gc.collect()
    distributed.destroy_process_group()


def compare_gradients(
    name: str, model: nn.Module, x: torch.Tensor, rank: int, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Compare gradients of a batch that the processes share with those of one process that has all of it.

    A function of its own, so that no wrapped model outlives the process group: its threads could wait forever for the
    interpreter's lock, and the interpreter for them.
    """
    whole = copy.deepcopy(model)
    whole(x).square().mean().backward()
    wrapped = wrap(model)
    wrapped(x.chunk(PROCESSES)[rank]).square().mean().backward()
    for (key, expected), actual in zip(whole.named_parameters(), wrapped.parameters(), strict=True):
        grad = actual.grad.full_tensor() if hasattr(actual.grad, "full_tensor") else actual.grad
        torch.testing.assert_close(grad, expected.grad, msg=lambda text, at=f"{name}, {key}": f"{at}: {text}")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="AOTInductor needs a C++ compiler")
def test_aot_inductor(device: str, tmp_path: Path) -> None:
    spawn(compile_ahead_of_time, device, str(tmp_path / "layers.pt2"))


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this build of torch has no gloo")
@pytest.mark.parametrize("wrap", [replicate, shard])
def test_distributed_training(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    spawn(train_together, str(tmp_path / "store"), wrap, processes=PROCESSES)


class GivesUp:
    """A context that Dynamo does not trace, nor the function that enters it."""

    def __enter__(self) -> None:
        torch._dynamo.graph_break()

    def __exit__(self, *_: object) -> None:
        pass


def test_dynamo_leaves_the_launches_alone() -> None:
    seen = []

    def launch(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.compiler.is_compiling())
        return x + 1

    op = opaque_op("launch_that_looks_around", torch.empty_like)(launch)

    def given_up(x: torch.Tensor) -> torch.Tensor:
        with GivesUp():
            torch._dynamo.graph_break()
            return op(x)

    x = torch.zeros(3)
    assert (torch.compile(given_up, backend="eager")(x) == 1).all()
    assert seen == [False]


class Adapter(nn.Module):
    """What is put around a layer of a model to fine-tune it, and shows the layer's attributes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.base_layer = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_layer, name)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return 2 * self.base_layer(*inputs)


def adapted(owner: nn.Module, path: str) -> None:
    owner.set_submodule(path, Adapter(owner.get_submodule(path)))


def subclassed(owner: nn.Module, path: str) -> None:
    part = owner.get_submodule(path)
    cls = type(part)
    part.__class__ = type("Subclass", (cls,), {"forward": lambda self, x: 2 * cls.forward(self, x)})


def patched(owner: nn.Module, path: str) -> None:
    part = owner.get_submodule(path)
    part.forward = lambda x: 2 * type(part).forward(part, x)


def hooked(owner: nn.Module, path: str) -> None:
    owner.get_submodule(path).register_forward_hook(lambda module, inputs, output: 2 * output)


def hooked_before(owner: nn.Module, path: str) -> None:
    owner.get_submodule(path).register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def hooked_behind(owner: nn.Module, path: str) -> None:
    owner.get_submodule(path).register_full_backward_hook(lambda module, before, after: (2 * before[0],))


CHANGES = [adapted, subclassed, patched, hooked, hooked_before, hooked_behind]

# name -> (arguments, shape of an input, the parts that the fused layer takes the parameters of and never calls).
BYPASSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]] = {
    "TokenMixing": ((12, 10), (2, 10, 12), ("norm", "fc1", "act", "fc2")),
    "MixerBlock": (
        (12, 10),
        (2, 10, 12),
        ("norm1", "mlp_tokens", "mlp_tokens.fc1", "mlp_tokens.act", "mlp_tokens.fc2"),
    ),
    "AffineTokenLinear": ((12, 10), (2, 10, 12), ("norm", "linear")),
    "ResMLPBlock": ((12, 10), (2, 10, 12), ("norm1", "linear_tokens")),
    "S2Attention": (
        (8,),
        (2, 5, 6, 8),
        ("split_attention", "split_attention.mlp1", "split_attention.act", "split_attention.mlp2"),
    ),
}


def make_layers(name: str, change: Callable[[nn.Module], object] = lambda _: None) -> tuple[nn.Module, nn.Module]:
    """Return the reference layer and the fused one with the same parameters, both changed in the same way."""
    plain, fused = (getattr(layers, name)(*BYPASSED[name][0]).double() for layers in (reference, mixer_kernels))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    fused.load_state_dict(plain.state_dict())
    change(plain)
    change(fused)
    return plain, fused


def results(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "path"), [(name, path) for name, case in BYPASSED.items() for path in case[2]])
def test_parts_that_changed_after_construction_are_called(name: str, path: str, change: Callable[..., None]) -> None:
    plain, fused = make_layers(name, lambda layer: change(layer, path))
    x = torch.randn(BYPASSED[name][1], dtype=torch.float64)
    expected = results(plain, x)
    torch.testing.assert_close(results(fused, x), expected)
    fused.backend = "reference"
    torch.testing.assert_close(results(fused, x), expected)
    with mixer_kernels.use_backend("native"):
        fused(x)
        fused.backend = None
        with pytest.raises(RuntimeError, match=f"{name}: backend 'native' cannot run this call: .*{path}"):
            fused(x)
    fused.backend = "native"
    with pytest.raises(RuntimeError, match=f"{name}: backend 'native' cannot run this call: .*{path}"):
        fused(x)


@pytest.mark.parametrize(
    ("name", "path", "part"),
    [
        ("TokenMixing", "act", nn.GELU("tanh")),
        ("TokenMixing", "norm", nn.LayerNorm((10, 12), elementwise_affine=False)),
        ("MixerBlock", "norm1", nn.Identity()),
        ("MixerBlock", "mlp_tokens.act", nn.ReLU()),
        ("ResMLPBlock", "linear_tokens", nn.Sequential(nn.Linear(10, 10), nn.Tanh())),
        ("S2Attention", "split_attention.act", nn.ReLU()),
        ("S2Attention", "split_attention.mlp1", nn.Linear(8, 8)),
    ],
)
def test_parts_of_another_kind_are_called(name: str, path: str, part: nn.Module) -> None:
    plain, fused = make_layers(name, lambda layer: layer.set_submodule(path, part.double()))
    x = torch.randn(BYPASSED[name][1], dtype=torch.float64)
    torch.testing.assert_close(results(fused, x), results(plain, x))


def test_a_message_says_that_parts_are_called(caplog: pytest.LogCaptureFixture) -> None:
    _, fused = make_layers("MixerBlock", lambda layer: hooked(layer, "mlp_tokens.fc1"))
    with caplog.at_level(logging.DEBUG, logger="mixer_kernels"):
        fused(torch.randn(2, 10, 12, dtype=torch.float64))
    assert "MixerBlock: running the parts as they are: hooks on mlp_tokens.fc1" in caplog.text


def test_an_adapter_in_a_folded_layer_is_called() -> None:
    plain = make_layers("AffineTokenLinear")[0].eval()
    folded = mixer_kernels.fuse(copy.deepcopy(plain))
    adapted(plain, "linear")
    adapted(folded, "linear")
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    torch.testing.assert_close(folded(x), plain(x))


def sharded(layer: nn.Module) -> None:
    """Do to the class of a layer what fully_shard does; it adds hooks, too."""
    layer.__class__ = type(f"FSDP{type(layer).__name__}", (FSDPModule, type(layer)), {})
    layer.register_forward_pre_hook(lambda module, inputs: None)
    layer.register_forward_hook(lambda module, inputs, output: None)


def parametrized(layer: nn.Module) -> None:
    for module in list(layer.modules()):
        if type(module) is nn.Linear:
            parametrizations.weight_norm(module)


# With the backend by name: it raises if the parts would be called.
@pytest.mark.parametrize("change", [sharded, parametrized])
@pytest.mark.parametrize("name", BYPASSED)
def test_layers_that_stay_fused(backend: str, name: str, change: Callable[[nn.Module], None]) -> None:
    plain, fused = make_layers(name, change)
    fused.backend = backend
    x = torch.randn(BYPASSED[name][1], dtype=torch.float64)
    torch.testing.assert_close(results(fused, x), results(plain, x))


@pytest.mark.parametrize("change", [lambda layer: None, parametrized], ids=["plain", "parametrized"])
@pytest.mark.parametrize("name", BYPASSED)
def test_layers_compile_as_one_graph(backend: str, name: str, change: Callable[[nn.Module], object]) -> None:
    torch._dynamo.reset()
    plain, fused = make_layers(name, change)
    fused.backend = backend
    x = torch.randn(BYPASSED[name][1], dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="eager")
    torch.testing.assert_close(results(compiled, x), results(plain, x))


# Dynamo does not trace hooks of the backward.
@pytest.mark.parametrize("change", CHANGES[:5])
def test_layers_with_changed_parts_compile_as_one_graph(change: Callable[..., None]) -> None:
    torch._dynamo.reset()
    plain, fused = make_layers("MixerBlock", lambda layer: change(layer, "mlp_tokens.fc1"))
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    torch.testing.assert_close(results(torch.compile(fused, fullgraph=True, backend="eager"), x), results(plain, x))


@pytest.mark.parametrize("name", BYPASSED)
def test_layers_export(backend: str, name: str) -> None:
    _, fused = make_layers(name)
    fused.backend = backend
    x = torch.randn(BYPASSED[name][1], dtype=torch.float64)
    program = torch.export.export(fused, (x,))
    assert any("mixer_kernels" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), fused(x))


# name -> (the function that is called in the traced layer, how to build it, shape of its input).
TRACED: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = {
    "SpatialShift": ("spatial_shift", lambda: mixer_kernels.SpatialShift(), (2, 5, 6, 8)),
    "S2Block": ("shifted_split_attention", lambda: mixer_kernels.S2Block(8), (2, 5, 6, 8)),
    "TokenMixing": ("token_mixing", lambda: mixer_kernels.TokenMixing(12, 10), (2, 10, 12)),
    "MixerBlock": ("token_mixing", lambda: mixer_kernels.MixerBlock(12, 10), (2, 10, 12)),
    "AffineTokenLinear": ("affine_token_linear", lambda: mixer_kernels.AffineTokenLinear(12, 10), (2, 10, 12)),
    "ResMLPBlock": ("affine_token_linear", lambda: mixer_kernels.ResMLPBlock(12, 10), (2, 10, 12)),
    "folded ResMLPBlock": (
        "affine_token_linear",
        lambda: mixer_kernels.fuse(mixer_kernels.ResMLPBlock(12, 10).eval()).requires_grad_(),
        (2, 10, 12),
    ),
    "DepthwiseConv2d": ("depthwise_conv2d", lambda: mixer_kernels.DepthwiseConv2d(8, 5), (2, 8, 7, 6)),
    "padded DepthwiseConv2d": (
        "depthwise_conv2d",
        lambda: mixer_kernels.DepthwiseConv2d(8, 5, padding=2, padding_mode="reflect"),
        (2, 8, 7, 6),
    ),
    "ConvMixerLayer": ("depthwise_conv2d", lambda: mixer_kernels.ConvMixerLayer(8, 5), (2, 8, 7, 6)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TRACED)
def test_symbolic_tracing_takes_ops_as_they_are(name: str, training: bool) -> None:
    function, build, shape = TRACED[name]
    layer = build().double().train(training)
    with torch.set_grad_enabled(training):
        traced = torch.fx.symbolic_trace(copy.deepcopy(layer))
    targets = [node.target for node in traced.graph.nodes]
    assert targets.count(getattr(mixer_kernels.functional, function)) == 1
    x = torch.randn(shape, dtype=torch.float64)
    # The traced layer has its parameters in another order.
    names, traced_names = (["", "x", *dict(module.named_parameters())] for module in (layer, traced))
    expected = dict(zip(names, results(layer, x), strict=True))
    torch.testing.assert_close(dict(zip(traced_names, results(traced, x), strict=True)), expected)
    # It has no buffers that it does not use.
    state = layer.state_dict()
    torch.testing.assert_close(traced.state_dict(), {key: state[key] for key in traced.state_dict()})


def test_an_exported_conv_mixer_layer_keeps_its_statistics_apart() -> None:
    layer = mixer_kernels.ConvMixerLayer(8, 5)
    x = torch.randn(2, 8, 6, 6)
    program = torch.export.export(copy.deepcopy(layer), (x,)).module()
    torch.testing.assert_close(program(x), layer(x))
    for (name, ours), theirs in zip(program.named_buffers(), layer.buffers(), strict=True):
        assert not ours.requires_grad, name
        torch.testing.assert_close(ours, theirs)


def test_hooks_on_every_module_are_called() -> None:
    plain, fused = make_layers("MixerBlock")
    x = torch.randn(BYPASSED["MixerBlock"][1], dtype=torch.float64)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, y: 1.5 * y if isinstance(module, nn.Linear) else None
    )
    try:
        torch.testing.assert_close(fused(x), plain(x))
    finally:
        hook.remove()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_norm_that_counts_no_batches(backend: str, momentum: float | None) -> None:
    plain, fused = (layers.ConvMixerLayer(6, 5).double() for layers in (reference, mixer_kernels))
    fused.load_state_dict(plain.state_dict())
    fused.backend = backend
    for layer in (plain, fused):
        layer[0].fn[2].num_batches_tracked, layer[0].fn[2].momentum = None, momentum
    x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(results(fused, x), results(plain, x))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


@pytest.mark.parametrize("path", ["0", "0.fn", "0.fn.0", "0.fn.1", "0.fn.2"])
@pytest.mark.parametrize("change", [adapted, subclassed, patched])
def test_changed_parts_of_a_conv_mixer_layer_are_called(change: Callable[..., None], path: str) -> None:
    plain, fused = (layers.ConvMixerLayer(6, 5).double() for layers in (reference, mixer_kernels))
    fused.load_state_dict(plain.state_dict())
    for layer in (plain, fused):
        change(layer, path)
    x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(results(fused, x), results(plain, x))
