"""MLP-Mixer (Tolstikhin et al., arXiv 2105.01601)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
from torch import nn

from mixer_kernels.models.token_model import TokenModel


class MlpMixer(TokenModel):
    """Patches, Mixer layers (eq. 1), LayerNorm, average pooling, linear head; timm's argument and parameter names.

    Args:
        layers: module that holds the layer classes.
        num_classes: outputs of the head; 0 for none.
        img_size: pixels along both sides, or (H, W).
        in_chans: channels of the image.
        patch_size: pixels along a side of a patch.
        num_blocks: number of Mixer layers.
        embed_dim: channels C.
        mlp_ratio: widths of the token and of the channel perceptron, both relative to C.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: passed to the layers, stem and head.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        layers: ModuleType,
        *,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_size: int = 16,
        num_blocks: int = 8,
        embed_dim: int = 512,
        mlp_ratio: float | Sequence[float] = (0.5, 4.0),
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        def make_block(seq_len: int) -> nn.Module:
            block: nn.Module = layers.MixerBlock(
                embed_dim, seq_len, mlp_ratio, activation=activation, backend=backend, device=device, dtype=dtype
            )
            return block

        super().__init__(
            make_block,
            partial(nn.LayerNorm, eps=1e-6, device=device, dtype=dtype),
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
