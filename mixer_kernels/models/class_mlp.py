"""The class-MLP head of ResMLP (arXiv 2105.03404): a learned summary of the tokens in place of their mean."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn

from mixer_kernels.reference.mlp import Mlp


class ClassMLPBlock(nn.Module):
    """Update the class embedding c from the tokens x, which stay as they are.

    ``z = c + ls1 * (a Aff1([c; x]) + a0)`` with a, a0 running over the 1 + S tokens; ``c' = z + ls2 * mlp(Aff2(z))``.

    Args:
        layers: module that holds the layer classes.
        dim: channels C.
        seq_len: tokens S.
        mlp_ratio: width of the perceptron relative to C.
        init_values: where both LayerScales start.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: passed to the layers.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        layers: ModuleType,
        dim: int,
        seq_len: int,
        *,
        mlp_ratio: float,
        init_values: float,
        activation: str | None,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.norm1 = layers.Affine(dim, backend=backend, device=device, dtype=dtype)
        self.linear_tokens = nn.Linear(1 + seq_len, 1, device=device, dtype=dtype)
        self.norm2 = layers.Affine(dim, backend=backend, device=device, dtype=dtype)
        self.mlp_channels = Mlp(dim, int(mlp_ratio * dim), activation, device=device, dtype=dtype)
        self.ls1 = nn.Parameter(torch.full((dim,), init_values, device=device, dtype=dtype))
        self.ls2 = nn.Parameter(torch.full((dim,), init_values, device=device, dtype=dtype))
        nn.init.xavier_uniform_(self.linear_tokens.weight)
        nn.init.zeros_(self.linear_tokens.bias)

    def forward(self, c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Map the class embedding, (B, 1, C), and the tokens, (B, S, C), to the next class embedding."""
        tokens = self.norm1(torch.cat((c, x), dim=1))
        c = c + self.ls1 * self.linear_tokens(tokens.transpose(1, 2)).transpose(1, 2)
        return c + self.ls2 * self.mlp_channels(self.norm2(c))


class ClassMLP(nn.Module):
    """Two class-MLP layers: CaiT's class attention with a linear across the tokens where the attention was.

    Args:
        layers: module that holds the layer classes.
        dim: channels C.
        seq_len: tokens S.
        mlp_ratio: width of the perceptrons relative to C.
        init_values: where the LayerScales start.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: passed to the layers.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        layers: ModuleType,
        dim: int,
        seq_len: int,
        *,
        mlp_ratio: float,
        init_values: float,
        activation: str | None,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList(
            ClassMLPBlock(
                layers,
                dim,
                seq_len,
                mlp_ratio=mlp_ratio,
                init_values=init_values,
                activation=activation,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map the tokens, (B, S, C), to the class embedding, (B, 1, C)."""
        c = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            c = block(c, x)
        return c
