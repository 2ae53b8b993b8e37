"""The two-layer perceptron that every family mixes channels with, and MLP-Mixer also tokens."""

from __future__ import annotations

import torch
from torch import nn

from mixer_kernels.reference._arguments import check_sizes, make_activation


class Mlp(nn.Module):
    """Two linear layers over the last dimension: ``y = W2 act(W1 x + b1) + b2``.

    Args:
        dim: size of the last dimension of input and output.
        hidden_dim: width between the layers.
        activation: None, "relu", "gelu" or "gelu_tanh".
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        activation: str | None = "gelu",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim=dim, hidden_dim=hidden_dim)
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.act = make_activation(activation)
        self.fc2 = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform weights and biases that are all but zero, as ViT and timm's Mixer do."""
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., dim) to (..., dim)."""
        return self.fc2(self.act(self.fc1(x)))
