"""The Triton spatial shift, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch

from mixer_kernels.ops.spatial_shift import triton_impl

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHIFT_1 = [0, 1, 2, 3]
SHIFT_2 = [2, 3, 0, 1]


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert triton_impl.why_not(torch.device(DEVICE)) is None


def shifted(x: torch.Tensor, directions: list[int]) -> torch.Tensor:
    """Return the shift of ``x``, gathered along each axis."""
    y = x.clone()
    for group, dim, source in _groups(x, directions):
        y[..., group] = x[..., group].index_select(dim, source)
    return y


def adjoint(dy: torch.Tensor, directions: list[int]) -> torch.Tensor:
    """Return the adjoint of the shift, scattered along each axis; sums of two values, rounded once."""
    wide = dy.double()
    dx = torch.zeros_like(wide)
    for group, dim, source in _groups(dy, directions):
        dx[..., group] = torch.zeros_like(wide[..., group]).index_add_(dim, source, wide[..., group])
    return dx.to(dy.dtype)


def _groups(x: torch.Tensor, directions: list[int]) -> list[tuple[slice, int, torch.Tensor]]:
    channels, n = x.shape[3], len(directions)
    groups = []
    for i, code in enumerate(directions):
        dim = 1 if code < 2 else 2
        extent = x.shape[dim]
        source = (torch.arange(extent, device=x.device) + (1 if code % 2 else -1)).clamp(0, extent - 1)
        groups.append((slice(i * channels // n, (i + 1) * channels // n), dim, source))
    return groups


def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return random numbers; for bfloat16 integers, because the interpreter cuts its sums where hardware rounds."""
    if dtype == torch.bfloat16:
        return torch.randint(-99, 100, shape, device=DEVICE).to(dtype)
    return torch.randn(shape, device=DEVICE).to(dtype)


def check(x: torch.Tensor, directions: list[int]) -> None:
    """Compare forward and adjoint with the formulas, bit for bit, out of place and in place."""
    before = x.clone()
    for out_of_place, in_place, expected in (
        (triton_impl.forward, triton_impl.forward_, shifted(x, directions)),
        (triton_impl.backward, triton_impl.backward_, adjoint(x, directions)),
    ):
        y = out_of_place(x, directions)
        assert y.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        torch.testing.assert_close(x, before, rtol=0, atol=0)
        # As x lies in memory, so does the tensor that is overwritten.
        target = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
        assert in_place(target, directions) is None
        torch.testing.assert_close(target, expected, rtol=0, atol=0)


@pytest.mark.parametrize("directions", [SHIFT_1, SHIFT_2], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_published_directions(dtype: torch.dtype, directions: list[int]) -> None:
    check(random((2, 11, 9, 64), dtype), directions)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 4), (1, 1, 5, 8), (2, 5, 1, 3), (1, 2, 2, 30), (3, 9, 4, 13), (0, 3, 3, 8), (2, 0, 3, 8), (2, 3, 3, 0)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_odd_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(random(shape, dtype), SHIFT_1)


@pytest.mark.parametrize("directions", [[0], [3, 1, 2], [1, 1, 2, 0, 3, 3, 2], [i % 4 for i in range(67)]], ids=len)
def test_any_directions(directions: list[int]) -> None:
    check(random((1, 3, 4, 40), torch.float32), directions)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.permute(0, 2, 1, 3),
        lambda x: x.permute(0, 3, 1, 2),
        lambda x: x[:, 1:, ::2, 16:48],
        lambda x: x[..., 3:19],
        lambda x: x[..., ::2],
        lambda x: x[:1],
    ],
    ids=["transposed", "channels_first", "cropped", "misaligned", "strided", "batch_1"],
)
def test_any_strides(view) -> None:
    check(view(random((2, 7, 6, 64), torch.float16)), SHIFT_1)


def test_expanded_input() -> None:
    x = random((1, 4, 3, 1), torch.float32).expand(2, 4, 3, 8)
    torch.testing.assert_close(triton_impl.forward(x, SHIFT_2), shifted(x, SHIFT_2), rtol=0, atol=0)


def test_values_pass_unchanged() -> None:
    x = random((1, 4, 4, 8), torch.float32)
    x[0, 1, 1] = float("nan")
    x[0, 2, 2] = float("-inf")
    x[0, 3, 3] = -0.0
    y = triton_impl.forward(x, SHIFT_1)
    assert torch.equal(y.view(torch.int32), shifted(x, SHIFT_1).view(torch.int32))


def test_lines_counted_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_impl, "MAX_LINES", 0)
    check(random((2, 5, 3, 32), torch.float32), SHIFT_1)


def test_every_tile_is_a_compile_case() -> None:
    cases = list(triton_impl.compile_cases())
    compiled = {(arguments["x_ptr"].element_size(), arguments["VECTOR"]) for _, _, arguments, _ in cases}
    assert compiled == set(triton_impl.TILES)
    assert len({name for name, *_ in cases}) == len(cases)


@pytest.mark.parametrize("shape", [(2, 5, 3, 16), (0, 5, 3, 16)], ids=str)
@pytest.mark.parametrize("op", ["fwd", "fwd_", "bwd", "bwd_"])
def test_opcheck(op: str, shape: tuple[int, ...]) -> None:
    x = random(shape, torch.float32)
    torch.library.opcheck(getattr(torch.ops.mixer_kernels, f"spatial_shift_triton_{op}").default, (x, SHIFT_1))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler: str) -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        y = triton_impl.forward(x, SHIFT_1) * 2
        triton_impl.forward_(y, SHIFT_2)
        return y + 1

    x = random((2, 5, 3, 16), torch.float32)
    torch.testing.assert_close(torch.compile(both, backend=compiler, fullgraph=True)(x), both(x), rtol=0, atol=0)


def test_export() -> None:
    class Shift(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return triton_impl.backward(x, SHIFT_2)

    x = random((2, 5, 3, 16), torch.float32)
    exported = torch.export.export(Shift(), (x,)).module()
    torch.testing.assert_close(exported(x), adjoint(x, SHIFT_2), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [64, 63])
def test_more_than_2_to_the_31_elements(channels: int) -> None:
    x = torch.randn(2**21 + 2**17, 4, 4, channels, device=DEVICE, dtype=torch.bfloat16)
    last = x[-3:].clone()
    y = triton_impl.forward(x, SHIFT_1)
    torch.testing.assert_close(y[-3:], shifted(last, SHIFT_1), rtol=0, atol=0)
    triton_impl.backward_(x, SHIFT_1)
    torch.testing.assert_close(x[-3:], adjoint(last, SHIFT_1), rtol=0, atol=0)


@pytest.mark.gpu
def test_maps_large_enough_to_show_a_race() -> None:
    check(torch.randn(1, 1024, 2048, 32, device=DEVICE), SHIFT_1)
