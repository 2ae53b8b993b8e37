"""The affine-folded linear in Triton, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import LAYOUTS, Tensors, as_it_is, assert_accurate, in_float64, with_gradients
from triton_tests import DEVICE, DTYPES, GPU, VIEWS, random, unused_tiles, use_small_tiles

import mixer_kernels.functional as MF
from mixer_kernels.ops.affine_token_linear import _triton_launch, _triton_tiles, triton_impl

pytest.importorskip("triton")

# Large enough for a second tile in every direction of the small tiles, and for sums that end in a block of one row,
# with channels that Triton loads in vectors.
SHAPE = (3, 70, 48)


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert triton_impl.why_not(torch.device(DEVICE)) is None


@pytest.fixture(params=["shipped", "small"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the tiles that are shipped, and on tiles so small that tiny shapes need several."""
    if request.param == "small":
        use_small_tiles(monkeypatch, _triton_tiles)
        small = {"BLOCK_ROWS": 8, "BLOCK_S": 16, "BLOCK_C": 16}
        monkeypatch.setattr(_triton_tiles, "PREPARE", _triton_tiles.PREPARE | small)
    return request.param


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 0.1) -> list[torch.Tensor]:
    """Return x, alpha, beta, weight, bias and a LayerScale around ``scale``."""
    _, tokens, channels = shape
    affine = 1 + 0.2 * random(channels), 0.2 * random(channels)
    linear = random(tokens, tokens) * tokens**-0.5, random(tokens)
    drawn = [random(*shape), *affine, *linear, scale * (1 + 0.2 * random(channels))]
    return [value.to(dtype) for value in drawn]


def ours(*inputs: torch.Tensor | None) -> torch.Tensor:
    return MF.affine_token_linear(*inputs, backend="triton")


def reference(*inputs: torch.Tensor | None) -> torch.Tensor:
    return MF.affine_token_linear(*inputs, backend="reference")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles(dtype: torch.dtype, variant: str) -> None:
    assert_accurate(ours, reference, lambda: draw(SHAPE, dtype), update=True)


@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 5, 30), (1, 17, 6), (2, 20, 3), (2, 33, 1), (1, 68, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert_accurate(ours, reference, lambda: draw(shape, dtype), update=True)


@pytest.mark.parametrize("variant", ["small"], indirect=True)
@pytest.mark.parametrize("scale", [1e-4, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_small_layer_scale(dtype: torch.dtype, scale: float, variant: str) -> None:
    assert_accurate(ours, reference, lambda: draw((2, 20, 40), dtype, scale), update=True)

    # Beside an x of the update's own size, the update is all there is to see.
    def small() -> Tensors:
        x, *parameters = draw((2, 20, 40), dtype, scale)
        return [x * scale, *parameters]

    assert_accurate(ours, reference, small, update=True)


def test_the_gradient_of_the_weight_keeps_its_digits(variant: str) -> None:
    # A LayerScale that float16 cannot hold, gradients that it can: nothing would be left of LayerScale * x rounded.
    inputs = draw((2, 20, 40), torch.float16)
    inputs[5] = 1e-7 * (1 + 0.2 * random(40))
    dy = (100 * random(2, 20, 40)).half()
    *_, dweight, _, _ = with_gradients(ours, inputs, dy)
    *_, exact, _, _ = with_gradients(reference, in_float64(inputs), dy)
    # What float16 itself loses of the result, whose smallest step is 6e-8.
    assert ((dweight.double() - exact).abs() <= 2e-3 * exact.abs().max() + 6e-8).all()


def test_autocast_multiplies_in_tf32() -> None:
    precisions: list[str] = []

    def note(kernel: object, programs: int, arguments: dict[str, Any]) -> None:
        precisions.append(arguments.get("PRECISION", "tf32"))

    x, *parameters = (value.to("meta") for value in draw((1, 33, 16)))
    _triton_launch.forward(note, x, _triton_launch.Parameters(*parameters), allow_tf32=True)
    _triton_launch.backward(note, x, x, _triton_launch.Parameters(*parameters), allow_tf32=True)
    assert set(precisions) == {"tf32"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    assert_accurate(ours, reference, lambda: draw((2, 5, 24)), LAYOUTS[layout])


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str) -> None:
    shape = (2, 5, 24)
    _, *parameters = draw(shape)
    # One of the two at a time, so that strides taken from the other one show.
    for x_view, dy_view in ((VIEWS[view], random), (random, VIEWS[view])):
        x, dy = x_view(*shape), dy_view(*shape)
        strided = triton_impl.forward(x, *parameters), *triton_impl.backward(dy, x, *parameters)
        x, dy = x.contiguous(), dy.contiguous()
        plain = triton_impl.forward(x, *parameters), *triton_impl.backward(dy, x, *parameters)
        for one, other in zip(strided, plain, strict=True):
            torch.testing.assert_close(one, other)
            assert one.is_contiguous()


@pytest.mark.parametrize("absent", [(1,), (2,), (4,), (5,), (1, 2), (2, 4), (1, 2, 4, 5)], ids=str)
def test_absent_parameters(absent: tuple[int, ...]) -> None:
    def some() -> Tensors:
        return [None if i in absent else value for i, value in enumerate(draw((2, 5, 24)))]

    assert_accurate(ours, reference, some)
    x, *parameters = some()
    for gradient, parameter in zip(triton_impl.backward(x, x, *parameters)[1:], parameters, strict=True):
        assert gradient.shape == (torch.Size([0]) if parameter is None else parameter.shape)


@pytest.mark.parametrize("kept", [(1, 2, 5), (5,), (1,)], ids=str)
def test_parameters_of_the_channels_in_float32(kept: tuple[int, ...]) -> None:
    def mixed() -> Tensors:
        every = draw((2, 5, 24), torch.float16)
        return [value.float() if i in kept else value for i, value in enumerate(every)]

    assert_accurate(ours, reference, mixed)
    inputs = mixed()
    assert [value.dtype for value in with_gradients(ours, inputs)[1:]] == [value.dtype for value in inputs]


@pytest.mark.parametrize("variant", ["small"], indirect=True)
def test_the_same_bits_every_time(variant: str) -> None:
    inputs = draw(SHAPE, torch.float16)
    for one, other in zip(with_gradients(ours, inputs), with_gradients(ours, inputs), strict=True):
        assert torch.equal(one, other)


def test_an_empty_batch() -> None:
    y, dx, *gradients = with_gradients(ours, draw((0, 5, 24)))
    assert y.shape == dx.shape == (0, 5, 24)
    assert len(gradients) == 5
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_values_that_are_not_finite_stay_in_their_channel() -> None:
    inputs = draw((2, 20, 24))
    expected = ours(*inputs)
    inputs[0][1, 3, 5] = float("nan")
    y = ours(*inputs)
    assert y[1, :, 5].isnan().all()
    y[1, :, 5] = expected[1, :, 5]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("absent", [(), (1, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("batch", [2, 0])
def test_opcheck(batch: int, absent: tuple[int, ...]) -> None:
    inputs = [None if i in absent else value for i, value in enumerate(draw((batch, 5, 24)))]
    torch.library.opcheck(torch.ops.mixer_kernels.affine_token_linear_triton_fwd.default, inputs)
    dy = torch.ones_like(inputs[0])
    torch.library.opcheck(torch.ops.mixer_kernels.affine_token_linear_triton_bwd.default, (dy, *inputs))


def test_float64_has_a_reason() -> None:
    assert "float64" in str(triton_impl.why_not(torch.device(DEVICE), torch.float64))


@pytest.mark.skipif(GPU, reason="looks at the tiles of sm_90")
def test_every_tile_is_a_compile_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unused_tiles(monkeypatch, _triton_tiles, triton_impl) == []


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4, 196, 384), (4, 49, 384), (2, 784, 768), (3, 197, 770)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_published_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert_accurate(ours, reference, lambda: draw(shape, dtype), as_it_is, update=True)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements() -> None:
    shape = (2**31 // (64 * 1024) + 3, 64, 1024)
    _, *parameters = draw((1, *shape[1:]), torch.bfloat16)
    x = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    assert torch.equal(triton_impl.forward(x, *parameters)[-3:], triton_impl.forward(x[-3:], *parameters))
    dx, *_ = triton_impl.backward(x, x, *parameters)
    last, *_ = triton_impl.backward(x[-3:], x[-3:], *parameters)
    assert torch.equal(dx[-3:], last)
