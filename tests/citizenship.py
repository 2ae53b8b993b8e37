"""An op of several inputs under torch.compile, torch.export, autocast and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accuracy import Function, Tensors, in_float64, with_gradients


def assert_compiles(
    ours: Function, reference: Function, make_inputs: Callable[[int], Tensors], compiler: str, dynamic: bool
) -> None:
    """Compile forward and backward as one graph; ``make_inputs`` takes the number of images."""
    torch._dynamo.reset()

    def loss(function: Function) -> Function:
        return lambda *inputs: function(*inputs).square().sum()

    compiled = torch.compile(loss(ours), fullgraph=True, dynamic=dynamic, backend=compiler)
    for batch in (2, 3) if dynamic else (2,):
        inputs = make_inputs(batch)
        actual, expected = with_gradients(compiled, inputs), with_gradients(loss(reference), inputs)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def assert_exports(layer: torch.nn.Module, x: torch.Tensor) -> None:
    """Export a layer as one of our ops, for any number of images."""
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(layer, (x,), dynamic_shapes=(dynamic,))
    assert any("mixer_kernels" in str(node.target) for node in program.graph.nodes)
    more = torch.cat((x, x, x)) + 1
    torch.testing.assert_close(program.module()(more), layer(more))


def assert_accurate_under_autocast(
    ours: Function, reference: Function, inputs: Tensors, device: str, dtype: torch.dtype
) -> None:
    """Take float32 inputs to an output of ``dtype`` under autocast to bfloat16, as accurately as PyTorch does."""
    with torch.autocast(device, dtype=torch.bfloat16):
        actual, expected = with_gradients(ours, inputs), with_gradients(reference, inputs)
    assert actual[0].dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in actual[1:])
    for one, other, truth in zip(actual, expected, with_gradients(reference, in_float64(inputs)), strict=True):
        error, allowed = ((value.double() - truth).norm() / truth.norm() for value in (one, other))
        assert error <= 2 * allowed


def assert_captures(ours: Function, inputs: Tensors) -> None:
    """Capture a CUDA graph and replay it on new values."""
    ours(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ours(*inputs)
    inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    assert torch.equal(y, ours(*inputs))
