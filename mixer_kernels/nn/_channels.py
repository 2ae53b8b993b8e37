"""The layers over channels and patches: plain PyTorch, but for dtypes in which this CPU has something faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mixer_kernels.nn._parts import ACTIVATIONS, activation_name, observed
from mixer_kernels.ops import _backend, _float32_linear, _onednn
from mixer_kernels.reference.mlp import Mlp


def linear(part: Any, x: torch.Tensor, backend: str | None, act: Any = None) -> torch.Tensor:
    """Return ``part(x)`` of a linear layer, or ``act(part(x))``, or of what took their places."""
    y = None
    if _may_bypass(part, nn.Linear, backend):
        if _onednn.pays(x, part.weight, part.bias):
            if type(act) in ACTIVATIONS and _is_bare(act):
                return _onednn.linear(x, part.weight, part.bias, activation_name(act))
            y = _onednn.linear(x, part.weight, part.bias)
        elif _float32_linear.pays(x, part.weight, part.bias):
            y = _float32_linear.linear(x, part.weight, part.bias)
    if y is None:
        y = part(x)
    return y if act is None else act(y)


def patchwise(part: Any, x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return ``part(x)`` of a convolution of patches side by side or of single pixels, or of what took its place."""
    if _may_bypass(part, nn.Conv2d, backend) and _float32_linear.may_pay_for(x) and _cuts_into_patches(part, x):
        size = part.kernel_size[0]
        # A patch is a pixel with more channels.
        pixels = F.pixel_unshuffle(x, size) if size > 1 else x
        weight = part.weight.flatten(1)
        if _float32_linear.pays(pixels.movedim(1, -1), weight, part.bias):
            return _float32_linear.pointwise(pixels, weight, part.bias)
    y: torch.Tensor = part(x)
    return y


def _cuts_into_patches(part: nn.Conv2d, x: torch.Tensor) -> bool:
    height, width = part.kernel_size
    return (
        height == width
        and part.stride == part.kernel_size
        and part.dilation == (1, 1)
        and part.groups == 1
        # Those that have a name pad nothing with such strides.
        and (isinstance(part.padding, str) or part.padding == (0, 0))
        and x.dim() == 4
        and (height == 1 or x.shape[2] % height == x.shape[3] % width == 0)
    )


def perceptron(part: Any, x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return ``part(x)`` of a perceptron, or of what took its place."""
    return through_parts(part, x, backend) if _may_bypass(part, Mlp, backend) else part(x)


def through_parts(layer: Any, x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return what a perceptron computes with its parts."""
    return linear(layer.fc2, linear(layer.fc1, x, backend, layer.act), backend)


def _is_bare(part: Any) -> bool:
    """Return whether a call of the part is nothing but the forward of its class."""
    return not observed(part) and part._compiled_call_impl is None


def _may_bypass(part: Any, cls: type[nn.Module], backend: str | None) -> bool:
    """Return whether a part need not be called: it is of this very class, unobserved, and there is something to win."""
    return (
        (_onednn.may_pay() or _float32_linear.may_pay())
        and type(part) is cls
        and _is_bare(part)
        and _backend.requested(cls.__name__, backend) != _backend.REFERENCE
    )
