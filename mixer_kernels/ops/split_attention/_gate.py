"""The perceptron between the passes over the pixels in plain PyTorch, for the kernels that stop at the sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Gradient(NamedTuple):
    """The gradient ``da`` of the sums, and what the matrices' gradients are products of, in x's dtype.

    ``dweight1 = dinner.mT @ total``, ``dweight2 = dlogits.mT @ hidden``.
    """

    da: torch.Tensor
    total: torch.Tensor
    hidden: torch.Tensor
    dinner: torch.Tensor
    dlogits: torch.Tensor


def weights_of(total: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor) -> torch.Tensor:
    """Return the weights of the branches, (B, 3, C), in the dtype of the sums ``total``."""
    hidden = F.gelu(F.linear(total.to(weight1.dtype), weight1))
    return F.linear(hidden, weight2).unflatten(1, (3, -1)).softmax(1, dtype=total.dtype)


def gradient_of(
    dweights: torch.Tensor, total: torch.Tensor, weights: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor
) -> Gradient:
    """Return what follows from the gradient of the weights: autograd's own steps, the hidden layer computed again."""
    dlogits = torch.ops.aten._softmax_backward_data(dweights, weights, 1, weights.dtype).flatten(1).to(weight1.dtype)
    total = total.to(weight1.dtype)
    inner = F.linear(total, weight1)
    dinner = torch.ops.aten.gelu_backward(dlogits @ weight2, inner)
    return Gradient((dinner @ weight1).to(weights.dtype), total, F.gelu(inner), dinner, dlogits)
