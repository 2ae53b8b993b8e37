"""The layers over the channels: their products through oneDNN, on every CPU that PyTorch has it for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import LAYOUTS, Arrange, as_it_is, assert_accurate
from citizenship import assert_accurate_under_autocast, assert_compiles, assert_exports
from torch import nn

import mixer_kernels
from mixer_kernels import convert, reference
from mixer_kernels.ops import _linear

# Large enough for the products of its perceptron to pay.
DIM = 136

# name -> (how to build the layer in its plain and its drop-in form, shape of its input, products over the channels)
LAYERS: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...], int]] = {
    "ChannelMixing": (lambda package: package.ChannelMixing(DIM), (2, 7, DIM), 2),
    "MixerBlock": (lambda package: package.MixerBlock(DIM, 7), (2, 7, DIM), 2),
    "ResMLPBlock": (lambda package: package.ResMLPBlock(DIM, 7, init_values=1.0), (2, 7, DIM), 2),
    "S2Block": (lambda package: package.S2Block(160), (2, 3, 4, 160), 3),
}


@pytest.fixture(autouse=True)
def _held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (torch.backends.mkldnn.is_available() and torch._C._has_mkldnn):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(_linear, "IS_HELD_BACK", True)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the left operands of all products from here on."""
    shapes: list[tuple[int, ...]] = []
    product = _linear.product

    def spy(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        shapes.append(tuple(left.shape))
        return product(left, right, bias)

    monkeypatch.setattr(_linear, "product", spy)
    return shapes


def make_inputs(rows: tuple[int, ...] = (2, 5), depth: int = 300, width: int = 250) -> list[torch.Tensor]:
    return [torch.randn(*rows, depth), torch.randn(width, depth) / depth**0.5, torch.randn(width)]


# Sums of one part, of two and of three; the last over the rows, too, in the weight's gradient.
@pytest.mark.parametrize(("rows", "depth", "width"), [((1, 1), 1024, 64), ((3, 2, 5), 1025, 65), ((2100,), 2500, 33)])
def test_accuracy(rows: tuple[int, ...], depth: int, width: int, products: list[tuple[int, ...]]) -> None:
    assert_accurate(_linear.linear, F.linear, lambda: make_inputs(rows, depth, width))
    assert len(products) % 3 == 0
    assert products


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, products: list[tuple[int, ...]]) -> None:
    assert_accurate(_linear.linear, F.linear, make_inputs, LAYOUTS[layout])
    assert products


@pytest.mark.parametrize(
    "arrange", [as_it_is, lambda x: x.t().contiguous().t(), lambda x: torch.cat((x, x), 1)[:, :300]]
)
def test_weights_in_any_layout(arrange: Arrange) -> None:
    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return _linear.linear(x, arrange(weight), bias)

    assert_accurate(ours, F.linear, make_inputs)


def test_without_bias() -> None:
    assert_accurate(lambda x, weight: _linear.linear(x, weight, None), F.linear, lambda: make_inputs()[:2])


def test_only_what_needs_a_gradient_gets_one(products: list[tuple[int, ...]]) -> None:
    x, weight, bias = make_inputs()
    _linear.linear(x, weight, bias.requires_grad_()).sum().backward()
    assert len(products) == 1
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 10))


def test_an_empty_batch() -> None:
    x, weight, bias = make_inputs((0, 5))
    x.requires_grad_()
    weight.requires_grad_()
    y = _linear.linear(x, weight, bias)
    assert y.shape == (0, 5, 250)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight))


def test_what_does_not_pay_is_left_to_pytorch(products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = make_inputs()
    few = _linear.FEWEST_ELEMENTS // 300
    for inputs in (
        (x.double(), weight.double(), bias.double()),
        (x, weight[:few], bias[:few]),
        (x[0, 0], weight, bias),
    ):
        assert torch.equal(_linear.linear(*inputs), F.linear(*inputs))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(_linear.linear(x, weight, bias), F.linear(x, weight, bias))
    monkeypatch.setattr(_linear, "IS_HELD_BACK", False)
    assert torch.equal(_linear.linear(x, weight, bias), F.linear(x, weight, bias))
    assert not products


def test_autocast(products: list[tuple[int, ...]]) -> None:
    assert_accurate_under_autocast(_linear.linear, F.linear, make_inputs(), "cpu")
    assert not products


def test_opcheck_and_determinism() -> None:
    x, weight, bias = make_inputs((6,), 1100, 70)
    for arguments in ((x, weight, bias), (weight.t().contiguous().t(), x, None)):
        torch.library.opcheck(torch.ops.mixer_kernels.linear, arguments)
    assert torch.equal(_linear.product(x, weight, bias), _linear.product(x, weight, bias))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    assert_compiles(
        _linear.linear, F.linear, lambda batch: make_inputs((batch, 5)), "inductor" if dynamic else "aot_eager", dynamic
    )


def test_differentiating_twice_is_refused() -> None:
    x, weight, bias = make_inputs()
    x.requires_grad_()
    (dx,) = torch.autograd.grad(_linear.linear(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward needs backend='reference'"):
        dx.sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, products: list[tuple[int, ...]]) -> None:
    build, shape, count = LAYERS[name]
    plain, fused = build(reference), build(mixer_kernels)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    assert len(products) == count
    fused(x).sum().backward()
    # Forward again, and two products for each of its own backward.
    assert len(products) == count + 3 * count
    plain(x).sum().backward()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_export(name: str) -> None:
    build, shape, _ = LAYERS[name]
    assert_exports(build(mixer_kernels).eval(), torch.randn(shape))


@pytest.mark.parametrize("name", LAYERS)
def test_the_reference_is_plain_pytorch(name: str, products: list[tuple[int, ...]]) -> None:
    build, shape, _ = LAYERS[name]
    layer, x = build(mixer_kernels), torch.randn(shape)
    with mixer_kernels.use_backend("reference"):
        layer(x)
    layer.backend = "reference"
    if isinstance(layer, mixer_kernels.S2Block):
        layer.attention.backend = "reference"
    layer(x)
    assert not products


def test_parts_that_are_observed_or_replaced_are_called(products: list[tuple[int, ...]]) -> None:
    calls: list[str] = []
    x = torch.randn(2, 7, DIM)
    layer = mixer_kernels.MixerBlock(DIM, 7)
    layer.mlp_channels.fc1.register_forward_hook(lambda *_: calls.append("fc1"))
    layer(x)
    assert calls == ["fc1"]
    assert len(products) == 1
    layer.mlp_channels.register_forward_hook(lambda *_: calls.append("mlp"))
    layer(x)
    assert calls == ["fc1", "fc1", "mlp"]
    layer.mlp_channels = nn.Identity()
    layer(x)
    assert len(products) == 1


def test_fused_models_too(products: list[tuple[int, ...]]) -> None:
    model = mixer_kernels.models.create_model("resmlp_12_224").eval()
    folded = convert.fuse(model)
    with torch.inference_mode():
        folded(torch.randn(1, 3, 224, 224))
    assert len(products) == 2 * 12
