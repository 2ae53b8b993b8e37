"""The layers over the channels: plain PyTorch, but for float32 on CPUs where that is slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixer_kernels.nn._parts import observed
from mixer_kernels.ops import _backend, _linear
from mixer_kernels.reference.mlp import Mlp


def linear(part: Any, x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return ``part(x)`` of a linear layer, or of what took its place."""
    if type(part) is not nn.Linear or observed(part) or _backend.requested("linear", backend) == _backend.REFERENCE:
        return part(x)
    return _linear.linear(x, part.weight, part.bias)


def perceptron(part: Any, x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return ``part(x)`` of a perceptron, or of what took its place."""
    if type(part) is not Mlp or observed(part):
        return part(x)
    return through_parts(part, x, backend)


def through_parts(layer: Any, x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return what a perceptron computes with its parts."""
    return linear(layer.fc2, layer.act(linear(layer.fc1, x, backend)), backend)
