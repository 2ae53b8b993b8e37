"""The layers inside PyTorch's larger machinery: ahead-of-time compilation, data-parallel and sharded training.

Everything runs in processes of its own with one thread each: compilers and process groups leave state behind.
"""

from __future__ import annotations

import copy
import gc
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
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import mixer_kernels
from mixer_kernels.ops._triton_op import triton_op

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

    op = triton_op("launch_that_looks_around", torch.empty_like)(launch)

    def given_up(x: torch.Tensor) -> torch.Tensor:
        with GivesUp():
            torch._dynamo.graph_break()
            return op(x)

    x = torch.zeros(3)
    assert (torch.compile(given_up, backend="eager")(x) == 1).all()
    assert seen == [False]
