"""Token mixing in Triton, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_as_accurate
from triton_tests import DEVICE, DTYPES, GPU, VIEWS, random, unused_tiles, use_small_tiles

from mixer_kernels.ops._triton_tiles import Tile, strips
from mixer_kernels.ops.token_mixing import _triton_launch, _triton_tiles, triton_impl

pytest.importorskip("triton")

LINEAR, MIXING = "layer_norm_token_linear", "token_mixing"
OPS = [LINEAR, MIXING]
ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh"]
EPS = 1e-6

# Large enough for a second tile in every direction of the smallest tiles below, with channels that Triton loads in
# vectors.
SHAPE = (2, 20, 48, 70)


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert triton_impl.why_not(torch.device(DEVICE)) is None


@pytest.fixture(params=["shipped", "small", "fused"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the tiles that are shipped, on tiles so small that tiny shapes need several, and wholly fused."""
    if request.param != "shipped":
        use_small_tiles(monkeypatch, _triton_tiles)
        monkeypatch.setattr(_triton_tiles, "PREPARE", _triton_tiles.PREPARE | {"BLOCK_C": 16, "BLOCK_PAD": 256})
        monkeypatch.setattr(_triton_tiles, "LAYER_NORM_BWD", {"BLOCK_ROWS": 8, "BLOCK_C": 16, "num_warps": 4})
        fused = Tile(16, 128, 32, 16, num_warps=4, num_stages=2) if request.param == "fused" else None
        monkeypatch.setattr(_triton_tiles, "fused_tile", lambda x: fused)
    return request.param


def parameters(op: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor | None]:
    """Return norm_weight, norm_bias, weight and bias, and of the whole MLP weight2 and bias2."""
    _, tokens, channels, hidden = shape
    first = [1 + 0.1 * random(channels), 0.1 * random(channels), random(hidden, tokens) / tokens**0.5, random(hidden)]
    second = [random(tokens, hidden) / hidden**0.5, random(tokens)]
    return [parameter.to(dtype) for parameter in (first if op == LINEAR else first + second)]


def plain(op: str, x: torch.Tensor, norm_weight: Any, norm_bias: Any, *linears: Any, activation: int) -> torch.Tensor:
    """Return the op in plain PyTorch, as timm has it: transpose, multiply, transpose back."""
    channels = x.shape[2:]
    if norm_weight is None and norm_bias is not None:
        n = F.layer_norm(x, channels, None, None, EPS) + norm_bias
    elif norm_weight is not None and norm_weight.dtype != x.dtype:
        n = F.layer_norm(x.to(norm_weight.dtype), channels, norm_weight, norm_bias, EPS).to(x.dtype)
    else:
        n = F.layer_norm(x, channels, norm_weight, norm_bias, EPS)
    h = F.linear(n.transpose(1, 2), *linears[:2])
    name = ACTIVATIONS[activation]
    if name == "relu":
        h = F.relu(h)
    elif name is not None:
        h = F.gelu(h, approximate="tanh" if name == "gelu_tanh" else "none")
    return h.transpose(1, 2) if op == LINEAR else x + F.linear(h, *linears[2:]).transpose(1, 2)


def plain_gradients(op: str, dy: torch.Tensor, tensors: list[torch.Tensor | None], activation: int) -> list[Any]:
    """Return y and the gradients of the tensors by autograd."""
    leaves = [None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in tensors]
    y = plain(op, *leaves, activation=activation)
    present = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad(y, present, dy))
    return [y.detach(), *(None if leaf is None else next(gradients) for leaf in leaves)]


def ours(op: str, dy: torch.Tensor, tensors: list[torch.Tensor | None], activation: int) -> list[torch.Tensor]:
    """Return y and the gradients of the tensors by the kernels."""
    y, mean, rstd = getattr(triton_impl, f"{op}_forward")(*tensors, EPS, activation)
    gradients = getattr(triton_impl, f"{op}_backward")(dy, tensors[0], mean, rstd, *tensors[1:], activation)
    return [y, *gradients]


def compare(
    op: str, x: torch.Tensor, rest: list[torch.Tensor | None], activation: int = 2, dy: Any = None
) -> list[tuple[torch.Tensor, ...]]:
    """Return y and every gradient: ours, PyTorch's in the same dtype, and those in float64."""
    tensors = [x, *rest]
    if dy is None:
        dy = random(x.size(0), x.size(1) if op == MIXING else len(rest[2]), x.size(2), dtype=x.dtype)
    wide = [None if tensor is None else tensor.double() for tensor in tensors]
    actual = ours(op, dy, tensors, activation)
    pytorch = plain_gradients(op, dy, tensors, activation)
    exact = plain_gradients(op, dy.double(), wide, activation)
    results = []
    for one, other, truth, tensor in zip(actual, pytorch, exact, [x, *tensors], strict=True):
        assert one.is_contiguous()
        if tensor is None:
            assert one.shape == (0,)
            assert one.dtype == x.dtype
        else:
            results.append((one, other, truth))
    return results


def check(op: str, x: torch.Tensor, rest: list[torch.Tensor | None], activation: int = 2, dy: Any = None) -> None:
    """Hold y and every gradient to the rule of tolerances.py."""
    for result in compare(op, x, rest, activation, dy):
        assert_as_accurate(*result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "variant"),
    [(LINEAR, "shipped"), (LINEAR, "small"), (MIXING, "shipped"), (MIXING, "small"), (MIXING, "fused")],
    indirect=["variant"],
)
def test_tiles(op: str, dtype: torch.dtype, variant: str) -> None:
    check(op, random(*SHAPE[:3], dtype=dtype), parameters(op, SHAPE, dtype))


@pytest.mark.parametrize("variant", ["small"], indirect=True)
@pytest.mark.parametrize("activation", [0, 1, 3], ids=lambda code: str(ACTIVATIONS[code]))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_activations(op: str, dtype: torch.dtype, activation: int, variant: str) -> None:
    check(op, random(*SHAPE[:3], dtype=dtype), parameters(op, SHAPE, dtype), activation)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_gelu_of_large_negative_values_in_half_types(dtype: torch.dtype) -> None:
    # It approximates the normal distribution function, but what is left of it must not grow with z.
    x = torch.linspace(-30, 30, 41, device=DEVICE, dtype=dtype).view(1, 1, -1)
    weight = torch.full((2, 1), 2000.0, device=DEVICE, dtype=dtype)
    forward = torch.ops.mixer_kernels.layer_norm_token_linear_triton_fwd
    z, y = (forward(x, None, None, weight, None, 1e-6, activation)[0] for activation in (0, 2))
    assert (z < -3000).any()
    assert (y[z < -8].abs() < 1e-5).all()


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 6, 1), (3, 5, 30, 7), (1, 17, 6, 33), (2, 20, 3, 1), (2, 1, 40, 33), (1, 68, 8, 66)],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_odd_shapes(op: str, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # Two rows a program would take the interpreter most of this test's time.
    monkeypatch.setattr(_triton_tiles, "PREPARE", _triton_tiles.PREPARE | {"BLOCK_ROWS": 16})
    # The ratio of two errors of fewer elements is luck.
    few = 32
    draws = [compare(op, random(*shape[:3], dtype=dtype), parameters(op, shape, dtype))]
    while len(draws) * min(one.numel() for one, *_ in draws[0]) < few:
        draws.append(compare(op, random(*shape[:3], dtype=dtype), parameters(op, shape, dtype)))
    for same in zip(*draws, strict=True):
        assert_as_accurate(*(torch.cat([value.flatten() for value in values]) for values in zip(*same, strict=True)))


@pytest.mark.parametrize("activation", [0, 2], ids=lambda code: str(ACTIVATIONS[code]))
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("op", "variant"), [(LINEAR, "shipped"), (MIXING, "shipped"), (MIXING, "fused")], indirect=["variant"]
)
def test_any_strides(op: str, view: str, activation: int, variant: str) -> None:
    shapes = (2, 5, 24), (2, 5 if op == MIXING else 7, 24)
    rest = parameters(op, (2, 5, 24, 7), torch.float32)
    # One of the two at a time, so that strides taken from the other one show.
    for x_view, dy_view in ((VIEWS[view], random), (random, VIEWS[view])):
        x, dy = x_view(*shapes[0]), dy_view(*shapes[1])
        strided = ours(op, dy, [x, *rest], activation)
        for one, other in zip(strided, ours(op, dy.contiguous(), [x.contiguous(), *rest], activation), strict=True):
            torch.testing.assert_close(one, other)
            assert one.is_contiguous()


@pytest.mark.parametrize("absent", [(0, 1), (1,), (0,), (3, 5), (0, 1, 3, 5)], ids=str)
@pytest.mark.parametrize(
    ("op", "activation", "variant"),
    [(LINEAR, 0, "shipped"), (LINEAR, 2, "shipped"), (MIXING, 2, "shipped"), (MIXING, 2, "fused")],
    indirect=["variant"],
)
def test_absent_parameters(op: str, activation: int, absent: tuple[int, ...], variant: str) -> None:
    shape = (2, 5, 24, 7)
    rest = [None if i in absent else p for i, p in enumerate(parameters(op, shape, torch.float32))]
    check(op, random(*shape[:3]), rest, activation)


@pytest.mark.parametrize("op", OPS)
def test_norm_in_float32(op: str) -> None:
    shape = (2, 5, 24, 7)
    norm, linears = parameters(op, shape, torch.float32)[:2], parameters(op, shape, torch.float16)[2:]
    check(op, random(*shape[:3], dtype=torch.float16), [*norm, *linears])


def test_autocast_multiplies_in_tf32() -> None:
    precisions: list[str] = []

    def note(kernel: object, programs: int, arguments: dict[str, Any]) -> None:
        precisions.append(arguments.get("PRECISION", "tf32"))

    x, norm_weight, norm_bias, *linears = (
        value.to("meta") for value in (random(1, 33, 16), *parameters(MIXING, (1, 33, 16, 7), torch.float32))
    )
    inputs = x, norm_weight, norm_bias, *linears
    y, mean, rstd = _triton_launch.mixing_forward(note, *inputs, EPS, 2, allow_tf32=True)
    norm = _triton_launch.Norm(mean, rstd, norm_weight, norm_bias)
    _triton_launch.mixing_backward(note, y, x, norm, *linears, 2, allow_tf32=True)
    y, *_ = _triton_launch.linear_forward(note, *inputs[:5], EPS, 2, allow_tf32=True)
    _triton_launch.linear_backward(note, y, x, norm, *linears[:2], 2, allow_tf32=True)
    assert set(precisions) == {"tf32"}


@pytest.mark.parametrize("variant", ["shipped", "small"], indirect=True)
@pytest.mark.parametrize("op", OPS)
def test_large_mean(op: str, variant: str) -> None:
    x = random(*SHAPE[:3]) + 1e4
    rest = parameters(op, SHAPE, torch.float32)
    _, mean, rstd = getattr(triton_impl, f"{op}_forward")(x, *rest, EPS, 2)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(2), rtol=3e-7, atol=0)
    torch.testing.assert_close(rstd.double(), 1 / (exact.var(2, correction=0) + EPS).sqrt(), rtol=1e-5, atol=0)
    check(op, x, rest)


@pytest.mark.parametrize("variant", ["small"], indirect=True)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_time(op: str, variant: str) -> None:
    tensors = [random(*SHAPE[:3], dtype=torch.float16), *parameters(op, SHAPE, torch.float16)]
    dy = random(2, 20 if op == MIXING else 70, 48, dtype=torch.float16)
    for one, other in zip(ours(op, dy, tensors, 2), ours(op, dy, tensors, 2), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", [0, 2], ids=lambda code: str(ACTIVATIONS[code]))
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op: str, activation: int) -> None:
    check(op, random(0, 5, 24), parameters(op, (0, 5, 24, 7), torch.float32), activation)


def test_values_that_are_not_numbers() -> None:
    x = random(1, 5, 24)
    x[0, 1, 2] = float("nan")
    for op, activation in ((LINEAR, 1), (MIXING, 2)):
        assert (
            getattr(triton_impl, f"{op}_forward")(x, *parameters(op, (1, 5, 24, 7), x.dtype), EPS, activation)[0]
            .isnan()
            .all()
        )


@pytest.mark.parametrize("narrow", [64, 256])
@pytest.mark.parametrize("strip", [64, 128])
def test_strips_cover_every_row(strip: int, narrow: int) -> None:
    tile = Tile(128, narrow, strip, 32, num_warps=4, num_stages=2)
    for rows in range(1, 1100):
        widths = strips(rows, tile)
        programs = -(-rows // sum(widths))
        assert programs == -(-rows // narrow)
        assert 0 <= sum(widths) - -(-rows // programs) <= 16
        assert max(widths) <= strip
        assert all(width >= 16 and width & (width - 1) == 0 for width in widths)


def test_float64_has_a_reason() -> None:
    assert "float64" in str(triton_impl.why_not(torch.device(DEVICE), torch.float64))


@pytest.mark.skipif(GPU, reason="looks at the tiles of sm_90")
def test_every_tile_is_a_compile_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unused_tiles(monkeypatch, _triton_tiles, triton_impl) == []
    cases = triton_impl.compile_cases()
    fused = {arguments["STRIPS"] for _, kernel, arguments, _ in cases if kernel.fn.__name__ == "token_mixing_kernel"}
    assert fused == {(64,), (128, 64, 16)}


@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, batch: int) -> None:
    shape = (batch, 5, 24, 7)
    x, rest = random(*shape[:3]), parameters(op, shape, torch.float32)
    forward = getattr(torch.ops.mixer_kernels, f"{op}_triton_fwd").default
    torch.library.opcheck(forward, (x, *rest, EPS, 2))
    y, mean, rstd = forward(x, *rest, EPS, 2)
    backward = getattr(torch.ops.mixer_kernels, f"{op}_triton_bwd").default
    torch.library.opcheck(backward, (torch.ones_like(y), x, mean, rstd, None, None, *rest[2:], 2))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(4, 196, 768, 384), (4, 49, 512, 256), (2, 784, 768, 384), (3, 197, 770, 97)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_published_shapes(op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(op, random(*shape[:3], dtype=dtype), parameters(op, shape, dtype))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements() -> None:
    shape = (2**31 // (64 * 1024) + 3, 64, 1024, 64)
    x = torch.randn(shape[:3], device=DEVICE, dtype=torch.bfloat16)
    rest = parameters(MIXING, shape, torch.bfloat16)
    y, mean, rstd = triton_impl.token_mixing_forward(x, *rest, EPS, 2)
    last, *_ = triton_impl.token_mixing_forward(x[-3:], *rest, EPS, 2)
    assert torch.equal(y[-3:], last)
    dx, *_ = triton_impl.token_mixing_backward(x, x, mean, rstd, *rest, 2)
    last, *_ = triton_impl.token_mixing_backward(x[-3:], x[-3:], mean[-3:], rstd[-3:], *rest, 2)
    assert torch.equal(dx[-3:], last)
