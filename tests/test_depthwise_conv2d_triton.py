"""The depthwise convolution in Triton, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_depthwise_conv2d import (
    ACTIVATIONS,
    LAYOUTS,
    NCHW,
    NHWC,
    Tensors,
    assert_accurate,
    draw,
    op,
    with_gradients,
    with_residual,
)
from triton_tests import DEVICE, DTYPES, GPU

from mixer_kernels.ops._activation import ACTIVATION_CODES, apply_activation
from mixer_kernels.ops.depthwise_conv2d import _triton_tiles, depthwise_conv2d_batch_norm, triton_impl
from mixer_kernels.ops.depthwise_conv2d._triton_tiles import Tile

pytest.importorskip("triton")

# (B, C, H, W), (KH, KW), how the kernel moves
CASES = (
    ((1, 3, 1, 1), (1, 1), {}),
    ((2, 3, 3, 5), (3, 3), {}),
    ((1, 5, 6, 4), (4, 2), {"padding": "valid"}),
    ((1, 2, 3, 4), (7, 5), {}),
    ((1, 3, 5, 8), (3, 2), {"stride": 2, "padding": 1}),
    ((1, 2, 7, 6), (3, 3), {"stride": (1, 3), "padding": (2, 9), "dilation": (2, 1)}),
    ((1, 2, 8, 7), (3, 2), {"stride": 2, "padding": 3, "dilation": 2}),
)
GELU = ACTIVATION_CODES["gelu"]


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert triton_impl.why_not(torch.device(DEVICE)) is None


@pytest.fixture(params=["shipped", "small"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the tiles that are shipped, and on tiles so small that tiny shapes need several."""
    if request.param == "small":
        small = {1: Tile(columns=4, channels=2, num_warps=4, rows=2)}
        monkeypatch.setattr(_triton_tiles, "TILES", dict.fromkeys(_triton_tiles.TILES, small))
        monkeypatch.setattr(_triton_tiles, "TAPS", (2,))
    return request.param


def inputs_of(sizes: Sequence[int], kernel: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensors:
    """Return x, weight, bias, scale and shift."""
    return draw(sizes, kernel, dtype, DEVICE)


def assert_close(
    inputs: Tensors, arrange: Callable[[torch.Tensor], torch.Tensor] = torch.clone, **options: Any
) -> None:
    """Compare outputs and gradients with the reference in float64."""
    exact_inputs = [None if value is None else value.double() for value in inputs]
    dy = torch.randn_like(op("reference", **options)(*exact_inputs)).to(inputs[0].dtype)
    actual = with_gradients(op("triton", **options), inputs, arrange(dy), arrange)
    expected = with_gradients(op("reference", **options), exact_inputs, dy)
    for ours, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "kernel", "options"), CASES, ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_geometries(memory_format, sizes, kernel, options, variant):
    inputs = with_residual(inputs_of(sizes, kernel), **options)
    assert_close(inputs, lambda x: x.contiguous(memory_format=memory_format), activation="gelu", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_forward_and_backward_are_accurate(activation, memory_format, dtype):
    assert_accurate(
        "triton",
        lambda: with_residual(inputs_of((1, 40, 9, 7), (3, 5), dtype)),
        lambda x: x.contiguous(memory_format=memory_format),
        activation=activation,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation):
    assert_close(with_residual(inputs_of((2, 3, 4, 5), (3, 3))), activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    assert_close(with_residual(inputs_of((2, 3, 4, 5), (3, 2))), LAYOUTS[layout], activation="gelu")
    assert_close(inputs_of((2, 3, 4, 5), (3, 2)), LAYOUTS[layout], stride=(2, 1), padding=1)


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_a_residual_and_a_gradient_of_another_layout_than_x(memory_format):
    inputs = with_residual(inputs_of((2, 3, 4, 5), (3, 3)))
    dy = torch.randn_like(inputs[0]).to(memory_format=NHWC if memory_format == NCHW else NCHW)
    expected = with_gradients(op("reference", activation="gelu"), inputs, dy)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    inputs[5] = torch.empty_like(dy).copy_(inputs[5])
    for ours, theirs in zip(with_gradients(op("triton", activation="gelu"), inputs, dy), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_expanded_tensors(activation):
    x, *parameters = inputs_of((1, 3, 4, 5), (3, 3))
    inputs = [x[:, :1].expand(2, 3, 4, 5), *parameters, x[:, :, :1, :1].expand(2, 3, 4, 5)]
    # The gradient of a sum is expanded, too.
    actual = with_gradients(op("triton", activation=activation), inputs)
    expected = with_gradients(op("reference", activation=activation), inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    y = op("triton", activation=activation)(*inputs)
    torch.testing.assert_close(y, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (5,), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_absent_parameters(activation, absent):
    every = with_residual(inputs_of((2, 3, 4, 5), (3, 3)))
    assert_close([None if i in absent else value for i, value in enumerate(every)], activation=activation)


def test_scale_and_shift_kept_in_float32():
    every = with_residual(inputs_of((1, 40, 4, 5), (3, 3), torch.float16))
    inputs = [value.float() if i in (3, 4) else value for i, value in enumerate(every)]
    assert_accurate("triton", lambda: inputs, activation="gelu")
    gradients = with_gradients(op("triton", activation="gelu"), inputs)[2:]
    assert [value.dtype for value in gradients] == [value.dtype for value in inputs]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_the_training_half(memory_format, dtype, variant):
    x, weight, bias, gamma, beta = inputs_of((2, 3, 3, 5), (3, 2), dtype)
    # A mean far from zero, which a difference of sums of squares would not survive.
    bias += 30
    results = []
    for name, given in (("triton", torch.clone), ("reference", torch.Tensor.double)):
        leaves = [given(value).requires_grad_() for value in (x, weight, bias, gamma, beta)]
        arranged = leaves[0].contiguous(memory_format=memory_format)
        y, mean, var = depthwise_conv2d_batch_norm(arranged, *leaves[1:], activation="gelu_tanh", backend=name)
        y.backward(torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(y.dtype))
        results.append([y.detach(), mean, var, *(leaf.grad for leaf in leaves)])
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2 if dtype == torch.float16 else 0.2
    for ours, truth in zip(*results, strict=True):
        assert (ours.double() - truth).abs().max() <= tolerance * truth.abs().max() + tolerance


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("offset", [0, 100])
def test_statistics_are_those_of_what_is_normalised(offset, memory_format, variant):
    x, weight, bias, *_ = inputs_of((2, 3, 5, 5), (3, 3), torch.float16)
    x, bias = x.contiguous(memory_format=memory_format), bias + offset
    z, mean, var = triton_impl.statistics(x, weight, bias, [2, 1], [1, 0, 2, 3], [1, 1], GELU)
    expected = op("reference", stride=(2, 1), padding=0)(torch.nn.functional.pad(x, (2, 3, 1, 0)), weight, bias)
    torch.testing.assert_close(z, expected, rtol=2e-3, atol=2e-3)
    expected_var, expected_mean = torch.var_mean(apply_activation(z.double(), "gelu"), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=1e-6)


def test_epilogue(variant):
    dy, z, residual = (torch.randn(2, 3, 4, 7, device=DEVICE) for _ in range(3))
    # Rows that do not follow on one another, and maps that do in another order than their neighbours.
    for arrange in (torch.clone, LAYOUTS["channels_last"], LAYOUTS["slice"]):
        c0, c1, c2 = torch.randn(3, 3, device=DEVICE).unbind()
        per_channel = [value.double().view(3, 1, 1) for value in (c0, c1, c2)]
        exact = z.double().requires_grad_()
        activated = apply_activation(exact, "gelu")
        (derivative,) = torch.autograd.grad(activated.sum(), exact)
        expected = (
            residual.double() + per_channel[0] * activated + per_channel[1],
            (per_channel[0] * dy + per_channel[1] * activated + per_channel[2]) * derivative,
            dy.double().sum((0, 2, 3)),
            (dy * (activated - per_channel[2])).sum((0, 2, 3)),
        )
        actual = (
            triton_impl.epilogue_forward(arrange(z), c0, c1, residual, GELU),
            triton_impl.epilogue_backward(dy, arrange(z), c0, c1, c2, GELU),
            *triton_impl.epilogue_sums(arrange(dy), z, c2, GELU),
        )
        for ours, truth in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours.double(), truth.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["small"], indirect=True)
def test_sums_in_several_parts(monkeypatch, variant):
    expected = with_gradients(op("reference", activation="gelu"), inputs := inputs_of((2, 3, 3, 5), (2, 2)))
    splits = []
    for programs in (1, 20, 1000):
        monkeypatch.setattr(_triton_tiles, "SPLIT_PROGRAMS", programs)
        splits.append(with_gradients(op("triton", activation="gelu"), inputs))
        for ours, theirs in zip(splits[-1], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # Of the gradient of the weight.
    assert not all(torch.equal(splits[0][3], other[3]) for other in splits[1:])


@pytest.mark.parametrize("variant", ["small"], indirect=True)
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_the_same_bits_every_time(memory_format, variant):
    inputs = inputs_of((1, 3, 3, 5), (2, 3), torch.float16)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    once, again = (with_gradients(op("triton", activation="gelu"), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    once, again = (depthwise_conv2d_batch_norm(*inputs, backend="triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_an_empty_batch():
    inputs = inputs_of((0, 3, 4, 5), (3, 3))
    one_pass, y, dx, *gradients = with_gradients(op("triton", activation="gelu"), inputs)
    assert one_pass.shape == y.shape == dx.shape == (0, 3, 4, 5)
    assert len(gradients) == 4
    _, *statistics = triton_impl.statistics(*inputs[:3], [1, 1], [1, 1, 1, 1], [1, 1], GELU)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in (*gradients, *statistics))


@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
def test_values_that_are_not_finite_stay_in_their_window(memory_format, variant):
    inputs = inputs_of((2, 3, 6, 9), (3, 2))
    x = inputs[0].contiguous(memory_format=memory_format)
    expected = op("triton")(x, *inputs[1:])
    x[1, 1, 2, 5] = float("nan")
    y = op("triton")(x, *inputs[1:])
    assert y[1, 1, 1:4, 4:6].isnan().all()
    y[1, 1, 1:4, 4:6] = expected[1, 1, 1:4, 4:6]
    assert torch.equal(y, expected)
    # The last column meets the last tap only; beyond the last pixel of dz it meets the others.
    x = torch.ones(1, 3, 4, 6, device=DEVICE).contiguous(memory_format=memory_format)
    x[..., -1] = float("inf")
    dweight, _ = triton_impl.backward_weight(x[..., :4], x, [2, 3], [1, 1], [1, 0, 0, 0], [1, 1])
    assert dweight[..., :2].isfinite().all()
    assert dweight[..., 2].isinf().all()


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_slice"])
def test_opcheck(layout, absent):
    arrange = LAYOUTS.get(layout, torch.clone)
    x, weight, bias, scale, shift = inputs_of((2, 4, 3, 5), (3, 2))
    x, dy, residual = (arrange(torch.randn_like(x)) for _ in range(3))
    center = torch.randn(4, device=DEVICE)
    if absent:
        bias = scale = shift = residual = center = None
    same, strided = ([1, 1], [1, 1, 0, 1], [1, 1]), ([2, 1], [0, 2, 2, 1], [1, 2])
    y_strided = op("reference", stride=(2, 1), padding=0, dilation=(1, 2))(
        torch.nn.functional.pad(x, (2, 1, 0, 2)), weight
    )
    ops = torch.ops.mixer_kernels
    for kernel, arguments in (
        (ops.depthwise_conv2d_triton_fwd, (x, weight, bias, scale, shift, residual, *same, GELU)),
        (ops.depthwise_conv2d_triton_fwd, (x, weight, bias, scale, shift, None, *strided, GELU)),
        (ops.depthwise_conv2d_triton_bwd_input, (dy, weight, residual, 3, 5, *same)),
        (ops.depthwise_conv2d_triton_bwd_input, (arrange(y_strided), weight, residual, 3, 5, *strided)),
        (ops.depthwise_conv2d_triton_bwd_weight, (dy, x, [3, 2], *same)),
        (ops.depthwise_conv2d_triton_statistics, (x, weight, bias, *strided, GELU)),
        (ops.depthwise_epilogue_triton_fwd, (x, scale, shift, residual, GELU)),
        (ops.depthwise_epilogue_triton_sums, (dy, x, center, GELU)),
        (ops.depthwise_epilogue_triton_bwd, (dy, x, center, center, center, GELU)),
    ):
        torch.library.opcheck(kernel.default, arguments)


def test_float64_has_a_reason():
    assert "float64" in str(triton_impl.why_not(torch.device(DEVICE), torch.float64, (3, 3)))


@pytest.mark.skipif(GPU, reason="looks at the tiles of sm_90")
def test_every_tile_is_a_compile_case(monkeypatch):
    used = set()

    class Recorded(dict):
        def __getitem__(self, key):
            used.add((id(self), key))
            return super().__getitem__(key)

    recorded = {key: Recorded(table) for key, table in _triton_tiles.TILES.items()}
    monkeypatch.setattr(_triton_tiles, "TILES", recorded)
    taps = {arguments["TAPS"] for *_, arguments, _ in triton_impl.compile_cases() if "TAPS" in arguments}
    assert taps == set(_triton_tiles.TAPS)
    unused = [(key, size) for key, table in recorded.items() for size in table if (id(table), size) not in used]
    assert unused == []


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [7, 9, 31])
@pytest.mark.parametrize("memory_format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_published_shapes(dtype, memory_format, kernel):
    assert_accurate(
        "triton",
        lambda: with_residual(inputs_of((4, 768, 32, 32), (kernel, kernel), dtype)),
        lambda x: x.contiguous(memory_format=memory_format),
        activation="gelu",
    )
