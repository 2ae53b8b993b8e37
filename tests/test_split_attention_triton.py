"""The shifted split attention in Triton, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch
from accuracy import MAP_LAYOUTS, Arrange, Tensors, as_it_is, in_float64, with_gradients
from citizenship import assert_compiles
from test_split_attention import assert_accurate, by_the_definition, draw, op, opcheck_triton_passes
from triton_tests import DEVICE, DTYPES

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops.split_attention import _triton_tiles, reference, triton_impl
from mixer_kernels.ops.split_attention._triton_tiles import Tile

pytest.importorskip("triton")

# (B, H, W, C, D)
SIZES = (
    (1, 1, 1, 1, 1),
    (3, 1, 1, 30, 7),
    (2, 2, 2, 3, 4),  # an empty group of channels
    (2, 1, 9, 30, 5),
    (2, 9, 1, 33, 8),
    (1, 2, 3, 64, 4),
    (2, 7, 5, 32, 6),
    (1, 5, 11, 18, 6),
)


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert triton_impl.why_not(torch.device(DEVICE)) is None


@pytest.fixture(params=["shipped", "small"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the tiles that are shipped, and on tiles so small that tiny shapes need several."""
    if request.param == "small":
        small = Tile(pixels=8, vectors=4, num_warps=4)
        monkeypatch.setattr(_triton_tiles, "TILES", dict.fromkeys(_triton_tiles.TILES, small))
        monkeypatch.setattr(_triton_tiles, "SPLIT_PROGRAMS", 10)
    return request.param


def inputs_of(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensors:
    """Return x, weight1 and weight2."""
    return draw(sizes, dtype, DEVICE)


def assert_close(inputs: Tensors, arrange: Arrange = as_it_is) -> None:
    """Compare the output and the gradients with the reference in float64."""
    dy = torch.randn_like(inputs[0][..., : inputs[0].shape[3] // 3])
    actual = with_gradients(op("triton"), inputs, arrange(dy), arrange)
    expected = with_gradients(op("reference"), in_float64(inputs), dy)
    for ours, truth in zip(actual, expected, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_shapes(sizes, variant):
    assert_close(inputs_of(sizes))


def test_the_definition():
    inputs = inputs_of((2, 3, 4, 9, 5))
    expected = by_the_definition(*(value.cpu().double() for value in inputs))
    torch.testing.assert_close(op("triton")(*inputs).cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [33, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_are_accurate(dtype, channels):
    assert_accurate("triton", lambda: inputs_of((2, 5, 6, channels, 32), dtype))


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
def test_any_strides(layout):
    for channels in (9, 16):
        assert_close(inputs_of((2, 3, 4, channels, 5)), MAP_LAYOUTS[layout])


@pytest.mark.parametrize("arranged", [0, 1])
@pytest.mark.parametrize("layout", ["slice", "channels_first"])
def test_a_gradient_of_another_layout_than_x(layout, arranged):
    x, *_ = inputs_of((2, 3, 4, 16, 5))
    dy = torch.randn_like(x[..., :16])
    expected = triton_impl.backward_weights(dy, x)
    given = [MAP_LAYOUTS[layout](value) if i == arranged else value for i, value in enumerate((dy, x))]
    torch.testing.assert_close(triton_impl.backward_weights(*given), expected)


def test_slices_of_pixels_and_expanded_images():
    x, *weights = inputs_of((1, 5, 6, 16, 5))
    for view in (x[:, 1:4, ::2], x[:, ::3, 2:].expand(3, -1, -1, -1), x[:, :1].expand(-1, 3, -1, -1)):
        # The gradient of a sum is expanded, too.
        actual, expected = (with_gradients(op(name), [view, *weights]) for name in ("triton", "reference"))
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(op("triton")(view, *weights), expected[0], rtol=1e-4, atol=1e-5)


def test_coefficients_of_any_strides():
    x, *_ = inputs_of((2, 3, 4, 8, 5))
    weights, da = torch.rand(2, 8, 3, device=DEVICE).mT, torch.randn(8, 2, device=DEVICE).mT
    dy = torch.randn(2, 3, 4, 8, device=DEVICE)
    for ours, theirs in (
        (triton_impl.combine(x, weights), triton_impl.combine(x, weights.contiguous())),
        (
            triton_impl.backward_features(dy, weights, da),
            triton_impl.backward_features(dy, weights.contiguous(), da.contiguous()),
        ),
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_rounded_once(dtype):
    x, *_ = inputs_of((2, 5, 6, 16, 5), dtype)
    weights, da = torch.rand(2, 3, 16, device=DEVICE), torch.randn(2, 16, device=DEVICE)
    dy = torch.randn(2, 5, 6, 16, device=DEVICE).to(dtype)
    exact_x = x.double().requires_grad_()
    branches = torch.stack(_branches(exact_x), 1)
    exact = (weights[:, :, None, None].double() * branches).sum(1)
    dbranches = weights[:, :, None, None].double() * dy[:, None] + da[:, None, None, None]
    (exact_dx,) = torch.autograd.grad(branches, exact_x, dbranches)
    half_a_step = torch.finfo(dtype).eps / 2
    for ours, truth in (
        (triton_impl.combine(x, weights), exact.detach()),
        (triton_impl.backward_features(dy, weights, da), exact_dx),
    ):
        torch.testing.assert_close(ours.double(), truth, rtol=1.001 * half_a_step, atol=2e-6)


@pytest.mark.parametrize("variant", ["small"], indirect=True)
def test_sums_in_several_parts(monkeypatch, variant):
    monkeypatch.setattr(_triton_linear, "SUM_ROWS", 4)
    x, *_ = inputs_of((2, 6, 9, 5, 5))
    dy = torch.randn_like(x[..., :5])
    branches = [branch.double() for branch in _branches(x)]
    exact = sum(branches).sum((1, 2)), torch.stack([(dy * branch).sum((1, 2)) for branch in branches], 1)
    found = []
    for programs in (1, 12, 1000):
        monkeypatch.setattr(_triton_tiles, "SPLIT_PROGRAMS", programs)
        found.append((triton_impl.sums(x), triton_impl.backward_weights(dy, x)))
        for ours, truth in zip(found[-1], exact, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)
    assert not any(torch.equal(found[0][i], found[2][i]) for i in range(2))


def _branches(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x1, x2, x3 = x.chunk(3, -1)
    return reference.spatial_shift(x1, reference.SHIFT_1), reference.spatial_shift(x2, reference.SHIFT_2), x3


@pytest.mark.parametrize("variant", ["small"], indirect=True)
def test_the_same_bits_every_time(variant):
    inputs = inputs_of((2, 5, 6, 10, 4), torch.float16)
    once, again = (with_gradients(op("triton"), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("channels", [16, 10])
def test_an_empty_batch(channels):
    y, dx, *gradients = with_gradients(op("triton"), inputs_of((0, 5, 6, channels, 4)))
    assert y.shape == (0, 5, 6, channels)
    assert dx.shape == (0, 5, 6, 3 * channels)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_what_the_shifts_lose_is_never_seen():
    # "+h" loses the last row of its group, "-w" the first column.
    x, *weights = inputs_of((1, 4, 5, 8, 4))
    expected = op("triton")(x, *weights)
    x[0, -1, :, 0:2] = float("inf")
    x[0, :, 0, 8 + 2 : 8 + 4] = float("nan")
    assert torch.equal(op("triton")(x, *weights), expected)


def test_gradients_that_are_not_finite_reach_what_was_read():
    weights, da = torch.ones(1, 3, 4, device=DEVICE), torch.zeros(1, 4, device=DEVICE)
    dy = torch.zeros(1, 3, 3, 4, device=DEVICE)
    dy[0, 1, 1] = float("nan")
    # Each channel is a group: "+h", "-h", "+w" and "-w"; the second branch begins with the last two.
    moved = [(0, 1), (2, 1), (1, 0), (1, 2)]
    expected = {(*pixel, c) for c, pixel in enumerate(moved)}
    expected |= {(*pixel, 4 + (c + 2) % 4) for c, pixel in enumerate(moved)} | {(1, 1, 8 + c) for c in range(4)}
    found = triton_impl.backward_features(dy, weights, da)[0].isnan().nonzero()
    assert {tuple(index) for index in found.tolist()} == expected


def test_values_that_are_not_finite_stay_in_their_image():
    inputs = inputs_of((3, 3, 4, 12, 4))
    expected = op("triton")(*inputs)
    inputs[0][1, 2, 2, 5] = float("nan")
    y = op("triton")(*inputs)
    assert y[1].isnan().all()
    y[1] = expected[1]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize("layout", [None, "channels_first"])
def test_opcheck(layout, batch):
    arrange = MAP_LAYOUTS.get(layout, as_it_is)
    x, *_ = inputs_of((batch, 3, 4, 4, 4))
    dy = arrange(torch.randn_like(x[..., :4]))
    weights, da = torch.rand(batch, 3, 4, device=DEVICE), torch.randn(batch, 4, device=DEVICE)
    opcheck_triton_passes(arrange(x), dy, weights, da)


def test_compile_whole_graph():
    assert_compiles(op("triton"), op("reference"), lambda batch: inputs_of((batch, 3, 2, 5, 4)), "aot_eager", True)


def test_float64_has_a_reason():
    assert "float64" in str(triton_impl.why_not(torch.device(DEVICE), torch.float64))


def test_every_tile_is_a_compile_case():
    used = set()

    class Recorded(dict):
        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_triton_tiles, "TILES", Recorded(_triton_tiles.TILES))
        names = [name for name, *_ in triton_impl.compile_cases()]
    assert used == set(_triton_tiles.TILES)
    assert len(set(names)) == len(names)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(4, 32, 32, 192, 48), (4, 16, 16, 384, 96), (4, 14, 14, 66, 16)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_published_shapes(dtype, sizes):
    assert_accurate("triton", lambda: inputs_of(sizes, dtype))
