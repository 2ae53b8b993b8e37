"""The perceptron between the passes over the pixels in plain PyTorch, for the kernels that stop at the sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def weights_of(total: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor) -> torch.Tensor:
    """Return the weights of the branches, (B, 3, C), in the dtype of the sums ``total``."""
    hidden = F.gelu(F.linear(total.to(weight1.dtype), weight1))
    return F.linear(hidden, weight2).unflatten(1, (3, -1)).softmax(1, dtype=total.dtype)


def gradients_of(
    dweights: torch.Tensor, total: torch.Tensor, weights: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of the sums and the matrices: autograd's own steps, the hidden layer computed again."""
    dlogits = torch.ops.aten._softmax_backward_data(dweights, weights, 1, weights.dtype).flatten(1).to(weight1.dtype)
    own_total = total.to(weight1.dtype)
    inner = F.linear(own_total, weight1)
    dinner = torch.ops.aten.gelu_backward(dlogits @ weight2, inner)
    da = (dinner @ weight1).to(weights.dtype)
    return da, dinner.mT @ own_total, dlogits.mT @ F.gelu(inner)
