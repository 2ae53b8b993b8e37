"""When a fused layer may take the parameters of its parts and never call them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import type_before_parametrizations

from mixer_kernels import reference
from mixer_kernels.ops import _backend
from mixer_kernels.reference.mlp import Mlp

logger = logging.getLogger("mixer_kernels")

# Name of a part -> its class; None for an activation, whose class follows from the name of what it computes.
Parts = Mapping[str, type[nn.Module] | None]

MLP_PARTS: Parts = {"fc1": nn.Linear, "act": None, "fc2": nn.Linear}
_PARTS_OF: dict[type[nn.Module] | None, Parts] = {
    Mlp: MLP_PARTS,
    reference.SplitAttention: {"mlp1": nn.Linear, "act": None, "mlp2": nn.Linear},
}
# A GELU's name follows from how it is computed, too.
ACTIVATIONS: dict[type[nn.Module], str | None] = {nn.Identity: None, nn.ReLU: "relu", nn.GELU: "gelu"}


def can_bypass(layer: Any) -> bool:
    """Return whether the op of a fused layer computes what the parts in its ``bypassed`` do.

    Raises:
        RuntimeError: it does not, and kernels were asked for.
    """
    reason = why_not(layer, layer.bypassed)
    if reason is None:
        return True
    name = type(layer).__name__
    backend = _backend.requested(name, layer.backend)
    if backend not in (None, _backend.REFERENCE):
        raise _backend.cannot_run(name, backend, reason)
    if not torch.compiler.is_compiling():
        logger.debug("%s: running the parts as they are: %s", name, reason)
    return False


def why_not(layer: Any, parts: Parts, prefix: str = "") -> str | None:
    """Return None if every part, and every part of it, is what it should be and unobserved, else the reason."""
    # Dictionaries, because looking up a module as an attribute takes longer than all else here.
    attributes = layer.__dict__
    for name, cls in parts.items():
        part = attributes["_modules"].get(name)
        if cls is None:
            # A SplitAttention does not name its activation: there is but one.
            expected = attributes.get("activation", "gelu")
            if type(part) not in ACTIVATIONS or activation_name(part) != expected:
                return f"activation {prefix}{name} is a {part}"
        elif not is_plain(part, cls):
            return f"{prefix}{name} is a {type(part).__module__}.{type(part).__qualname__}"
        elif type(layer) is reference.SplitAttention and part._parameters.get("bias", part) is not None:
            return f"{prefix}{name} has a bias"
        elif cls is nn.LayerNorm and len(part.normalized_shape) > 1:
            return f"{prefix}{name} is over more than the channels"
        what = observed(part)
        if what is not None:
            return f"{what} on {prefix}{name}"
        reason = why_not(part, _PARTS_OF[cls], f"{prefix}{name}.") if cls in _PARTS_OF else None
        if reason is not None:
            return reason
    return None


def is_plain(part: Any, cls: type[nn.Module]) -> bool:
    """Return whether a part is of this very class, its parameters parametrized or not."""
    return type(part) is cls or type_before_parametrizations(part) is cls


def observed(part: nn.Module) -> str | None:
    """Return what a call of the part runs beside the forward of its class, or None."""
    if has_hooks(part):
        return "hooks"
    return "another forward" if "forward" in part.__dict__ else None


def has_hooks(part: nn.Module) -> bool:
    """Return whether a call of the part, or its backward, runs hooks."""
    own = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    return bool(own) or _has_any_global_hook()


def activation_name(part: nn.Module) -> str | None:
    """Return the name of what one of :data:`ACTIVATIONS` computes."""
    return "gelu_tanh" if getattr(part, "approximate", "none") == "tanh" else ACTIVATIONS[type(part)]
