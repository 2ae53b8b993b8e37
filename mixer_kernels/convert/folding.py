"""Inference without the layers that are only scales and offsets: exact folding into the weights beside them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from mixer_kernels import nn as fused_layers
from mixer_kernels import reference
from mixer_kernels.convert.sources import class_name
from mixer_kernels.nn._parts import observed
from mixer_kernels.nn.folded_resmlp import FoldedClassMLPBlock, FoldedResMLPBlock, FoldedTokenLinear
from mixer_kernels.reference.mlp import Mlp

_AFFINES = (class_name(reference.Affine), "timm.models.mlp_mixer.Affine")
_TOKEN_LINEARS = (class_name(reference.AffineTokenLinear), class_name(fused_layers.AffineTokenLinear))
_BLOCKS = (
    class_name(reference.ResMLPBlock),
    class_name(fused_layers.ResMLPBlock),
    "timm.models.mlp_mixer.ResBlock",
)
_CLASS_BLOCK = "mixer_kernels.models.class_mlp.ClassMLPBlock"
# Those whose head sees the mean of the tokens behind their norm, or each of them: an Affine commutes with the mean.
_MODELS = ("mixer_kernels.models.resmlp.ResMLP", "timm.models.mlp_mixer.MlpMixer")
_LINEARS = (class_name(nn.Linear),)
# In evaluation mode, which `fuse` asks for.
_IDENTITIES = (class_name(nn.Identity), class_name(nn.Dropout), "timm.layers.drop.DropPath")
# Path in a layer or model -> the classes that folding knows there: it takes the parameters of such a part, or moves a
# factor past it. No layer has all of them.
_PARTS = {
    **dict.fromkeys(("norm", "norm1", "norm2"), _AFFINES),
    **dict.fromkeys(("linear", "linear_tokens", "head"), _LINEARS),
    "mlp_channels": (class_name(Mlp), "timm.layers.mlp.Mlp"),
    **dict.fromkeys(("mlp_channels.fc1", "mlp_channels.fc2"), _LINEARS),
    **dict.fromkeys(("mlp_channels.drop2", "drop_path", "head_drop"), _IDENTITIES),
}


def fuse(model: nn.Module) -> nn.Module:
    """Fold every Affine and LayerScale of ResMLP into the weights beside it, in place, for inference.

    Exact up to rounding: the channel perceptron takes ``W1 diag(alpha), b1 + W1 beta`` and ``diag(ls) W2, ls b2``, the
    head takes the last Affine, and the cross-patch half becomes one op, whose epilogue holds the rest. It knows the
    layers of :mod:`mixer_kernels.reference` and :mod:`mixer_kernels`, and timm's ResMLP; other layers, subclasses,
    layers with a part of another class, such as a LoRA wrapper, and layers observed by hooks stay as they are. A
    parametrized weight is folded as what it is now. New weights do not require grad; the old ones are not changed. A
    second call changes nothing.

    In float16 the LayerScale of a channel half stays beside its weight: their product may be too small a number. Cast
    to float16 first, then fold.

    Args:
        model: a model in evaluation mode, or one such layer.

    Returns:
        The model; if it is itself a layer that was folded, what stands in its place. The tokens of ``forward_features``
        are those before the last Affine.

    Raises:
        TypeError: ``model`` is not a module.
        RuntimeError: it is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise RuntimeError("fuse: model must be in evaluation mode (call model.eval() first), got one in training mode")
    return _visit(model, {})


def _visit(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Fold ``module`` or what is in it; return what stands in its place now."""
    if module in done:
        # A layer that the model holds twice.
        return done[module]
    done[module] = new = _fold(module).eval()
    if new is module:
        for key, child in list(module._modules.items()):
            if child is not None:
                module._modules[key] = _visit(child, done)
    return new


def _fold(module: Any) -> nn.Module:
    """Return what takes the place of a layer, or the layer itself; of a model, fold the last Affine into its head."""
    name = class_name(module)
    if name in _MODELS:
        _fold_head(module)
    if name not in (*_TOKEN_LINEARS, *_BLOCKS, _CLASS_BLOCK) or not _has_plain_parts(module) or _is_observed(module):
        return module
    if name in _TOKEN_LINEARS:
        return _token_linear(module.norm, module.linear, module.ls, module.backend)
    if name in _BLOCKS:
        backend = getattr(module, "backend", None)
        tokens = _token_linear(module.norm1, module.linear_tokens, module.ls1, backend)
        kept = None if _can_scale(module) else module.ls2.detach().clone()
        return FoldedResMLPBlock(tokens, _folded_mlp(module), kept)
    return _class_block(module) if _can_scale(module) else module


def _token_linear(norm: Any, linear: nn.Linear, layer_scale: torch.Tensor, backend: str | None) -> FoldedTokenLinear:
    return FoldedTokenLinear(norm.alpha, norm.beta, linear, layer_scale, backend=backend)


def _class_block(block: Any) -> FoldedClassMLPBlock:
    weight, bias = block.linear_tokens.weight.detach(), block.linear_tokens.bias.detach()
    layer_scale = block.ls1.detach().double()
    alpha, beta = (value.detach().double().view(-1) for value in (block.norm1.alpha, block.norm1.beta))
    shift = layer_scale * (beta * weight.double().sum() + bias.double())
    return FoldedClassMLPBlock((layer_scale * alpha).to(weight), shift.to(weight), weight.clone(), _folded_mlp(block))


def _can_scale(block: Any) -> bool:
    """Return whether the last weight of a block can hold its product with a small LayerScale."""
    return bool(block.mlp_channels.fc2.weight.dtype != torch.float16)


def _folded_mlp(block: Any) -> nn.Module:
    """Return the channel perceptron of a block with its Affine and LayerScale in the weights."""
    # Shallow but for the dictionaries: the original keeps its linears, everything else is shared.
    mlp = copy.copy(block.mlp_channels)
    mlp._modules = dict(mlp._modules)
    mlp.fc1 = _after_affine(mlp.fc1, block.norm2)
    if _can_scale(block):
        mlp.fc2 = _scaled(mlp.fc2, block.ls2)
    return mlp


def _fold_head(model: Any) -> None:
    if _has_plain_parts(model) and not _is_observed(model.norm) and not _is_observed(model.head):
        model.head = _after_affine(model.head, model.norm)
        model.norm = nn.Identity()


def _after_affine(linear: nn.Linear, affine: Any) -> nn.Linear:
    """Return ``linear(affine(x))`` as one layer."""
    weight = linear.weight.detach().double()
    bias = weight @ affine.beta.detach().double().view(-1)
    if linear.bias is not None:
        bias = bias + linear.bias.detach()
    return _linear(weight * affine.alpha.detach().double().view(-1), bias, linear)


def _scaled(linear: nn.Linear, scale: torch.Tensor) -> nn.Linear:
    """Return ``scale * linear(x)`` as one layer."""
    factor = scale.detach().double()
    bias = None if linear.bias is None else linear.bias.detach() * factor
    return _linear(linear.weight.detach() * factor[:, None], bias, linear)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Linear) -> nn.Linear:
    new = nn.Linear(like.in_features, like.out_features, device="meta", bias=bias is not None)
    new.weight = nn.Parameter(weight.to(like.weight), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias.to(like.weight), requires_grad=False)
    return new.eval()


def _has_plain_parts(module: Any) -> bool:
    """Return whether every part in ``_PARTS`` that a layer or model has is of such a class, parametrized or not."""
    for path, names in _PARTS.items():
        part = module
        for name in path.split("."):
            part = getattr(part, name, None)
        if part is not None and class_name(type_before_parametrizations(part)) not in names:
            return False
    return True


def _is_observed(module: nn.Module) -> bool:
    """Return whether a layer or a part of it has hooks, or another forward set on the instance."""
    return any(observed(part) is not None for part in module.modules())
