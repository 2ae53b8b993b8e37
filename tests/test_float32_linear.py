"""The layers over the channels in 16 bits: by products of float32, as if this CPU were one where those are faster."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import LAYOUTS, MAP_LAYOUTS
from test_channels import LAYERS, make_inputs
from tolerances import assert_as_accurate
from torch import nn

import mixer_kernels
from mixer_kernels import reference
from mixer_kernels.models import create_model
from mixer_kernels.nn._channels import patchwise
from mixer_kernels.ops import _float32_linear, _onednn

DTYPES = [torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
Results = tuple[torch.Tensor, list[torch.Tensor]]


def model_of(name: str, **arguments: Any) -> Callable[[Any], nn.Module]:
    """Return what builds a model, without its layers if ``arguments`` say so, from those of a package."""

    def build(package: Any) -> nn.Module:
        backend = "reference" if package is reference else None
        model = create_model(name, backend=backend, img_size=64, num_classes=512, **arguments)
        # Heads begin with zeros.
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        return model

    return build


IMAGES = (2, 3, 64, 64)
STEMS_AND_HEADS = {
    "MlpMixer": (model_of("mixer_s32_224", num_blocks=0, embed_dim=128), IMAGES, 2 * [None]),
    "ResMLP": (model_of("resmlp_12_224", num_blocks=0, patch_size=32, embed_dim=128), IMAGES, 2 * [None]),
    "S2MLPv2": (
        model_of("s2mlpv2_small_7_224", depths=(0, 0), patch_sizes=(16, 2), embed_dims=(128, 256)),
        IMAGES,
        3 * [None],
    ),
    "ConvMixer": (model_of("convmixer_768_32", depth=0, dim=128, patch_size=16), IMAGES, 2 * [None]),
}
ALL_LAYERS = (
    LAYERS
    | {"ConvMixerLayer": (lambda package: package.ConvMixerLayer(264, 3), (2, 264, 3, 4), [None])}
    | STEMS_AND_HEADS
)


@pytest.fixture(autouse=True)
def _everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onednn, "FASTER_IN", frozenset())
    monkeypatch.setattr(_float32_linear, "FASTER_FOR", frozenset(DTYPES))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the weights that are multiplied from here on."""
    shapes: list[torch.Size] = []
    apply = _float32_linear.Float32LinearFunction.apply

    def spy(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> Any:
        shapes.append(weight.shape)
        return apply(x, weight, *others)

    monkeypatch.setattr(_float32_linear.Float32LinearFunction, "apply", staticmethod(spy))
    return shapes


def gradients_of(function: Callable[..., torch.Tensor], *inputs: torch.Tensor | None) -> Results:
    """Return what ``function`` makes of its inputs, and the gradients of them all."""
    leaves = [None if value is None else value.detach().requires_grad_() for value in inputs]
    y = function(*leaves)
    direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    y.backward(direction)
    return y, [leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None]


def assert_all_as_accurate(ours: Results, pytorch: Results, exact: Results) -> None:
    results = ((y, *gradients) for y, gradients in (ours, pytorch, exact))
    for value, expected, true in zip(*results, strict=True):
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert_as_accurate(value, expected, true)


@pytest.mark.parametrize(("rows", "depth", "width"), [((1, 1), 1024, 64), ((3, 2, 5), 1025, 65), ((100,), 2500, 33)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy(rows: tuple[int, ...], depth: int, width: int, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight, bias = make_inputs(rows, depth, width, dtype)
    inputs = (x, weight, bias if with_bias else None)
    assert _float32_linear.pays(*inputs)
    exact = gradients_of(F.linear, *(None if value is None else value.double() for value in inputs))
    pytorch, ours = gradients_of(F.linear, *inputs), gradients_of(_float32_linear.linear, *inputs)
    assert ours[0].dtype == dtype
    assert_all_as_accurate(ours, pytorch, exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["x", "weight", "dy"])
def test_layouts(layout: str, which: str) -> None:
    def run(inputs: dict[str, torch.Tensor]) -> Results:
        x, weight = inputs["x"].detach().requires_grad_(), inputs["weight"].detach().requires_grad_()
        y = _float32_linear.linear(x, weight, None)
        return y, list(torch.autograd.grad(y, (x, weight), inputs["dy"]))

    x, weight, _ = make_inputs(dtype=torch.bfloat16)
    inputs = {"x": x, "weight": weight, "dy": torch.randn(2, 5, 250, dtype=torch.bfloat16)}
    y, gradients = run(inputs)
    # Layouts are those of three dimensions.
    shape = inputs[which].shape
    leading = [1] * (3 - len(shape))
    inputs[which] = LAYOUTS[layout](inputs[which].view(*leading, *shape))[(0,) * len(leading)]
    assert inputs[which].shape == shape
    other, others = run(inputs)
    torch.testing.assert_close([other, *others], [y, *gradients])


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
def test_layouts_of_maps(layout: str) -> None:
    _, weight, bias = make_inputs(dtype=torch.bfloat16)
    x = torch.randn(3, 300, 4, 5, dtype=torch.bfloat16)
    y, gradients = gradients_of(_float32_linear.pointwise, x, weight, bias)
    other, others = gradients_of(_float32_linear.pointwise, MAP_LAYOUTS[layout](x), weight, bias)
    torch.testing.assert_close([other, *others], [y, *gradients])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pixels_of_maps(dtype: torch.dtype, with_bias: bool, memory_format: torch.memory_format) -> None:
    def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return _float32_linear.pointwise(x, weight.flatten(1), bias)

    _, weight, bias = make_inputs(dtype=dtype)
    x = torch.randn(3, 300, 4, 5, dtype=dtype).to(memory_format=memory_format)
    inputs = (x, weight[..., None, None], *([bias] if with_bias else []))
    exact = gradients_of(F.conv2d, *(value.double() for value in inputs))
    pytorch, ours = gradients_of(F.conv2d, *inputs), gradients_of(pointwise, *inputs)
    assert ours[0].is_contiguous(memory_format=memory_format)
    assert_all_as_accurate(ours, pytorch, exact)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_patches_of_maps(
    dtype: torch.dtype, with_bias: bool, memory_format: torch.memory_format, calls: list[torch.Size]
) -> None:
    def embed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        part = nn.Conv2d(17, 250, 4, stride=4, bias=with_bias, device="meta")
        # Not parameters, whose gradients would be theirs.
        part._parameters.update(weight=weight, bias=bias)
        return patchwise(part, x, None)

    x = torch.randn(3, 17, 8, 12, dtype=dtype).to(memory_format=memory_format)
    inputs = (x, torch.randn(250, 17, 4, 4, dtype=dtype) / 16, *([torch.randn(250, dtype=dtype)] if with_bias else []))
    in_patches = partial(F.conv2d, stride=4)
    exact = gradients_of(in_patches, *(value.double() for value in inputs))
    pytorch, ours = gradients_of(in_patches, *inputs), gradients_of(embed, *inputs)
    assert calls == [(250, 17 * 16)]
    assert ours[0].is_contiguous(memory_format=memory_format)
    assert_all_as_accurate(ours, pytorch, exact)


@pytest.mark.parametrize("shape", [(0, 300, 4, 5), (2, 300, 0, 5)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_maps_without_pixels(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    _, weight, bias = make_inputs(dtype=torch.bfloat16)
    x = torch.empty(shape, dtype=torch.bfloat16, memory_format=memory_format)
    y, gradients = gradients_of(_float32_linear.pointwise, x, weight, bias)
    assert y.shape == (shape[0], 250, *shape[2:])
    assert [gradient.shape for gradient in gradients] == [x.shape, weight.shape, bias.shape]
    assert not gradients[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dtype_of_x", [torch.float32, None])
def test_autocast(dtype: torch.dtype, dtype_of_x: torch.dtype | None) -> None:
    x, weight, bias = make_inputs()
    inputs = (x.to(dtype_of_x or dtype), weight, bias)
    exact = gradients_of(F.linear, *(value.double() for value in inputs))
    with torch.autocast("cpu", dtype=dtype):
        assert _float32_linear.pays(*inputs)
        pytorch, ours = gradients_of(F.linear, *inputs), gradients_of(_float32_linear.linear, *inputs)
    assert_all_as_accurate(ours, pytorch, exact)


def test_gradients_that_are_wanted() -> None:
    x, weight, bias = make_inputs(dtype=torch.bfloat16)
    _float32_linear.linear(x, weight, bias.requires_grad_()).sum().backward()
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.full_like(bias, 10))
    assert x.grad is None
    assert weight.grad is None


def test_gradients_of_gradients() -> None:
    def penalty(linear: Callable[..., torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        x, weight, bias = (value.detach().to(dtype).requires_grad_() for value in inputs)
        (slope,) = torch.autograd.grad(linear(x, weight, bias).sum(), x, create_graph=True)
        slope.square().sum().backward()
        assert weight.grad is not None
        return weight.grad

    inputs = make_inputs(dtype=torch.bfloat16)
    ours, pytorch = (penalty(linear, torch.bfloat16) for linear in (_float32_linear.linear, F.linear))
    assert_as_accurate(ours, pytorch, penalty(F.linear, torch.float64))


def test_an_empty_batch() -> None:
    x, weight, bias = make_inputs((0, 5), dtype=torch.float16)
    y, gradients = gradients_of(_float32_linear.linear, x, weight, bias)
    assert y.shape == (0, 5, 250)
    assert [gradient.shape for gradient in gradients] == [x.shape, weight.shape, bias.shape]
    assert not gradients[1].any()


def test_what_pytorch_has_to_answer_for() -> None:
    x, weight, bias = make_inputs(dtype=torch.bfloat16)
    others = {
        "float32": (x.float(), weight.float(), bias.float()),
        "mixed": (x, weight.float(), bias),
        "two of 16 bits": (x, weight.half(), bias),
        "width of x": (x[..., :200], weight, bias),
        "meta": (x, weight, bias.to("meta")),
    }
    assert _float32_linear.pays(x, weight, bias)
    assert _float32_linear.pays(x, nn.Parameter(weight), None)
    assert _float32_linear.may_pay_for(x)
    assert not any(map(_float32_linear.may_pay_for, (x.float(), x.to("meta"), None)))
    assert [name for name, inputs in others.items() if _float32_linear.pays(*inputs)] == []
    with torch.autograd.forward_ad.dual_level():
        assert not _float32_linear.pays(x, weight, bias)
    with torch.no_grad():
        assert not torch.vmap(lambda row: row.new_tensor(_float32_linear.pays(row, weight, bias)))(x).any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _float32_linear.pays(x, weight, bias)
        assert not _float32_linear.pays(x.double(), weight, bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ALL_LAYERS)
def test_layers(name: str, training: bool, calls: list[torch.Size]) -> None:
    build, shape, products = ALL_LAYERS[name]
    plain, fused = build(reference), build(mixer_kernels)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape)

    def run(layer: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        layer.to(dtype).zero_grad()
        if not training:
            with torch.inference_mode():
                return [layer(x.to(dtype))]
        y = layer(x.to(dtype))
        y.float().square().sum().backward()
        return [y, *(parameter.grad.clone() for parameter in layer.parameters())]

    expected = run(plain, torch.bfloat16)
    assert calls == []
    ours = run(fused, torch.bfloat16)
    assert len(calls) == len(products)
    with mixer_kernels.use_backend("reference"):
        run(fused, torch.bfloat16)
    run(fused, torch.float32)
    assert len(calls) == len(products)
    for value, pytorch, exact in zip(ours, expected, run(plain, torch.float64), strict=True):
        assert_as_accurate(value, pytorch, exact)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(264, 264, 3, padding=1),
        nn.Conv2d(264, 264, 1, stride=2),
        nn.Conv2d(528, 528, 1, groups=2),
        nn.Conv2d(264, 264, 1, padding=1),
        nn.Conv2d(264, 264, (2, 1), stride=(2, 1)),
        nn.Conv2d(264, 264, 2, stride=2, dilation=2),
        nn.Conv2d(264, 264, 2, stride=2, padding=1),
        # The map is not whole patches.
        nn.Conv2d(264, 264, 3, stride=3),
    ],
    ids=str,
)
def test_convolutions_of_other_than_pixels_and_patches(conv: nn.Conv2d, calls: list[torch.Size]) -> None:
    layer = mixer_kernels.ConvMixerLayer(conv.in_channels, 3).to(torch.bfloat16)
    layer[1] = conv.to(torch.bfloat16)
    layer(torch.randn(2, conv.in_channels, 4, 4, dtype=torch.bfloat16))
    assert calls == []


def test_the_native_kernels_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = pytest.importorskip("mixer_kernels._C")
    if platform.machine() != "x86_64":
        pytest.skip("not an x86-64")
    monkeypatch.delenv("MIXER_KERNELS_ISA", raising=False)
    multiplies_bfloat16 = extension.build_info()["cpu_isa"] in ("avx512_bf16", "amx")
    assert (torch.bfloat16 in _float32_linear._faster_for()) == (not multiplies_bfloat16)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ALL_LAYERS)
def test_compile(name: str, autocast: bool) -> None:
    build, shape, products = ALL_LAYERS[name]
    torch._dynamo.reset()
    layer = build(mixer_kernels).to(torch.float32 if autocast else torch.bfloat16)
    nodes: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=keep)

    def gradients(function: Callable[..., torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = function(x)
        return [y, *torch.autograd.grad(y.float().square().sum(), tuple(layer.parameters()))]

    for batch in (2, 3):
        x = torch.randn(batch, *shape[1:], dtype=torch.bfloat16)
        torch.testing.assert_close(gradients(compiled, x), gradients(layer, x))
    assert sum("autograd_function_apply" in node for node in nodes) >= len(products)
