"""The layers that can be replaced: how each is recognised, and how its fused layer is built around its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from mixer_kernels import nn as fused_layers
from mixer_kernels import reference
from mixer_kernels.nn._parts import ACTIVATIONS, activation_name, observed, why_not
from mixer_kernels.reference.conv_mixer import Residual
from mixer_kernels.reference.mlp import Mlp


class NotReplaceableError(Exception):
    """A layer has to stay as it is; the message says why."""


class Source(NamedTuple):
    """A layer that :func:`build` replaces, and what by."""

    name: str  # of the class, and of the layer in `reference` and `nn`
    make: Callable[[Any, str | None], nn.Module]


def class_name(module: nn.Module | type) -> str:
    """Return the qualified name of a module's class: it recognises timm's classes without an import of timm."""
    cls = module if isinstance(module, type) else type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def find_source(module: nn.Module) -> Source | None:
    """Return what a module, or a class that it derives from, can be replaced as; None for any other module."""
    for cls in type(module).__mro__:
        source = SOURCES.get(class_name(cls))
        if source is not None and (cls is not nn.Sequential or _is_timm_conv_mixer_layer(module)):
            return source
    return None


def build(source: Source, module: nn.Module, backend: str | None) -> nn.Module:
    """Return the fused layer that holds the parameters of ``module``.

    Raises:
        NotReplaceableError: it cannot be replaced.
    """
    fused = getattr(fused_layers, source.name)
    if fused is getattr(reference, source.name):
        raise NotReplaceableError("no fused layer yet")
    if type(module) is fused:
        raise NotReplaceableError("already fused")
    if SOURCES.get(class_name(module)) is not source:
        raise NotReplaceableError("a subclass, which may compute something else")
    for path, part in module.named_modules():
        where = f" on {path}" if path else ""
        what = observed(part)
        if what is not None:
            raise NotReplaceableError(f"{what}{where}, which a fused layer may not call")
    return source.make(module, backend)


def recast(module: Any, backend: str | None) -> nn.Module:
    """Turn a reference layer into its fused subclass where it is: all that differs is ``forward``."""
    for path, part in module.named_modules():
        if not class_name(part).startswith(("torch.nn.modules.", "mixer_kernels.")):
            raise NotReplaceableError(f"{path} is a {class_name(part)}")
    fused = getattr(fused_layers, type(module).__name__)
    # The others call every part, or look at each call.
    reason = why_not(module, getattr(fused, "bypassed", {}))
    if reason is not None:
        raise NotReplaceableError(reason)
    module.__class__ = fused
    module.backend = backend
    return module


def from_timm_mixer_block(module: Any, backend: str | None) -> nn.Module:
    """Build a MixerBlock from timm's."""
    tokens, channels = _perceptron(module, "mlp_tokens"), _perceptron(module, "mlp_channels")
    if tokens.activation != channels.activation:
        raise NotReplaceableError(f"two activations, {tokens.activation} and {channels.activation}")
    layer = fused_layers.MixerBlock(
        channels.dim,
        tokens.dim,
        # Half a unit more, or rounding of the quotient could cost the last one of the width.
        ((tokens.hidden_dim + 0.5) / channels.dim, (channels.hidden_dim + 0.5) / channels.dim),
        activation=tokens.activation,
        backend=backend,
        device="meta",
    )
    return adopt(layer, module)


def from_timm_res_block(module: Any, backend: str | None) -> nn.Module:
    """Build a ResMLPBlock from timm's."""
    channels = _perceptron(module, "mlp_channels")
    layer = fused_layers.ResMLPBlock(
        channels.dim,
        _part(module, "linear_tokens", nn.Linear).in_features,
        (channels.hidden_dim + 0.5) / channels.dim,
        activation=channels.activation,
        backend=backend,
        device="meta",
    )
    return adopt(layer, module)


def from_timm_conv_mixer_layer(module: Any, backend: str | None) -> nn.Module:
    """Build a ConvMixerLayer from timm's nested Sequentials."""
    conv = _part(module, "0.fn.0", nn.Conv2d)
    activations = {_activation(module, path) for path in ("0.fn.1", "2")}
    if len(activations) > 1:
        raise NotReplaceableError(f"two activations, {' and '.join(sorted(map(str, activations)))}")
    layer: Any = fused_layers.ConvMixerLayer(
        conv.out_channels, conv.kernel_size, activation=activations.pop(), backend=backend, device="meta"
    )
    for name in ("groups", "stride", "padding", "dilation", "padding_mode"):
        theirs, ours = getattr(conv, name), getattr(layer[0].fn[0], name)
        if theirs != ours:
            raise NotReplaceableError(f"0.fn.0 has {name} {theirs}, not {ours}")
    return adopt(layer, module)


# Qualified name of a class -> what it can be replaced as. A name out of `reference` needs no entry of its own.
SOURCES: dict[str, Source] = {
    **{class_name(getattr(reference, name)): Source(name, recast) for name in reference.__all__},
    "timm.models.mlp_mixer.MixerBlock": Source("MixerBlock", from_timm_mixer_block),
    "timm.models.mlp_mixer.ResBlock": Source("ResMLPBlock", from_timm_res_block),
    class_name(nn.Sequential): Source("ConvMixerLayer", from_timm_conv_mixer_layer),
}

# Qualified name of a class inside a source -> the class whose place it takes.
COUNTERPARTS: dict[str, type[nn.Module]] = {
    "timm.layers.mlp.Mlp": Mlp,
    "timm.models.mlp_mixer.Affine": reference.Affine,
    "timm.models.convmixer.Residual": Residual,
    "timm.layers.activations.GELU": nn.GELU,
    "timm.layers.activations.GELUTanh": nn.GELU,
    class_name(nn.Conv2d): reference.DepthwiseConv2d,
}


def adopt(layer: nn.Module, module: nn.Module, path: str = "") -> nn.Module:
    """Put the parameters and plain PyTorch parts of ``module`` in the place of those of ``layer``.

    Args:
        layer: a fresh layer of the same parameter names, or a part of it.
        module: what it is to replace.
        path: where in the layer both stand.

    Raises:
        NotReplaceableError: a part of one has no counterpart in the other.
    """
    if module._parameters.keys() != layer._parameters.keys():
        raise NotReplaceableError(
            f"{path or 'it'} has parameters {list(module._parameters)}, not {list(layer._parameters)}"
        )
    layer.training = module.training
    for name in layer._parameters:
        setattr(layer, name, getattr(module, name))
    for name in layer._modules.keys() | module._modules.keys():
        where = f"{path}.{name}".removeprefix(".")
        ours, part = layer._modules.get(name), module._modules.get(name)
        if ours is None and part is not None:
            _check_neutral(part, where)
        elif ours is None or part is None:
            raise NotReplaceableError(f"{where} is missing")
        elif type(part) is type(ours) and not part._modules:
            # As it is, with whatever it holds beside its parameters: eps, momentum, running statistics.
            setattr(layer, name, part)
        elif type(part) is type(ours) or isinstance(ours, COUNTERPARTS.get(class_name(part), ())):
            adopt(ours, part, where)
        else:
            raise NotReplaceableError(f"{where} is a {class_name(part)}")
    return layer


def _check_neutral(part: nn.Module, path: str) -> None:
    """Raise NotReplaceableError unless a part that the fused layer lacks changes nothing, in training either."""
    rate = getattr(part, "p", 0) if isinstance(part, nn.Dropout) else getattr(part, "drop_prob", None)
    if rate:
        raise NotReplaceableError(f"{path} drops with probability {rate:g}")
    if rate is None and not isinstance(part, nn.Identity):
        raise NotReplaceableError(f"{path} is a {class_name(part)}")


def _is_timm_conv_mixer_layer(module: nn.Module) -> bool:
    first = next(module.children(), None)
    return len(module._modules) == 4 and class_name(type(first)) == "timm.models.convmixer.Residual"


class _Perceptron(NamedTuple):
    dim: int
    hidden_dim: int
    activation: str | None


def _perceptron(module: nn.Module, path: str) -> _Perceptron:
    """Return the sizes of timm's Mlp."""
    if class_name(module.get_submodule(path)) != "timm.layers.mlp.Mlp":
        raise NotReplaceableError(f"{path} is a {class_name(module.get_submodule(path))}")
    linear = _part(module, f"{path}.fc1", nn.Linear)
    return _Perceptron(linear.in_features, linear.out_features, _activation(module, f"{path}.act"))


_TIMM_ACTIVATIONS = {"timm.layers.activations.GELU": "gelu", "timm.layers.activations.GELUTanh": "gelu_tanh"}


def _activation(module: nn.Module, path: str) -> str | None:
    """Return the name of the activation that the part at ``path`` computes."""
    part = module.get_submodule(path)
    if class_name(part) in _TIMM_ACTIVATIONS:
        return _TIMM_ACTIVATIONS[class_name(part)]
    if type(part) not in ACTIVATIONS:
        raise NotReplaceableError(f"activation {path} is a {class_name(part)}")
    return activation_name(part)


def _part(module: nn.Module, path: str, cls: type[nn.Module]) -> Any:
    """Return the part at ``path``, of exactly this class."""
    part = module.get_submodule(path)
    if type(part) is not cls:
        raise NotReplaceableError(f"{path} is a {class_name(part)}")
    return part
