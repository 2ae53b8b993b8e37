"""The transforms of torch.func around the layers: what has no rules there raises, instead of passing for a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_integration import LAYERS
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

import mixer_kernels

REFUSED = r"need backend='reference'"


def build(name: str, parameters: bool = False) -> tuple[nn.Module, torch.Tensor]:
    pytest.importorskip("mixer_kernels._C")
    make, shape = LAYERS[name]
    return make().eval().requires_grad_(parameters), torch.randn(2, *shape)


def loss(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: (layer(x) ** 2).sum()


def over_images(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return vmap(lambda image: layer(image[None])[0])


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_refused(name: str) -> None:
    layer, x = build(name)
    inner = torch.ones(())
    with pytest.raises(RuntimeError, match=REFUSED):
        grad(loss(layer))(x)
    with pytest.raises(RuntimeError, match=REFUSED):
        grad(lambda x: grad(lambda z: (layer(x * 1.0) * z).sum())(inner) ** 2)(x)
    with pytest.raises(RuntimeError, match=REFUSED):
        jvp(layer, (x,), (torch.ones_like(x),))
    with pytest.raises(RuntimeError, match=REFUSED):
        over_images(layer)(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=REFUSED):
        grad(lambda x: over_images(layer)(x).sum())(x)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_refused_while_compiling(name: str) -> None:
    layer, x = build(name)
    trained, _ = build(name, parameters=True)
    values = {key: value.detach() for key, value in trained.named_parameters()}
    calls = [lambda: torch.compile(grad(loss(layer)), backend="aot_eager")(x)]
    if values:
        calls.append(
            lambda: torch.compile(
                grad(lambda values: (functional_call(trained, values, (x,)) ** 2).sum()), backend="aot_eager"
            )(values)
        )
    for call in calls:
        with pytest.raises(RuntimeError, match=REFUSED):
            call()
    # What is compiled once without them is compiled anew inside of them, and the other way round.
    compiled = torch.compile(layer, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), layer(x))
        with pytest.raises(RuntimeError, match=REFUSED):
            grad(loss(compiled))(x)
    torch._dynamo.reset()


# PyTorch itself fails at a LayerNorm there.
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "S2Block"])
def test_forward_mode_is_refused_while_compiling(name: str) -> None:
    layer, x = build(name)

    def dual(x: torch.Tensor) -> torch.Tensor | None:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    for tangent in (dual, lambda x: jvp(layer, (x,), (torch.ones_like(x),))[1]):
        with pytest.raises(RuntimeError):
            torch.compile(tangent, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_not_differentiated_runs(name: str) -> None:
    layer, x = build(name)
    torch.testing.assert_close(over_images(layer)(x), layer(x))
    one = torch.ones(())
    torch.testing.assert_close(grad(lambda z: (layer(x) * z).sum())(one), layer(x).sum())
    with torch.no_grad():
        trained, _ = build(name, parameters=True)
        torch.testing.assert_close(over_images(trained)(x), trained(x))


def test_reference_layers_have_derivatives() -> None:
    layer = mixer_kernels.TokenMixing(12, 10, backend="reference")
    x = torch.randn(2, 10, 12)
    y, tangent = jvp(layer, (x,), (torch.ones_like(x),))
    assert y.shape == tangent.shape == grad(loss(layer))(x).shape
