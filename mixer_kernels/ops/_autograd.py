"""What the autograd Functions of the ops share: a backward that cannot be differentiated, and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Gradients = tuple[torch.Tensor | None, ...]


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Make ``backward(ctx, saved_tensors, *dys)`` that of a Function, and differentiating it an error.

    PyTorch's decorator of this name raises only where ``dy`` requires grad, which it does not behind a plain sum, and
    only if all of the graph is walked: asked for the gradient of an input, it takes what depends on it for a constant.
    """

    def guarded(ctx: Any, *dys: torch.Tensor) -> Gradients:
        # Once only: a checkpoint computes them anew and counts.
        saved = ctx.saved_tensors
        with torch.no_grad():
            gradients = backward(ctx, saved, *dys)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return gradients
        origins = [value for value in (*dys, *saved) if value is not None and value.requires_grad]
        given = [gradient for gradient in gradients if gradient is not None]
        refusing = iter(_Refusal.apply(type(ctx).__name__.removesuffix("Backward"), len(given), *given, *origins))
        return tuple(None if gradient is None else next(refusing) for gradient in gradients)

    return guarded


class _Refusal(torch.autograd.Function):
    """The first tensors as they are; a gradient on its way from them to the rest raises."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.name = name
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Gradients:
        raise RuntimeError(f"{ctx.name}: trying to differentiate twice; double backward needs backend='reference'")
