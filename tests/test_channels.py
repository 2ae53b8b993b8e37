"""The layers over the channels: in inference through oneDNN, as if this CPU were one where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import LAYOUTS
from tolerances import assert_as_accurate
from torch import nn
from torch.nn.utils import parametrize

import mixer_kernels
from mixer_kernels import reference
from mixer_kernels.ops import _linear_call, _onednn
from mixer_kernels.ops._activation import ACTIVATION_CODES, apply_activation

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

# Large enough for the products of its perceptron to pay.
DIM = 136

# bfloat16 where PyTorch multiplies it with oneDNN, too.
DTYPES = [torch.float32]
if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    DTYPES.append(torch.bfloat16)

# name -> (how to build the layer in its plain and its drop-in form, shape of its input, what follows each product)
LAYERS: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...], list[str | None]]] = {
    "ChannelMixing": (lambda package: package.ChannelMixing(DIM), (2, 7, DIM), ["gelu", None]),
    "MixerBlock": (lambda package: package.MixerBlock(DIM, 7), (2, 7, DIM), ["gelu", None]),
    "ResMLPBlock": (lambda package: package.ResMLPBlock(DIM, 7, init_values=1.0), (2, 7, DIM), ["gelu", None]),
    "S2Block": (lambda package: package.S2Block(160), (2, 3, 4, 160), [None, "gelu", None]),
}


@pytest.fixture(autouse=True)
def _everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(_onednn, "FASTER_IN", frozenset(DTYPES))


@pytest.fixture
def activations(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What follows each product from here on, in the same pass."""
    names: list[str | None] = []
    linear = _onednn.linear

    def spy(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> torch.Tensor:
        names.append(activation)
        return linear(x, weight, bias, activation)

    monkeypatch.setattr(_onednn, "linear", spy)
    return names


def make_inputs(
    rows: tuple[int, ...] = (2, 5), depth: int = 300, width: int = 250, dtype: torch.dtype = torch.float32
) -> Inputs:
    inputs = (torch.randn(*rows, depth), torch.randn(width, depth) / depth**0.5, torch.randn(width))
    return tuple(value.to(dtype) for value in inputs)  # type: ignore[return-value]


# Sums of one part, of two and of three.
@pytest.mark.parametrize(("rows", "depth", "width"), [((1, 1), 1024, 64), ((3, 2, 5), 1025, 65), ((100,), 2500, 33)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATION_CODES)
def test_accuracy(
    rows: tuple[int, ...], depth: int, width: int, with_bias: bool, dtype: torch.dtype, activation: str | None
) -> None:
    x, weight, bias = make_inputs(rows, depth, width, dtype)
    inputs = (x, weight, bias if with_bias else None)
    exact = F.linear(*(None if value is None else value.double() for value in inputs))
    with torch.inference_mode():
        assert _onednn.pays(*inputs)
        y = _onednn.linear(*inputs, activation)
        assert y.is_contiguous()
        pytorch, exact = (apply_activation(value, activation) for value in (F.linear(*inputs), exact))
        assert_as_accurate(y, pytorch, exact)
        assert torch.equal(y, _onednn.linear(*inputs, activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATION_CODES)
@torch.inference_mode()
def test_what_is_not_finite(dtype: torch.dtype, activation: str | None) -> None:
    x, weight, bias = make_inputs(dtype=dtype)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        x[0, row, 0] = value
    y = _onednn.linear(x, weight, bias, activation)
    expected = apply_activation(F.linear(x, weight, bias), activation)
    torch.testing.assert_close(y[0, :3], expected[0, :3], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_layouts(layout: str, which: str) -> None:
    inputs = dict(zip(("x", "weight", "bias"), make_inputs(), strict=True))
    expected = F.linear(*inputs.values())
    shape = inputs[which].shape
    # Layouts are those of three dimensions.
    leading = [1] * (3 - len(shape))
    inputs[which] = LAYOUTS[layout](inputs[which].view(*leading, *shape))[(0,) * len(leading)]
    assert inputs[which].shape == shape
    with torch.inference_mode():
        assert _onednn.pays(*inputs.values())
        torch.testing.assert_close(_onednn.linear(*inputs.values()), expected)


def test_an_empty_batch() -> None:
    with torch.inference_mode():
        assert _onednn.linear(*make_inputs((0, 5))).shape == (0, 5, 250)


def test_a_onednn_that_is_switched_off_stays_off() -> None:
    inputs = make_inputs()
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(_onednn.linear(*inputs, "relu"), F.relu(F.linear(*inputs)))


def test_what_pytorch_has_to_answer_for() -> None:
    class Mine(torch.Tensor):
        pass

    x, weight, bias = make_inputs()
    few = _linear_call.FEWEST_ELEMENTS // 300
    others = {
        "float64": (x.double(), weight.double(), bias.double()),
        "mixed": (x, weight.double(), bias),
        "few": (x, weight[:few], bias[:few]),
        "a vector": (x[0, 0], weight, bias),
        "width of x": (x[..., :200], weight, bias),
        "three dimensions": (x, weight[None], bias),
        "one bias": (x, weight, bias[:1]),
        "meta": (x, weight, bias.to("meta")),
        "sparse": (x, weight.to_sparse_csr(), bias),
        "subclass": (x, weight.as_subclass(Mine), bias),
    }
    with torch.no_grad():
        assert _onednn.pays(x, weight, bias)
        assert _onednn.pays(x, nn.Parameter(weight), None)
        assert [name for name, inputs in others.items() if _onednn.pays(*inputs)] == []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not _onednn.pays(x, weight, bias)
        with torch.autograd.forward_ad.dual_level():
            assert not _onednn.pays(x, weight, bias)
        vmapped = torch.vmap(lambda row: row.new_tensor(_onednn.pays(row, weight, bias)))(x)
        assert not vmapped.any()
    assert not _onednn.pays(x, weight, bias)


def test_opcheck() -> None:
    x, weight, bias = make_inputs((6,), 1100, 70)
    for arguments in ((x, weight, bias, "gelu"), (weight.t().contiguous().t(), x, None, None)):
        torch.library.opcheck(torch.ops.mixer_kernels.onednn_linear, arguments)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, activations: list[str | None]) -> None:
    build, shape, expected = LAYERS[name]
    plain, fused = build(reference), build(mixer_kernels)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    assert activations == expected
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    assert activations == expected
    if torch.bfloat16 in DTYPES:
        with torch.no_grad():
            exact = plain.double()(x.double())
            plain.bfloat16(), fused.bfloat16()
            assert_as_accurate(fused(x.bfloat16()), plain(x.bfloat16()), exact)
        assert activations == 2 * expected


@pytest.mark.parametrize("name", LAYERS)
def test_compile(name: str) -> None:
    build, shape, expected = LAYERS[name]
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layer = build(mixer_kernels).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=keep)
    with torch.no_grad():
        for batch in (2, 3):
            x = torch.randn(batch, *shape[1:])
            torch.testing.assert_close(compiled(x), layer(x))
    assert [sum("onednn" in str(node.target) for node in graph.graph.nodes) for graph in graphs] == [len(expected)]


@pytest.mark.parametrize("name", LAYERS)
def test_the_reference_is_plain_pytorch(name: str, activations: list[str | None]) -> None:
    build, shape, _ = LAYERS[name]
    layer, x = build(mixer_kernels), torch.randn(shape)
    with torch.no_grad():
        with mixer_kernels.use_backend("reference"):
            layer(x)
        layer.backend = "reference"
        if isinstance(layer, mixer_kernels.S2Block):
            layer.attention.backend = "reference"
        layer(x)
    assert not activations


@torch.no_grad()
def test_parts_that_are_observed_or_replaced_are_called(activations: list[str | None]) -> None:
    calls: list[str] = []
    x = torch.randn(2, 7, DIM)
    layer = mixer_kernels.MixerBlock(DIM, 7)
    mlp = layer.mlp_channels
    hook = mlp.fc1.register_forward_hook(lambda *_: calls.append("fc1"))
    layer(x)
    assert (calls, activations) == (["fc1"], [None])
    hook.remove()
    hook = mlp.act.register_forward_hook(lambda *_: calls.append("act"))
    layer(x)
    assert (calls, activations) == (["fc1", "act"], 3 * [None])
    hook.remove()
    mlp.act = nn.GELU("tanh")
    layer(x)
    assert activations == [*3 * [None], "gelu_tanh", None]
    mlp.act = nn.Tanh()
    layer(x)
    assert activations == [*3 * [None], "gelu_tanh", *3 * [None]]
    activations.clear()
    mlp.register_forward_hook(lambda *_: calls.append("mlp"))
    layer(x)
    assert (calls, activations) == (["fc1", "act", "mlp"], [])
    layer.mlp_channels = nn.Identity()
    layer(x)
    layer.mlp_channels = reference.MixerBlock(DIM, 7).mlp_channels
    parametrize.register_parametrization(layer.mlp_channels.fc1, "weight", nn.Identity())
    layer.mlp_channels.fc2.compile(backend="eager")
    layer(x)
    layer.mlp_channels.compile(backend="eager")
    layer(x)
    assert not activations


def test_fused_models_too(activations: list[str | None]) -> None:
    folded = mixer_kernels.fuse(mixer_kernels.models.create_model("resmlp_12_224").eval())
    with torch.inference_mode():
        folded(torch.randn(1, 3, 224, 224))
    # The last is the head.
    assert activations == [*(12 * ["gelu", None]), None]
