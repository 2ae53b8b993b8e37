"""The depthwise convolution and the layers on it, on every device and backend, against the reference in float64."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tolerances import assert_as_accurate
from torch import nn
from torch._prims_common import suggest_memory_format
from torch.library import opcheck

import mixer_kernels
import mixer_kernels.functional as MF
from mixer_kernels import reference as reference_layers
from mixer_kernels.ops._activation import ACTIVATION_CODES, apply_activation
from mixer_kernels.ops.depthwise_conv2d import depthwise_conv2d_batch_norm
from mixer_kernels.ops.depthwise_conv2d.op import IMPLEMENTATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = tuple(ACTIVATION_CODES)
# (B, C, H, W), (KH, KW), how the kernel moves
CASES = (
    ((3, 16, 13, 17), (1, 1), {}),
    ((1, 3, 1, 1), (1, 1), {}),
    ((1, 30, 9, 8), (2, 2), {}),
    ((3, 3, 12, 19), (3, 3), {"stride": 2, "padding": 1}),
    ((3, 40, 10, 11), (3, 3), {"dilation": 2}),
    ((2, 1, 6, 7), (3, 3), {"padding": (20, 30)}),
    ((1, 16, 20, 23), (5, 5), {"padding": "valid"}),
    ((1, 3, 24, 40), (5, 5), {"padding": (9, 0), "stride": 2, "dilation": (2, 3)}),
    ((2, 30, 14, 14), (7, 7), {}),
    ((3, 5, 1, 1), (7, 7), {}),
    ((3, 16, 11, 18), (8, 8), {}),
    ((2, 40, 32, 32), (9, 9), {}),
    ((1, 3, 70, 1), (9, 9), {}),
    ((1, 3, 1, 70), (9, 9), {}),
    ((3, 16, 9, 9), (9, 9), {"padding": "valid"}),
    ((1, 30, 33, 34), (9, 9), {"stride": (1, 2), "padding": (4, 3)}),
    ((2, 16, 30, 31), (9, 9), {"stride": (3, 1), "padding": "valid", "dilation": (1, 2)}),
    ((1, 16, 16, 21), (31, 31), {}),
    ((1, 16, 33, 40), (31, 31), {"padding": "valid", "stride": 2}),
    ((1, 16, 12, 20), (63, 63), {}),
    ((1, 16, 20, 17), (51, 5), {}),
    ((1, 16, 20, 17), (5, 51), {}),
    ((3, 30, 7, 22), (1, 9), {}),
    ((2, 3, 16, 32), (31, 31), {}),
    # With AVX2: two vectors and one more, several blocks of rows and a part of one, a kernel in parts.
    ((1, 3, 22, 24), (31, 31), {}),
    ((2, 150, 11, 13), (5, 5), {}),
)
# Layouts: name -> how to turn a contiguous (B, C, H, W) tensor into one of the same values.
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "slice": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
    "every_other": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
    "every_other_channel": lambda x: torch.stack((x, x), 2).flatten(1, 2)[:, ::2],
    "channels_last_slice": lambda x: LAYOUTS["channels_last"](torch.cat((x, x), 1))[:, : x.shape[1]],
    "misaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "channels_first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}
NCHW, NHWC = torch.contiguous_format, torch.channels_last
# The ratio of two errors of fewer elements is luck.
FEW = 32
ISAS = ["baseline", "avx2", "avx512", "avx512_bf16", "amx"]

Tensors = Sequence[torch.Tensor | None]


def draw(
    sizes: Sequence[int], kernel: Sequence[int], dtype: torch.dtype, device: str = "cpu"
) -> list[torch.Tensor | None]:
    """Return x, weight, bias, scale and shift."""
    channels = sizes[1]
    drawn = [
        torch.randn(sizes),
        torch.randn(channels, 1, *kernel) * (kernel[0] * kernel[1]) ** -0.5,
        *(torch.randn(channels), 1 + 0.2 * torch.randn(channels), torch.randn(channels)),
    ]
    return [value.to(device, dtype) for value in drawn]


def like_output(inputs: Tensors, **options: Any) -> torch.Tensor:
    """Return random numbers of the shape that the inputs give."""
    x, weight = inputs[:2]
    shape = op("reference", **options)(x.to("meta"), weight.to("meta")).shape
    return torch.randn(shape, dtype=torch.float64).to(x)


def with_residual(inputs: Tensors, **options: Any) -> Tensors:
    """Return the inputs and a residual of the result's shape."""
    return [*inputs, like_output(inputs, **options)]


def op(backend: str | None, **options: Any) -> Callable[..., torch.Tensor]:
    """Return the op of x, weight, bias, scale, shift and residual; the last may be left out."""

    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Any = None,
        scale: Any = None,
        shift: Any = None,
        residual: Any = None,
    ) -> torch.Tensor:
        return MF.depthwise_conv2d(
            x, weight, bias, scale=scale, shift=shift, residual=residual, backend=backend, **options
        )

    return run


def by_the_definition(
    x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: Sequence[int], dilation: tuple[int, int]
) -> torch.Tensor:
    """Pixel by pixel, tap by tap: an oracle that shares nothing with the reference."""
    (batch, channels, height, width), (rows, columns) = x.shape, weight.shape[2:]
    top, bottom, left, right = padding
    out_height = (height + top + bottom - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    out_width = (width + left + right - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    y = x.new_zeros(batch, channels, out_height, out_width)
    for h, w, i, j in itertools.product(range(out_height), range(out_width), range(rows), range(columns)):
        row, column = h * stride[0] + i * dilation[0] - top, w * stride[1] + j * dilation[1] - left
        if 0 <= row < height and 0 <= column < width:
            y[:, :, h, w] += weight[:, 0, i, j] * x[:, :, row, column]
    return y


def with_gradients(
    function: Callable[..., torch.Tensor],
    inputs: Tensors,
    dy: torch.Tensor | None = None,
    arrange: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    *,
    one_pass: bool = True,
) -> list[torch.Tensor]:
    """Return the output without and with gradients, and those of all inputs that take part.

    Args:
        function: of the inputs.
        inputs: x, weight, bias, scale, shift and residual.
        dy: the output's gradient, or ones.
        arrange: gives the function its maps in another layout.
        one_pass: whether the first output is one of its own, or the second once more.
    """
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in inputs]

    def run() -> torch.Tensor:
        maps = {0, 5}
        return function(*(arrange(v) if i in maps and v is not None else v for i, v in enumerate(leaves)))

    y = run()
    first = y.detach()
    if one_pass:
        with torch.no_grad():
            first = run()
    y.backward(torch.ones((), dtype=y.dtype, device=y.device).expand(y.shape) if dy is None else dy.to(y.dtype))
    return [first, y.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


def assert_accurate(
    backend: str,
    make_inputs: Callable[[], Tensors],
    arrange: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    few: int = FEW,
    **options: Any,
) -> None:
    """Hold outputs and gradients to the rule of tolerances.py, pooled until none has only a few elements."""
    pooled: list[list[torch.Tensor]] = [[], [], []]
    while not pooled[0] or min(value.numel() for value in pooled[0]) < few:
        inputs = make_inputs()
        exact_inputs = [None if value is None else value.double() for value in inputs]
        dy = like_output(inputs, **options)
        results = (
            with_gradients(op(backend, **options), inputs, arrange(dy), arrange),
            with_gradients(op("reference", **options), inputs, dy, one_pass=False),
            with_gradients(op("reference", **options), exact_inputs, dy, one_pass=False),
        )
        memory_format = suggest_memory_format(arrange(inputs[0]))
        assert all(y.is_contiguous(memory_format=memory_format) for y in results[0][:2])
        for pool, result in zip(pooled, results, strict=True):
            pool[:] = [
                torch.cat([before, value.flatten()])
                for before, value in zip(pool or [value.new_empty(0) for value in result], result, strict=True)
            ]
    for ours, theirs, truth in zip(*pooled, strict=True):
        assert_as_accurate(ours, theirs, truth)


@pytest.mark.parametrize(
    ("kernel", "options", "geometry"),
    [
        ((3, 3), {}, ((1, 1), (1, 1, 1, 1), (1, 1))),
        ((4, 2), {}, ((1, 1), (1, 2, 0, 1), (1, 1))),
        ((4, 2), {"dilation": (2, 3)}, ((1, 1), (3, 3, 1, 2), (2, 3))),
        ((3, 4), {"padding": "valid", "stride": (1, 2)}, ((1, 2), (0, 0, 0, 0), (1, 1))),
        ((3, 4), {"padding": 2, "stride": 3, "dilation": 2}, ((3, 3), (2, 2, 2, 2), (2, 2))),
        ((2, 5), {"padding": (1, 5)}, ((1, 1), (1, 1, 5, 5), (1, 1))),
    ],
)
def test_reference_is_the_definition(kernel, options, geometry):
    x, weight, bias, scale, shift = draw((2, 3, 7, 8), kernel, torch.float64)
    for activation in ACTIVATIONS:
        z = by_the_definition(x, weight, *geometry) + bias.view(-1, 1, 1)
        residual = torch.randn_like(z)
        expected = residual + scale.view(-1, 1, 1) * apply_activation(z, activation) + shift.view(-1, 1, 1)
        actual = op("reference", activation=activation, **options)(x, weight, bias, scale, shift, residual)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("sizes", "kernel", "options"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_forward_and_backward_are_accurate(device, backend, memory_format, dtype, sizes, kernel, options, whole):
    def inputs() -> Tensors:
        drawn = draw(sizes, kernel, dtype, device)
        return with_residual(drawn, **options) if whole else drawn[:3]

    def arrange(x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=memory_format)

    assert_accurate(backend, inputs, arrange, activation="gelu" if whole else None, **options)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize(("sizes", "kernel"), [((1, 3, 300, 513), (7, 9)), ((2, 64, 96, 96), (3, 3))], ids=str)
def test_a_large_map(device, backend, memory_format, dtype, sizes, kernel, whole):
    assert_accurate(
        backend,
        lambda: draw(sizes, kernel, dtype, device)[: None if whole else 3],
        lambda x: x.contiguous(memory_format=memory_format),
        few=3 if device == "cpu" else FEW,  # a CPU takes long
        activation="gelu" if whole else None,
    )


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_several_tiles_of_narrow_rows(memory_format, stride, isa):
    # In NCHW all rows of a tile come in as one.
    for channels, width in ((3, 13), (72, 21)):
        assert_accurate(
            "native",
            lambda channels=channels, width=width: draw((1, channels, 200, width), (7, 5), torch.float32)[:3],
            lambda x: x.contiguous(memory_format=memory_format),
            few=3,
            stride=stride,
            padding=3,
        )


@pytest.mark.parametrize(
    ("channels", "dtype", "tolerance"),
    [(3, torch.float32, 1e-4), (32, torch.float32, 1e-4), (64, torch.bfloat16, 0.1)],
    ids=str,
)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_every_width_and_height(device, backend, memory_format, channels, dtype, tolerance):
    for size, kernel in itertools.product(range(1, 71), (3, 9)):
        for height, width in ((size, 7), (5, size)):
            inputs = draw((1, channels, height, width), (kernel, kernel), dtype, device)[:3]
            dy = torch.randn_like(inputs[0])
            actual = with_gradients(op(backend), inputs, dy, lambda x: x.contiguous(memory_format=memory_format))
            expected = with_gradients(op("reference"), [value.double() for value in inputs], dy)
            for ours, truth in zip(actual, expected, strict=True):
                torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)


def test_more_channels_than_a_grid_has_blocks(device, backend):
    x, weight, bias, scale, shift = draw((2, 65537, 1, 1), (3, 3), torch.float32, device)
    y, _, dx, dweight, dbias, *_ = with_gradients(op(backend), (x, weight, bias, scale, shift))
    middle = weight[:, 0, 1, 1].view(-1, 1, 1)
    expected = scale.view(-1, 1, 1) * (middle * x + bias.view(-1, 1, 1)) + shift.view(-1, 1, 1)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dx, (scale.view(-1, 1, 1) * middle).expand_as(x))
    torch.testing.assert_close(dweight[:, 0, 1, 1], scale * x.sum((0, 2, 3)))
    torch.testing.assert_close(dbias, 2 * scale)
    assert dweight.count_nonzero() <= 65537


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(device, backend, dtype, layout):
    for sizes, kernel in (((2, 16, 9, 14), (5, 5)), ((3, 5, 6, 7), (3, 4)), ((2, 18, 9, 21), (9, 9))):
        assert_accurate(
            backend,
            lambda sizes=sizes, kernel=kernel: with_residual(draw(sizes, kernel, dtype, device)),
            LAYOUTS[layout],
            activation="gelu",
        )
    assert_accurate(
        backend, lambda: draw((2, 16, 9, 14), (5, 5), dtype, device)[:3], LAYOUTS[layout], stride=2, padding=2
    )


def test_a_residual_and_a_gradient_of_another_layout_than_x(device, backend):
    inputs = with_residual(draw((2, 16, 9, 14), (5, 5), torch.float32, device))
    dy = torch.randn_like(inputs[0])
    expected = with_gradients(op("reference", activation="gelu"), inputs, dy)
    last, first = LAYOUTS["channels_last"], torch.Tensor.contiguous
    for of_x, of_residual, of_dy in itertools.product((first, last), repeat=3):

        def mixed(x: torch.Tensor, *others: Any, of_x: Any = of_x, of_residual: Any = of_residual) -> torch.Tensor:
            return op(backend, activation="gelu")(of_x(x), *others[:-1], of_residual(others[-1]))

        for ours, theirs in zip(with_gradients(mixed, inputs, of_dy(dy)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_expanded_tensors(device, backend, activation):
    x, *parameters = draw((1, 1, 9, 8), (3, 3), torch.float32, device)
    parameters = [value.repeat(6, *(1,) * (value.dim() - 1)) for value in parameters]
    residual = torch.randn(1, 6, 1, 1, device=device).expand(3, 6, 9, 8)
    inputs = [x.expand(3, 6, 9, 8), *parameters, residual]
    # The gradient of a sum is expanded, too.
    actual = with_gradients(op(backend, activation=activation), inputs)
    expected = with_gradients(op("reference", activation=activation), inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(op(backend, activation=activation)(*inputs), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment_changes_no_bit(device, backend, dtype):
    inputs = with_residual(draw((2, 16, 9, 14), (5, 5), dtype, device))
    dy = torch.randn_like(inputs[0])
    expected = with_gradients(op(backend, activation="gelu"), inputs, dy)
    for offset in (1, 3):

        def shifted(x: torch.Tensor, offset: int = offset) -> torch.Tensor:
            return torch.cat((x.new_zeros(offset), x.flatten()))[offset:].view(x.shape)

        actual = with_gradients(op(backend, activation="gelu"), inputs, shifted(dy), shifted)
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_activations(device, backend, memory_format, activation):
    # In float32: what relu does to a value that low precision moved across zero is luck.
    assert_accurate(
        backend,
        lambda: with_residual(draw((3, 16, 9, 14), (3, 3), torch.float32, device)),
        lambda x: x.contiguous(memory_format=memory_format),
        activation=activation,
    )


def test_activations_of_extreme_values(device, backend):
    x = torch.linspace(-30, 30, 4002, device=device).view(1, 2, 3, -1)
    weight = torch.ones(2, 1, 1, 1, device=device)
    for activation in ACTIVATIONS:
        inputs = (x, weight, *torch.ones(3, 2, device=device).unbind())
        actual = with_gradients(op(backend, activation=activation), inputs)
        expected = with_gradients(op("reference", activation=activation), inputs)
        for ours, theirs in zip(actual[:3], expected[:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_absent_parameters(device, backend, dtype, activation):
    for count in range(5):
        for absent in itertools.combinations((2, 3, 4, 5), count):

            def some(absent: tuple[int, ...] = absent) -> Tensors:
                every = with_residual(draw((2, 16, 8, 9), (3, 3), dtype, device))
                return [None if i in absent else value for i, value in enumerate(every)]

            assert_accurate(backend, some, activation=activation)


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_residual_may_be_x(device, backend, dtype, activation):
    inputs = draw((2, 16, 9, 14), (5, 5), dtype, device)
    dy = torch.randn_like(inputs[0])

    def run(name: str, given: Tensors) -> list[torch.Tensor]:
        return with_gradients(lambda x, *rest: op(name, activation=activation)(x, *rest, x), given, dy)

    results = run(backend, inputs), run("reference", inputs), run("reference", [value.double() for value in inputs])
    for ours, theirs, truth in zip(*results, strict=True):
        if ours.numel() >= FEW:
            assert_as_accurate(ours, theirs, truth)
        torch.testing.assert_close(ours.double(), truth, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scale_and_shift_kept_in_float32(device, backend, dtype):
    for kept, activation in itertools.product(((3, 4), (3,), (4,)), (None, "gelu")):

        def mixed(kept: tuple[int, ...] = kept) -> Tensors:
            every = with_residual(draw((2, 16, 8, 9), (3, 3), dtype, device))
            return [value.float() if i in kept else value for i, value in enumerate(every)]

        assert_accurate(backend, mixed, activation=activation)
        inputs = mixed()
        gradients = with_gradients(op(backend, activation=activation), inputs)[2:]
        assert [value.dtype for value in gradients] == [value.dtype for value in inputs]


def test_autocast(device, backend):
    inputs = with_residual(draw((2, 16, 9, 14), (5, 5), torch.float32, device))
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = with_gradients(op(backend, activation="gelu"), inputs)
        expected = with_gradients(op("reference", activation="gelu"), inputs)
    exact = with_gradients(op("reference", activation="gelu"), [value.double() for value in inputs])
    assert actual[0].dtype == actual[1].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in actual[2:])
    for ours, theirs, truth in zip(actual, expected, exact, strict=True):
        error, allowed = ((value.double() - truth).norm() / truth.norm() for value in (ours, theirs))
        assert error <= 2 * allowed


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_float64_is_exact(activation):
    pytest.importorskip("mixer_kernels._C")
    for sizes, kernel, options in CASES[:12]:
        inputs = with_residual(draw(sizes, kernel, torch.float64), **options)
        dy = torch.randn_like(inputs[-1])
        expected = with_gradients(op("reference", activation=activation, **options), inputs, dy)
        for arrange in (torch.clone, LAYOUTS["channels_last"], LAYOUTS["transposed"]):
            run = op("native", activation=activation, **options)
            for ours, theirs in zip(with_gradients(run, inputs, arrange(dy), arrange), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    for (sizes, kernel, options), arrange in itertools.product(
        (*CASES[1:19:3], CASES[11], CASES[17], *CASES[-2:]), (torch.clone, LAYOUTS["channels_last"])
    ):

        def whole(sizes: Any = sizes, kernel: Any = kernel, options: Any = options) -> Tensors:
            return with_residual(draw(sizes, kernel, dtype), **options)

        assert_accurate("native", whole, arrange, activation="gelu", **options)
        assert_accurate("native", lambda whole=whole: whole()[:3], arrange, **options)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_small_integers_are_exact(memory_format, isa):
    # Minimal filtering takes sums and differences of inputs and of weights: none may be of another one.
    kernels = [(7, 7), (9, 9), (9, 8), (8, 10), (11, 11), (5, 31), (51, 5), (31, 3), (63, 4)]
    channels = 70 if memory_format is NHWC else 3
    for kernel, height, width in itertools.product(kernels, (1, 19), (1, 15, 34, 65)):
        x = torch.randint(-8, 9, (2, channels, height, width)).float().contiguous(memory_format=memory_format)
        weight = torch.randint(-4, 5, (channels, 1, *kernel)).float()
        for padding in ("same", (kernel[0] // 2, 2), (kernel[0], kernel[1] + 5)):
            if padding == "same" or width + 2 * padding[1] >= kernel[1]:
                y = op("native", padding=padding)(x, weight)
                assert torch.equal(y, op("reference", padding=padding)(x.contiguous(), weight))


TALL_KERNELS = [(31, 31), (32, 21), (37, 23), (63, 22)]


@functools.cache
def small_integers(
    kernel: tuple[int, int], height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, dict[Any, torch.Tensor]]:
    """Return x and weight, and the output for each padding: the reference takes longer than all instruction sets."""
    x = torch.randint(-8, 9, (2, 72, height, width)).float()
    weight = torch.randint(-4, 5, (72, 1, *kernel)).float()
    paddings = ("same", (kernel[0] // 2 + 3, kernel[1]))
    return x, weight, {padding: op("reference", padding=padding)(x, weight) for padding in paddings}


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_small_integers_under_tall_kernels_are_exact(memory_format, isa):
    # Minimal filtering along the columns of a map, too.
    for kernel, height, width in itertools.product(TALL_KERNELS, (25, 70), (1, 34)):
        x, weight, outputs = small_integers(kernel, height, width)
        for padding, expected in outputs.items():
            y = op("native", padding=padding)(x.contiguous(memory_format=memory_format), weight)
            assert torch.equal(y, expected)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tall_kernels(dtype, isa):
    for layout in (torch.clone, LAYOUTS["channels_last"], LAYOUTS["transposed"]):

        def whole() -> Tensors:
            return with_residual(draw((1, 32, 29, 40), (31, 31), dtype))

        assert_accurate("native", whole, layout, activation="gelu")
        assert_accurate("native", lambda: whole()[:3], layout)
    # Several tiles above each other, and whole groups of blocks of channels.
    for layout in (LAYOUTS["channels_last"], LAYOUTS["channels_last_slice"]):
        assert_accurate("native", lambda: draw((1, 72, 40, 6), (21, 19), dtype), layout)


@pytest.mark.parametrize("isa", ["amx", "amx_emulated"], indirect=True)
@pytest.mark.parametrize("kernel", [(9, 2), (5, 17), (4, 18), (31, 31), (3, 33), (2, 34), (3, 49), (1, 50), (2, 63)])
def test_bands(kernel, isa):
    # One or two strips of rows, windows of 16 or 32 columns, as deep as their kernels ask for.
    narrow, wide = (1, 40, 32, 15), (2, 32, 13, 70)
    cases = [*itertools.product((narrow, wide), (torch.clone, LAYOUTS["channels_last"]))]
    for sizes, layout in [*cases, (wide, LAYOUTS["transposed"]), (wide, LAYOUTS["channels_last_slice"])]:
        assert_accurate("native", lambda s=sizes: draw(s, kernel, torch.bfloat16), layout)


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("kernel", [*TALL_KERNELS, (9, 9)], ids=str)
def test_what_is_not_finite_stays_where_the_kernel_reaches(kernel, memory_format):
    x, weight = draw((1, 32, 64, 64), kernel, torch.float32)[:2]
    for row, column in ((30, 33), (31, 30), (33, 0), (0, 63)):
        spoiled = x.clone(memory_format=memory_format)
        spoiled[0, 5, row, column] = float("inf")
        expected = op("reference")(spoiled.contiguous(), weight).isfinite()
        assert torch.equal(op("native")(spoiled, weight).isfinite(), expected)


def test_without_onednn():
    with torch.backends.mkldnn.flags(enabled=False):
        assert_accurate("native", lambda: draw((2, 20, 11, 13), (7, 7), torch.bfloat16), torch.clone, padding=3)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_everywhere(dtype, isa):
    z = torch.cat((torch.linspace(-8, 8, 4090), torch.tensor([-60000.0, -100, 0, 30, 100, 60000]))).to(dtype)
    y = MF.depthwise_conv2d(z.view(1, 1, 64, 64), z.new_ones(1, 1, 1, 1), activation="gelu", backend="native").flatten()
    expected = nn.functional.gelu(z.double())
    # What the normal distribution function is off by, and the rounding of y.
    slack = (2e-7 if dtype == torch.float32 else 5e-5) * z.double().abs().clamp(max=8)
    rounding = torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((y.double() - expected).abs() <= slack + rounding).all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_beyond_the_range_of_the_exponential(dtype, activation, memory_format, isa):
    z = [-float("inf"), -1e38, -1e20, -1e13, -100, -30, -21.5, -10, 0, 10, 21.5, 1e13, 1e20, 1e38, float("inf")]
    # A value that is not finite spreads in the sums of the parameters' gradients: the input's alone.
    x = torch.tensor([*z, float("nan")], dtype=dtype).view(1, 1, 4, 4).contiguous(memory_format=memory_format)
    # With AVX-512, PyTorch's float32 GELU of infinity is NaN; the tanh overflows in float32 as it does here.
    exact = x.double() if activation == "gelu" else x
    actual, expected = (
        with_gradients(lambda x, name=name: op(name, activation=activation)(x, x.new_ones(1, 1, 1, 1)), [given])
        for name, given in (("native", x), ("reference", exact))
    )
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(("count", "activation"), [(3, "relu"), (4, None), (4, "relu")])
def test_the_gradient_of_a_value_that_is_not_finite(count, activation):
    pytest.importorskip("mixer_kernels._C")
    inputs = draw((1, 2, 6, 6), (3, 3), torch.float32)[:count]
    inputs[0][0, 0, 3, 3] = float("inf")
    actual, expected = (with_gradients(op(name, activation=activation), inputs) for name in ("native", "reference"))
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_are_those_of_the_stored_values(dtype, memory_format, isa):
    # All are the same, so that nothing is left of them.
    x = torch.ones(4, 20, 9, 16, dtype=dtype).contiguous(memory_format=memory_format)
    weight, bias = torch.full((20, 1, 1, 1), 0.1003, dtype=dtype), torch.full((20,), 0.3, dtype=dtype)
    y, _, var = depthwise_conv2d_batch_norm(x, weight, bias, None, None, backend="native")
    assert torch.equal(y, x)
    assert var.abs().max() < 1e-12


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("kernel", [(5, 3), (7, 7), (9, 9), (9, 8)], ids=str)
def test_values_that_are_not_finite_stay_in_their_window(device, backend, kernel, memory_format):
    inputs = draw((3, 20, 12, 40), kernel, torch.float32, device)
    x = inputs[0].contiguous(memory_format=memory_format)
    expected = op(backend)(x, *inputs[1:])
    x[1, 3, 6, 20] = float("nan")
    y = op(backend)(x, *inputs[1:])
    rows, columns = (slice(at - size // 2, at + (size + 1) // 2) for at, size in zip((6, 20), kernel, strict=True))
    assert y[1, 3, rows, columns].isnan().all()
    y[1, 3, rows, columns] = expected[1, 3, rows, columns]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_an_empty_batch(device, backend, activation):
    inputs = [*draw((0, 5, 6, 7), (3, 3), torch.float32, device), torch.empty(0, 5, 6, 7, device=device)]
    one_pass, y, dx, *gradients = with_gradients(op(backend, activation=activation), inputs)
    assert one_pass.shape == y.shape == dx.shape == (0, 5, 6, 7)
    assert len(gradients) == 5
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(device, backend, dtype, memory_format):
    x, *rest = with_residual(draw((4, 40, 32, 33), (9, 9), dtype, device))
    inputs = [x.contiguous(memory_format=memory_format), *rest]
    first, second = (with_gradients(op(backend, activation="gelu"), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    x, weight, bias, scale, shift, _ = inputs
    once, again = (depthwise_conv2d_batch_norm(x, weight, bias, scale, shift, backend=backend) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize(("activation", "maps"), [(None, 0), ("gelu", 1)])
def test_backward_keeps_x_and_for_an_activation_one_map_more(device, backend, activation, maps):
    inputs = [value.requires_grad_() for value in draw((2, 16, 9, 14), (5, 5), torch.float32, device)]
    x, weight, bias = inputs[:3]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        op(backend, activation=activation)(x, weight, bias, None, None, x)
    given = {value.data_ptr() for value in inputs}
    assert sum(value.numel() for value in kept if value.data_ptr() not in given) == maps * x.numel()


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_backward_of_the_training_half_keeps_x_and_on_a_gpu_one_map_more(device, backend, memory_format):
    x, *parameters = draw((2, 16, 9, 14), (5, 5), torch.float32, device)
    inputs = [value.requires_grad_() for value in (x.contiguous(memory_format=memory_format), *parameters)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        depthwise_conv2d_batch_norm(*inputs, backend=backend)
    given = {value.data_ptr() for value in inputs}
    map_more = 0 if (device, backend) == ("cpu", "native") else x.numel()
    # Beside the maps, the mean and the variance.
    assert sum(value.numel() for value in kept if value.data_ptr() not in given) == map_more + 2 * 16


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_only_the_gradients_that_are_wanted(monkeypatch, device, backend, activation):
    called = []
    for name in ("backward_input", "backward_weight", "epilogue_sums", "epilogue_backward"):
        kernel = getattr(IMPLEMENTATIONS[backend], name)
        record = lambda *args, name=name, kernel=kernel: called.append(name) or kernel(*args)  # noqa: E731
        monkeypatch.setattr(IMPLEMENTATIONS[backend], name, record)
    needed = (["backward_input"], ["backward_weight"], ["backward_weight"], ["epilogue_sums"], ["epilogue_sums"], [])
    for wanted, kernels in enumerate(needed):
        inputs = with_residual(draw((2, 16, 9, 14), (5, 5), torch.float32, device))
        inputs[wanted].requires_grad_()
        called.clear()
        op(backend, activation=activation)(*inputs).sum().backward()
        assert [value.grad is not None for value in inputs] == [i == wanted for i in range(6)]
        # With a scale, the way to the convolution always leads through the epilogue.
        assert called == (["epilogue_backward"] if wanted < 3 else []) + kernels


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_gradcheck(activation):
    pytest.importorskip("mixer_kernels._C")
    inputs = [value.requires_grad_() for value in with_residual(draw((2, 2, 5, 4), (3, 2), torch.float64))]
    assert torch.autograd.gradcheck(op("native", activation=activation), inputs)
    assert torch.autograd.gradcheck(op("native", activation=activation), inputs[:2])
    assert torch.autograd.gradcheck(op("native", stride=(1, 2), padding=(2, 0), dilation=2), inputs[:3])
    run = lambda *given: depthwise_conv2d_batch_norm(*given, activation=activation, backend="native")[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs[:5])


@pytest.mark.parametrize("head", [torch.square, torch.positive], ids=["square", "sum"])
def test_double_backward_is_refused(device, backend, head):
    inputs = [value.requires_grad_() for value in draw((1, 3, 5, 6), (3, 3), torch.float32, device)]
    (dx,) = torch.autograd.grad(head(op(backend)(*inputs)).sum(), inputs[0], create_graph=True)
    for differentiate in (torch.Tensor.backward, lambda loss: torch.autograd.grad(loss, inputs)):
        with pytest.raises(RuntimeError, match="differentiate twice; double backward needs backend='reference'"):
            differentiate(dx.sum())


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, backend, dtype, layout, absent):
    suffix = "_triton" if backend == "triton" else ""
    arrange = LAYOUTS.get(layout, torch.clone)
    x, weight, bias, scale, shift = draw((2, 4, 6, 7), (3, 2), dtype, device)
    x, z, dy, residual = (arrange(torch.randn_like(x)) for _ in range(4))
    dy_strided = arrange(torch.randn(2, 4, 4, 8, device=device).to(dtype))
    if absent:
        bias = scale = shift = residual = None
    code = ACTIVATION_CODES["gelu"]
    coefficients = [None if absent else torch.randn(4, device=device) for _ in range(3)]
    same, strided = ([1, 1], [1, 1, 0, 1], [1, 1]), ([2, 1], [0, 3, 2, 1], [1, 2])
    calls: dict[str, list[tuple[Any, ...]]] = {
        "depthwise_conv2d{}_fwd": [
            (x, weight, bias, scale, shift, residual, *same, code),
            (x, weight, bias, scale, shift, None, *strided, code),
        ],
        "depthwise_conv2d{}_bwd_input": [
            (dy, weight, residual, 6, 7, *same),
            (dy_strided, weight, residual, 6, 7, *strided),
        ],
        "depthwise_conv2d{}_bwd_weight": [(dy, x, [3, 2], *same), (dy_strided, x, [3, 2], *strided)],
        "depthwise_conv2d{}_statistics": [(x, weight, bias, *same, code), (x, weight, bias, *strided, code)],
        "depthwise_epilogue{}_fwd": [(z, scale, shift, residual, code)],
        "depthwise_epilogue{}_sums": [(dy, z, coefficients[0], code)],
        "depthwise_epilogue{}_bwd": [(dy, z, *coefficients, code)],
    }
    if (device, backend) == ("cpu", "native"):
        moments = torch.randn(4), torch.rand(4)
        calls["depthwise_conv2d_batch_norm_fwd"] = [(x, weight, bias, scale, shift, 1e-5, *same, code)]
        calls["depthwise_conv2d_batch_norm_bwd"] = [
            (dy, x, weight, bias, scale, *moments, 1e-5, *same, code, wants_input, wants_convolution)
            for wants_input in (False, True)
            for wants_convolution in (False, True)
        ]
    for name, arguments in calls.items():
        for given in arguments:
            opcheck(getattr(torch.ops.mixer_kernels, name.format(suffix)).default, given)


@pytest.mark.parametrize(("compiler", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compile_whole_graph(device, backend, compiler, dynamic):
    torch._dynamo.reset()

    def loss(name: str) -> Callable[..., torch.Tensor]:
        run = op(name, activation="gelu")
        return lambda x, *others: run(run(x, *others), *others[:-1], x).square().sum()

    compiled = torch.compile(loss(backend), fullgraph=True, dynamic=dynamic, backend=compiler)
    for batch in (2, 3) if dynamic else (2,):
        inputs = with_residual(draw((batch, 5, 12, 7), (3, 4), torch.float32, device))
        actual = with_gradients(compiled, inputs, arrange=LAYOUTS["channels_last"])
        expected = with_gradients(loss("reference"), inputs)
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_compile_a_layer(device, backend, training):
    torch._dynamo.reset()
    layer = randomise(mixer_kernels.ConvMixerLayer(6, 5, backend=backend, device=device)).train(training)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        x = torch.randn(batch, 6, 9, 8, device=device)
        actual, expected = layer_results(compiled, x), layer_results(eager, x)
        # The graph need not sum as eager PyTorch does where cuDNN convolves.
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.state_dict(), eager.state_dict())


def test_one_graph_trains_on_images_of_any_size(device, backend):
    torch._dynamo.reset()
    layer = mixer_kernels.DepthwiseConv2d(6, 5, backend=backend, device=device)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        for height, width in ((9, 8), (7, 12), (16, 5)):
            x = torch.randn(2, 6, height, width, device=device)
            torch.testing.assert_close(layer_results(compiled, x), layer_results(layer, x), rtol=1e-4, atol=1e-4)


def test_export(device, backend):
    layer = mixer_kernels.ConvMixerLayer(6, 5, backend=backend, device=device).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(2, 6, 9, 8, device=device),), dynamic_shapes=({0: batch},))
    assert any("mixer_kernels" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(6, 6, 9, 8, device=device)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_fake_and_meta_tensors():
    inputs = draw((2, 5, 6, 7), (3, 3), torch.bfloat16)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        y = MF.depthwise_conv2d(torch.empty(2, 5, 6, 7, dtype=torch.bfloat16), *inputs[1:3], padding=2)
        assert y.shape == (2, 5, 8, 9)
    assert MF.depthwise_conv2d(*(value.to("meta") for value in inputs[:3]), padding="valid").shape == (2, 5, 4, 5)


@pytest.mark.gpu
def test_cuda_graph_capture(backend):
    inputs = with_residual(draw((4, 16, 32, 32), (9, 9), torch.bfloat16, "cuda"))
    op(backend)(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(backend)(*inputs)
    inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    assert torch.equal(y, op(backend)(*inputs))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(backend):
    x, *parameters = draw((1, 1024, 32, 32), (9, 9), torch.bfloat16, "cuda")
    images = x.new_empty(2100, 1024, 32, 32).copy_(x)
    y = op(backend)(images, *parameters)
    assert torch.equal(y[-1:], op(backend)(x, *parameters))


def normalised(name: str, activation: str | None = "gelu", **options: Any) -> Callable[..., torch.Tensor]:
    """Return the training half of a layer, of x, weight, bias, norm_weight and norm_bias."""
    return lambda *inputs: depthwise_conv2d_batch_norm(*inputs, activation=activation, backend=name, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_training_half_is_accurate(device, backend, dtype, memory_format, activation):
    if dtype != torch.float32 and activation == "relu":
        pytest.skip("what relu does to a value that low precision moved across zero is luck")
    for sizes, kernel in (((3, 40, 13, 14), (9, 9)), ((2, 150, 6, 5), (3, 4))):
        inputs = [value + 0.5 if i == 2 else value for i, value in enumerate(draw(sizes, kernel, dtype, device))]
        dy = torch.randn_like(inputs[0])
        results = []
        for name, given in ((backend, inputs), ("reference", inputs), ("reference", [v.double() for v in inputs])):
            layout = memory_format if name == backend else NCHW
            leaves = [value.detach().clone().requires_grad_() for value in given]
            x = leaves[0].contiguous(memory_format=layout)
            y, mean, var = normalised(name, activation)(x, *leaves[1:])
            assert y.is_contiguous(memory_format=layout)
            assert not mean.requires_grad
            assert not var.requires_grad
            y.backward(dy.to(y.dtype).contiguous(memory_format=layout))
            with torch.no_grad():
                without = normalised(name, activation)(x, *leaves[1:])
            results.append([y.detach(), mean, var, *without, *(leaf.grad for leaf in leaves)])
        names = ("y", "mean", "var", "y", "mean", "var", "dx", "dweight", "dbias", "dgamma", "dbeta")
        for which, ours, theirs, truth in zip(names, *results, strict=True):
            # BatchNorm removes what the bias of a convolution adds: without an activation only noise is left.
            if which != "dbias" or activation is not None:
                assert_as_accurate(ours, theirs, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_kept_in_float32(device, backend, dtype):
    x, weight, bias, gamma, beta = draw((3, 16, 13, 14), (5, 5), dtype, device)
    inputs = [value.requires_grad_() for value in (x, weight, bias, gamma.float(), beta.float())]
    y, mean, var = normalised(backend)(*inputs)
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)
    gradients = torch.autograd.grad(y.float().square().sum(), inputs)
    assert [value.dtype for value in gradients] == [value.dtype for value in inputs]
    expected, *_ = normalised("reference")(*(value.double() for value in inputs))
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=4e-2)


def test_statistics_of_a_large_mean(device, backend):
    x, weight, bias, gamma, beta = draw((3, 40, 13, 14), (3, 3), torch.float32, device)
    inputs = (x, weight, bias + 1e3, gamma, beta)
    results = [normalised(name, None)(*inputs) for name in (backend, "reference")]
    results.append(normalised("reference", None)(*(value.double() for value in inputs)))
    for ours, theirs, truth in zip(*results, strict=True):
        assert_as_accurate(ours, theirs, truth)


def test_the_training_half_without_parameters_and_of_a_frozen_convolution(device, backend):
    x, weight, *_ = draw((3, 16, 13, 14), (5, 5), torch.float32, device)
    for frozen in (False, True):
        results = []
        for name in (backend, "reference"):
            leaves = x.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
            y, *_ = normalised(name)(*leaves, None, None, None)
            y.square().sum().backward()
            results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
        assert len(results[0]) == (2 if frozen else 3)
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [70, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_training_half_of_any_strides(device, backend, layout, channels):
    x, *parameters = draw((2, channels, 9, 8), (4, 3), torch.float64, device)
    if backend == "triton" or device == "cuda":
        x, parameters = x.float(), [value.float() for value in parameters]
    # Of a sum, the gradient is one number.
    for dy in (torch.ones((), dtype=x.dtype, device=device).expand(x.shape), LAYOUTS[layout](torch.randn_like(x))):
        results = []
        for name in (backend, "reference"):
            leaves = [value.detach().requires_grad_() for value in (LAYOUTS[layout](x), *parameters)]
            y, *_ = normalised(name)(*leaves)
            results.append([y, *torch.autograd.grad(y, leaves, dy)])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def randomise(layer: nn.Module) -> nn.Module:
    """Draw everything anew: what starts as the identity would hide a mistake."""
    for value in (*layer.parameters(), *layer.buffers()):
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if value.dim() < 2 else value.normal_(std=0.2)
    return layer


def layer_results(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y.square() * torch.linspace(0, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(value.grad.clone() for value in layer.parameters() if value.grad is not None)]


def make_layers(backend: str | None, device: str, change: Callable[[Any], Any] = lambda _: None, **options: Any) -> Any:
    """Return the reference layer and the fused one with the same weights, both changed in the same way."""
    plain = reference_layers.ConvMixerLayer(6, 5, device=device, dtype=torch.float64, **options)
    fused = mixer_kernels.ConvMixerLayer(6, 5, backend=backend, device=device, dtype=torch.float64, **options)
    for layer in (plain, fused):
        change(layer)
    fused.load_state_dict(randomise(plain).state_dict())
    return plain, fused


def set_norm(layer: Any, **options: Any) -> None:
    layer[0].fn[2] = nn.BatchNorm2d(6, dtype=torch.float64, **options).to(layer[1].weight.device)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "training": lambda layer: None,
    "eval": lambda layer: layer.eval(),
    "frozen": lambda layer: layer[0].fn[2].eval(),
    "no_momentum": lambda layer: set_norm(layer, momentum=None),
    "momentum": lambda layer: set_norm(layer, momentum=0.3, eps=0.1),
    "untracked": lambda layer: set_norm(layer, track_running_stats=False),
    "untracked_later": lambda layer: setattr(layer[0].fn[2], "track_running_stats", False),
    "untracked_eval": lambda layer: (set_norm(layer, track_running_stats=False), layer.eval()),
    "not_affine": lambda layer: set_norm(layer, affine=False),
    "not_affine_eval": lambda layer: (set_norm(layer, affine=False), layer.eval()),
    "no_bias": lambda layer: layer[0].fn[0].register_parameter("bias", None),
}


def refuse(*_: Any) -> torch.Tensor:
    raise AssertionError("a part of the layer ran by itself")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_layer_is_the_reference_layer(caplog, activation, change):
    pytest.importorskip("mixer_kernels._C")
    plain, fused = make_layers("native", "cpu", CHANGES[change], activation=activation)
    for step in range(3):
        x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
        if step == 2:
            x = x.contiguous(memory_format=torch.channels_last)
        with caplog.at_level(logging.DEBUG, logger="mixer_kernels"):
            torch.testing.assert_close(layer_results(fused, x), layer_results(plain, x))
        assert "running the depthwise half as it is" not in caplog.text
        torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert (change in ("untracked", "untracked_eval")) == (fused[0].fn[2].num_batches_tracked is None)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("change", ["eval", "not_affine_eval"])
def test_inference_of_a_layer_is_one_pass_behind_each_convolution(monkeypatch, device, backend, activation, change):
    options = {"activation": activation, "device": device}
    plain = reference_layers.ConvMixerLayer(6, 5, **options)
    fused = mixer_kernels.ConvMixerLayer(6, 5, backend=backend, **options)
    for layer in (plain, fused):
        CHANGES[change](layer)
        layer.float()
    fused.load_state_dict(randomise(plain).state_dict())
    x = torch.randn(3, 6, 7, 8, device=device)
    with torch.no_grad():
        expected = plain(x)
        # Observed parts run, and so do those that a gradient is wanted of.
        calls: list[nn.Module] = []
        handle = fused[3].register_forward_hook(lambda module, *_: calls.append(module))
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
        handle.remove()
        assert calls == [fused[3]]
        for part in (fused[0], fused[2], fused[3]):
            monkeypatch.setattr(type(part), "forward", refuse)
        for layout in LAYOUTS.values():
            y = fused(layout(x))
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="ran by itself"):
        fused(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inference_of_a_layer_in_low_precision(device, backend, dtype):
    plain = reference_layers.ConvMixerLayer(32, 5, device=device).eval()
    exact = copy.deepcopy(randomise(plain)).double()
    fused = mixer_kernels.ConvMixerLayer(32, 5, backend=backend, device=device).eval()
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(4, 32, 9, 8, device=device, dtype=dtype)
    with torch.no_grad():
        # The norms in float32, as mixed precision has them.
        for layer in (plain, fused):
            layer.to(dtype)
            for part in layer.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.float()
        exact.load_state_dict(plain.state_dict())
        assert_as_accurate(fused(x), plain(x).to(dtype), exact(x.double()))


def test_a_norm_of_another_dtype_or_size_is_pytorchs_to_refuse(backend):
    layer = mixer_kernels.ConvMixerLayer(6, 5, backend=backend, device="cpu").eval()
    x = torch.randn(2, 6, 9, 8)
    with torch.no_grad():
        for norm in (nn.BatchNorm2d(6).half().eval(), nn.BatchNorm2d(7).eval()):
            layer[3] = norm
            with pytest.raises(RuntimeError, match=r"scalar type|elements"):
                layer(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_layer_in_low_precision(device, backend, dtype, training):
    plain, fused = (layer.to(dtype).train(training) for layer in make_layers(backend, device))
    exact = copy.deepcopy(plain).double()
    x = torch.randn(3, 6, 13, 14, device=device, dtype=dtype)
    y, expected, truth = (layer(x.to(layer[1].weight.dtype)) for layer in (fused, plain, exact))
    assert y.dtype == dtype
    assert_as_accurate(y.detach(), expected.detach(), truth.detach())
    for key, value in exact.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key].double(), value.double(), rtol=2e-2, atol=2e-2)
        assert fused.state_dict()[key].dtype == plain.state_dict()[key].dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_evaluation_the_depthwise_half_is_rounded_once(device, backend, dtype):
    plain, fused = (layer.eval().to(dtype) for layer in make_layers(backend, device))
    for layer, index in itertools.product((plain, fused), (1, 2, 3)):
        layer[index] = nn.Identity()
    exact = plain.double()
    x = torch.randn(3, 6, 13, 14, device=device, dtype=dtype)
    with torch.no_grad():
        y, expected = fused(x), exact(x.double())
    # Half a unit in the last place, and what a short polynomial for GELU is off by.
    assert ((y - expected).abs() <= expected.abs() * torch.finfo(dtype).eps / 1.9 + 1e-4).all()


@pytest.mark.parametrize("training", [False, True])
def test_layer_under_autocast(device, backend, training):
    pooled: list[list[torch.Tensor]] = []
    # The gradients of the channels are sums that all but cancel: the ratio of two errors of a few is luck.
    for _ in range(8):
        plain, fused = (layer.float().train(training) for layer in make_layers(backend, device))
        exact = copy.deepcopy(plain).double()
        x = torch.randn(3, 6, 13, 14, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            results = [layer_results(layer, x) for layer in (fused, plain)]
        results.append(layer_results(exact, x.double()))
        assert all(value.dtype == torch.float32 for value in results[0][1:])
        pooled.append([torch.stack([v.double() for v in values]) for values in zip(*results, strict=True)])
    for values in zip(*pooled, strict=True):
        ours, theirs, truth = torch.stack(values, 1)
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm()


def hooked(layer: Any, called: list[str]) -> None:
    layer[0].fn[1].register_forward_hook(lambda *_: called.append("hook"))


def test_a_hook_runs_the_parts_and_a_message_says_so(caplog, backend):
    called: list[str] = []
    plain, fused = make_layers(backend, "cpu", lambda layer: hooked(layer, called))
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    with caplog.at_level(logging.DEBUG, logger="mixer_kernels"):
        torch.testing.assert_close(layer_results(fused, x), layer_results(plain, x))
    assert called == ["hook"] * 2
    assert "running the depthwise half as it is: hooks on fn.1" in caplog.text


@pytest.mark.parametrize(
    ("path", "part", "message"),
    [
        ("2", lambda: nn.SyncBatchNorm(6), "fn.2 is SyncBatchNorm"),
        ("2", lambda: nn.Identity(), "fn.2 is Identity"),
        ("1", lambda: nn.SiLU(), "fn.1 is SiLU"),
        ("0", lambda: nn.Conv2d(6, 6, 3, padding=1), "fn.0 is Conv2d"),
        ("0", lambda: reference_layers.DepthwiseConv2d(6, 3, padding_mode="reflect"), "fn.0 is DepthwiseConv2d"),
    ],
)
def test_other_parts_run_as_they_are(caplog, backend, path, part, message):
    def change(layer: Any) -> None:
        layer[0].fn[int(path)] = part().double()

    # In evaluation: a SyncBatchNorm trains on a GPU only.
    plain, fused = (layer.eval() for layer in make_layers(backend, "cpu", change))
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    with caplog.at_level(logging.DEBUG, logger="mixer_kernels"):
        torch.testing.assert_close(layer_results(fused, x), layer_results(plain, x))
    assert message in caplog.text


def test_layer_of_an_empty_batch_and_of_one_number(backend):
    plain, fused = make_layers(backend, "cpu")
    x = torch.randn(0, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer_results(fused, x), layer_results(plain, x))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    with pytest.raises(ValueError, match="more than one number a channel"):
        fused.train()(torch.randn(1, 6, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (2, 6, 9, 8)),
        ({"bias": False}, (6, 9, 8)),
        ({"padding_mode": "reflect"}, (2, 6, 9, 8)),
        ({"padding_mode": "circular", "kernel_size": 4}, (6, 9, 8)),
        ({"padding_mode": "replicate", "padding": (1, 2), "stride": 2}, (2, 6, 9, 8)),
        ({"kernel_size": (3, 5), "stride": (1, 2), "padding": 3, "dilation": 2}, (2, 6, 9, 8)),
        ({"padding": "valid", "dilation": (1, 2)}, (2, 6, 9, 9)),
    ],
)
def test_depthwise_layer_is_the_reference_layer(backend, arguments, shape):
    arguments = {"kernel_size": 5, **arguments}
    plain = reference_layers.DepthwiseConv2d(6, dtype=torch.float64, **arguments)
    fused = mixer_kernels.DepthwiseConv2d(6, backend=backend, dtype=torch.float64, **arguments)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer_results(fused, x), layer_results(plain, x))


def test_kernels_that_are_too_large_are_left_to_the_reference():
    pytest.importorskip("mixer_kernels._C")
    x, weight, *_ = draw((1, 3, 5, 6), (1, 65), torch.float32)
    torch.testing.assert_close(op(None)(x, weight), op("reference")(x, weight))
    with pytest.raises(RuntimeError, match=r"cannot run this call: its kernels have at most 63 taps.*got \(1, 65\)"):
        op("native")(x, weight)


class TinyConvMixer(nn.Module):
    """A small ConvMixer on 8x8 digits: 4x4 patches of 2x2 pixels."""

    def __init__(self, layers: Any, backend: str | None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 2, stride=2)
        self.blocks = nn.Sequential(*(layers.ConvMixerLayer(32, 3, backend=backend) for _ in range(2)))
        self.head = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images[:, None])).mean((2, 3)))


def train(layers: Any, device: str, backend: str | None) -> tuple[list[float], float]:
    """Return the losses of 100 steps on the digits, and the accuracy on those left out, in evaluation mode."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device) / 16
    labels = torch.tensor(digits.target, device=device)
    torch.manual_seed(0)
    model = TinyConvMixer(layers, backend).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(100):
        batch = torch.arange(step * 64, (step + 1) * 64, device=device) % 1500
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, (model.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()


def test_training_follows_the_reference(device, backend):
    losses, accuracy = train(mixer_kernels, device, backend)
    expected_losses, expected_accuracy = train(reference_layers, device, None)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected_losses), rtol=0.02, atol=0.02)
    assert abs(accuracy - expected_accuracy) < 0.02
    assert accuracy > 0.8


def test_steps_that_overflow(device):
    pytest.importorskip("mixer_kernels._C")
    x, weight = draw((2, 5, 6, 7), (3, 4), torch.float32, device)[:2]
    forward = torch.ops.mixer_kernels.depthwise_conv2d_fwd
    for stride, padding, dilation in (((1, 1), (1, 1, 1, 1), (2**60, 1)), ((1, 1), (2**60,) * 4, (1, 1)),
                                      ((2**60, 1), (1, 1, 1, 1), (1, 1))):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be below 2\*\*24"):
            forward(x, weight, None, None, None, None, stride, padding, dilation, 0)


def test_sizes_as_torch_nn_takes_them():
    x = torch.randn(2, 5, 9, 7)
    plain = nn.Conv2d(5, 5, 3, stride=(2,), padding=[1], dilation=np.int64(2), groups=5)
    layer = mixer_kernels.DepthwiseConv2d(5, 3, stride=(2,), padding=[1], dilation=np.int64(2))
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(x), plain(x))


def test_bad_arguments(device):
    x, weight, bias, scale, shift = draw((2, 5, 6, 7), (3, 4), torch.float32, device)

    def refuses(error: type[Exception], message: str, *inputs: object, **options: object) -> None:
        with pytest.raises(error, match=f"depthwise_conv2d: {message}"):
            MF.depthwise_conv2d(*inputs, **options)

    refuses(TypeError, "x must be a torch.Tensor, got list", [1.0], weight)
    refuses(TypeError, "x must have dtype .*, got torch.int64", x.long(), weight)
    refuses(ValueError, r"x must have 4 dimensions \(B, C, H, W\), got shape \(5, 6, 7\)", x[0], weight)
    refuses(ValueError, r"x must have at least one channel and one pixel, got .*\(2, 5, 0, 7\)", x[:, :, :0], weight)
    refuses(ValueError, r"weight must have shape \(5, 1, KH, KW\), got shape \(4, 1, 3, 4\)", x, weight[:4])
    refuses(ValueError, r"weight must have shape \(5, 1, KH, KW\), got shape \(5, 3, 4\)", x, weight[:, 0])
    refuses(ValueError, r"weight must have at least one tap, got shape \(5, 1, 0, 4\)", x, weight[:, :, :0])
    refuses(ValueError, r"x must reach, with its padding, over the kernel, got .*\(2, 5, 2, 7\)", x[:, :, :2], weight,
            padding="valid")  # fmt: skip
    refuses(ValueError, r"bias must have shape \(5,\), got shape \(4,\)", x, weight, bias[:4])
    refuses(ValueError, r"scale must have shape \(5,\), got shape \(1, 5\)", x, weight, scale=scale[None])
    refuses(ValueError, r"shift must have shape \(5,\), got shape \(4,\)", x, weight, shift=shift[:4])
    refuses(ValueError, r"residual must have shape \(2, 5, 6, 7\), got shape \(2, 5, 6, 6\)", x, weight,
            residual=x[..., :6])  # fmt: skip
    refuses(ValueError, r"residual must have shape \(2, 5, 4, 4\), got", x, weight, residual=x, padding="valid")
    refuses(TypeError, "residual must be a torch.Tensor, got float", x, weight, residual=0.5)
    refuses(TypeError, "weight must have x's dtype torch.float32, got torch.float16", x, weight.half())
    refuses(TypeError, "bias must have x's dtype torch.float32, got torch.float64", x, weight, bias.double())
    refuses(TypeError, "residual must have x's dtype torch.float32, got torch.float16", x, weight, residual=x.half())
    refuses(TypeError, "scale must have x's dtype torch.float32 or torch.float32, got torch.float16", x, weight,
            scale=scale.half())  # fmt: skip
    refuses(RuntimeError, "weight must be on x's device .*, got meta", x, weight.to("meta"))
    refuses(RuntimeError, "shift must be on x's device .*, got meta", x, weight, shift=shift.to("meta"))
    refuses(ValueError, "stride must be 1 with padding 'same', got 2", x, weight, stride=2)
    refuses(ValueError, "stride must be an integer of at least 1 or a pair of them, got 0", x, weight, stride=0)
    refuses(ValueError, r"stride must be an integer .*, got \(1, 2, 3\)", x, weight, stride=(1, 2, 3))
    refuses(ValueError, "dilation must be an integer .*, got 1.5", x, weight, dilation=1.5)
    refuses(ValueError, r"stride, padding and dilation .* must be below 2\*\*24, got 1, same and 12345678", x, weight,
            dilation=12345678)  # fmt: skip
    refuses(ValueError, "padding must be an integer of at least 0 or a pair of them, got -1", x, weight, padding=-1)
    refuses(ValueError, "padding must be 'same', 'valid', an integer or a pair of them, got 'full'", x, weight,
            padding="full")  # fmt: skip
    refuses(ValueError, "activation must be None, 'relu', 'gelu' or 'gelu_tanh', got 'silu'", x, weight,
            activation="silu")  # fmt: skip
    refuses(ValueError, "backend must be one of .* or None, got 'cudnn'", x, weight, backend="cudnn")


def test_bad_arguments_of_the_training_half(device):
    x, weight, bias, gamma, beta = draw((2, 5, 6, 7), (3, 4), torch.float32, device)

    def refuses(error: type[Exception], message: str, *inputs: object, **options: object) -> None:
        with pytest.raises(error, match=f"depthwise_conv2d_batch_norm: {message}"):
            depthwise_conv2d_batch_norm(*inputs, **options)

    refuses(ValueError, r"padding must keep the size of x, got .* a map of \(4, 4\) pixels", x, weight, bias, gamma,
            beta, padding="valid")  # fmt: skip
    refuses(ValueError, "x must have more than one number a channel, got", x[:1, :, :1, :1], weight, bias, gamma, beta)
    refuses(ValueError, r"norm_weight must have shape \(5,\), got shape \(4,\)", x, weight, bias, gamma[:4], beta)
    refuses(TypeError, "norm_bias must have x's dtype .*, got torch.float16", x, weight, bias, gamma, beta.half())
    refuses(TypeError, "weight must be a torch.Tensor, got float", x, 1.0, bias, gamma, beta)


def test_the_ops_check_what_protects_memory():
    pytest.importorskip("mixer_kernels._C")
    x, weight, bias, *_ = draw((2, 5, 6, 7), (3, 3), torch.float32)
    same = [1, 1], [1, 1, 1, 1], [1, 1]
    ops = torch.ops.mixer_kernels
    for call in (
        lambda: ops.depthwise_conv2d_fwd(x, weight[:4], bias, None, None, None, *same, 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias[:4], None, None, None, *same, 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, bias[:4], None, None, *same, 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, None, bias[:4], None, *same, 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, None, None, x[:1], *same, 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight.double(), bias, None, None, None, *same, 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, None, None, None, [0, 1], *same[1:], 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, None, None, None, [1], *same[1:], 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, None, None, None, same[0], [1, 1], same[2], 0),
        lambda: ops.depthwise_conv2d_fwd(x, weight, bias, None, None, None, same[0], [-9, 0, 0, 0], same[2], 0),
        lambda: ops.depthwise_conv2d_bwd_input(x, weight, None, 7, 7, *same),
        lambda: ops.depthwise_conv2d_bwd_input(x, weight, x[:1], 6, 7, *same),
        lambda: ops.depthwise_conv2d_bwd_weight(x[:1], x, [3, 3], *same),
        lambda: ops.depthwise_conv2d_bwd_weight(x[:, :, 1:], x, [3, 3], *same),
        lambda: ops.depthwise_conv2d_bwd_weight(x.double(), x, [3, 3], *same),
        lambda: ops.depthwise_conv2d_statistics(x, weight[:4], bias, *same, 0),
        lambda: ops.depthwise_conv2d_batch_norm_fwd(x, weight[:4], bias, bias, bias, 1e-5, *same, 0),
        lambda: ops.depthwise_conv2d_batch_norm_fwd(x, weight, bias, bias[:4], bias, 1e-5, *same, 0),
        lambda: ops.depthwise_conv2d_batch_norm_fwd(x, weight, bias, bias, bias[:4], 1e-5, *same, 0),
        lambda: ops.depthwise_conv2d_batch_norm_fwd(x[:0], weight, bias, bias, bias, 1e-5, *same, 0),
        lambda: ops.depthwise_conv2d_batch_norm_fwd(x, weight, bias, bias, bias, 1e-5, [2, 1], *same[1:], 0),
        lambda: ops.depthwise_conv2d_batch_norm_bwd(x[:1], x, weight, *[bias] * 4, 1e-5, *same, 0, True, True),
        lambda: ops.depthwise_conv2d_batch_norm_bwd(x, x, weight[:4], *[bias] * 4, 1e-5, *same, 0, True, True),
        lambda: ops.depthwise_conv2d_batch_norm_bwd(x, x, weight, bias[:4], *[bias] * 3, 1e-5, *same, 0, True, True),
        lambda: ops.depthwise_conv2d_batch_norm_bwd(
            x, x, weight, bias, bias[:4], bias, bias, 1e-5, *same, 0, True, True
        ),
        lambda: ops.depthwise_conv2d_batch_norm_bwd(
            x, x, weight, *[bias] * 2, bias[:4], bias, 1e-5, *same, 0, True, True
        ),
        lambda: ops.depthwise_conv2d_batch_norm_bwd(
            x, x, weight, *[bias] * 3, bias.double(), 1e-5, *same, 0, True, True
        ),
        lambda: ops.depthwise_epilogue_fwd(x, bias[:4], None, None, 0),
        lambda: ops.depthwise_epilogue_fwd(x, None, None, x[:1], 0),
        lambda: ops.depthwise_epilogue_sums(x[:1], x, None, 0),
        lambda: ops.depthwise_epilogue_sums(x, x, bias[:4], 0),
        lambda: ops.depthwise_epilogue_bwd(x[:1], x, None, None, None, 0),
        lambda: ops.depthwise_epilogue_bwd(x, x, bias[:4], None, None, 0),
        lambda: ops.depthwise_epilogue_bwd(x, x, None, bias.double(), None, 0),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match="depthwise_"):
            call()
