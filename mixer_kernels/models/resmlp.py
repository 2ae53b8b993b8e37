"""ResMLP (Touvron et al., arXiv 2105.03404)."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import nn

from mixer_kernels.models.class_mlp import ClassMLP
from mixer_kernels.models.token_model import TokenModel


class ResMLP(TokenModel):
    """Patches, ResMLP layers (eqs. 2 and 3), Affine, pooling, linear head; timm's argument and parameter names.

    Args:
        layers: module that holds the layer classes.
        num_classes: outputs of the head; 0 for none.
        img_size: pixels along both sides, or (H, W).
        in_chans: channels of the image.
        patch_size: pixels along a side of a patch.
        num_blocks: number of ResMLP layers.
        embed_dim: channels C.
        mlp_ratio: width of the channel perceptron relative to C.
        init_values: where the LayerScales start.
        activation: None, "relu", "gelu" or "gelu_tanh".
        global_pool: "avg", the mean of the tokens, or "class_mlp", the paper's learned summary.
        backend: passed to the layers, stem and head.
        device: where the parameters are created.
        dtype: their type.

    Raises:
        ValueError: the pooling is neither.
    """

    def __init__(
        self,
        layers: ModuleType,
        *,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_size: int = 16,
        num_blocks: int = 12,
        embed_dim: int = 384,
        mlp_ratio: float = 4.0,
        init_values: float = 1e-4,
        activation: str | None = "gelu",
        global_pool: str = "avg",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if global_pool not in ("avg", "class_mlp"):
            raise ValueError(f"ResMLP: global_pool must be 'avg' or 'class_mlp', got {global_pool!r}")

        def make_block(seq_len: int) -> nn.Module:
            block: nn.Module = layers.ResMLPBlock(
                embed_dim,
                seq_len,
                mlp_ratio,
                init_values,
                activation=activation,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            return block

        super().__init__(
            make_block,
            partial(layers.Affine, backend=backend, device=device, dtype=dtype),
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            patch_size=patch_size,
            num_blocks=num_blocks,
            embed_dim=embed_dim,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.class_mlp: nn.Module = nn.Identity()
        if global_pool == "class_mlp":
            self.class_mlp = ClassMLP(
                layers,
                embed_dim,
                self.stem.num_patches,
                mlp_ratio=mlp_ratio,
                init_values=init_values,
                activation=activation,
                backend=backend,
                device=device,
                dtype=dtype,
            )

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to tokens, (B, S, C); with the class-MLP to its one class embedding, (B, 1, C)."""
        return self.norm(self.class_mlp(self.blocks(self.stem(x))))
