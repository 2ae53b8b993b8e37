"""S2-MLPv2 (Yu et al., arXiv 2108.01072)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import ModuleType

import torch
from torch import nn

from mixer_kernels.models.patches import grid_size
from mixer_kernels.nn._channels import linear, patchwise


class S2Stage(nn.Module):
    """One level of the pyramid: merge patches, then mix.

    Args:
        layers: module that holds the layer classes.
        in_chans: channels before.
        embed_dim: channels C after.
        patch_size: pixels P merged along both sides.
        depth: number of S2 blocks.
        mlp_ratio: width of the channel perceptron relative to C.
        attention_ratio: hidden width of the split attention relative to C.
        backend: passed to the blocks and the merging of patches.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        layers: ModuleType,
        in_chans: int,
        embed_dim: int,
        *,
        patch_size: int,
        depth: int,
        mlp_ratio: float,
        attention_ratio: float,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size, device=device, dtype=dtype)
        self.blocks = nn.Sequential(
            *(
                layers.S2Block(embed_dim, mlp_ratio, attention_ratio, backend=backend, device=device, dtype=dtype)
                for _ in range(depth)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to (B, C, H / P, W / P), channels last in memory."""
        # One copy here, or every residual sum of the stage would keep the convolution's channel-first layout.
        x = patchwise(self.proj, x, self.backend).permute(0, 2, 3, 1).contiguous()
        return self.blocks(x).permute(0, 3, 1, 2)


class S2MLPv2(nn.Module):
    """A pyramid of S2 stages, average pooling, linear head.

    Args:
        layers: module that holds the layer classes.
        num_classes: outputs of the head; 0 for none.
        img_size: pixels along both sides, or (H, W); any other size of whole patches runs too.
        in_chans: channels of the image.
        patch_sizes: pixels merged along both sides, by stage.
        embed_dims: channels C, by stage.
        depths: number of S2 blocks, by stage.
        mlp_ratio: width of the channel perceptron relative to C.
        attention_ratio: hidden width of the split attention relative to C.
        backend: passed to the stages and the head.
        device: where the parameters are created.
        dtype: their type.

    Raises:
        ValueError: the sequences differ in length, or the image is not whole patches.
    """

    def __init__(
        self,
        layers: ModuleType,
        *,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_sizes: Sequence[int] = (7, 2),
        embed_dims: Sequence[int] = (192, 384),
        depths: Sequence[int] = (4, 14),
        mlp_ratio: float = 3.0,
        attention_ratio: float = 0.25,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not len(patch_sizes) == len(embed_dims) == len(depths) > 0:
            raise ValueError(
                "S2MLPv2: patch_sizes, embed_dims and depths must have the same length, one entry a stage, "
                f"got {patch_sizes}, {embed_dims} and {depths}"
            )
        grid_size("S2MLPv2", img_size, prod(patch_sizes))
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.backend = backend
        self.stages = nn.Sequential(
            *(
                S2Stage(
                    layers,
                    channels,
                    embed_dim,
                    patch_size=patch_size,
                    depth=depth,
                    mlp_ratio=mlp_ratio,
                    attention_ratio=attention_ratio,
                    backend=backend,
                    device=device,
                    dtype=dtype,
                )
                for channels, embed_dim, patch_size, depth in zip(
                    (in_chans, *embed_dims), embed_dims, patch_sizes, depths, strict=False
                )
            )
        )
        width = embed_dims[-1]
        self.head = nn.Linear(width, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to the last stage's map, (B, C, h, w)."""
        return self.stages(x)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, h, w) to (B, num_classes)."""
        return linear(self.head, x.mean(dim=(2, 3)), self.backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
