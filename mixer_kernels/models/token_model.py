"""What MLP-Mixer and ResMLP share: patches, equal blocks over tokens, a norm, average pooling, a linear head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mixer_kernels.models.patches import PatchEmbed
from mixer_kernels.nn._channels import linear


class TokenModel(nn.Module):
    """``head(mean over tokens of norm(blocks(patches)))``, with timm's parameter names.

    Args:
        make_block: builds a block for a number of tokens.
        make_norm: builds the norm for a number of channels.
        num_classes: outputs of the head; 0 for none.
        img_size: pixels along both sides, or (H, W).
        in_chans: channels of the image.
        patch_size: pixels along a side of a patch.
        num_blocks: number of blocks.
        embed_dim: channels C.
        backend: None, or "reference" for plain PyTorch in stem and head.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        make_block: Callable[[int], nn.Module],
        make_norm: Callable[[int], nn.Module],
        *,
        num_classes: int,
        img_size: int | tuple[int, int],
        in_chans: int,
        patch_size: int,
        num_blocks: int,
        embed_dim: int,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.backend = backend
        self.stem = PatchEmbed(img_size, patch_size, in_chans, embed_dim, backend=backend, device=device, dtype=dtype)
        self.blocks = nn.Sequential(*(make_block(self.stem.num_patches) for _ in range(num_blocks)))
        self.norm = make_norm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to tokens, (B, S, C)."""
        return self.norm(self.blocks(self.stem(x)))

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens, (B, S, C), to (B, num_classes)."""
        return linear(self.head, x.mean(dim=1), self.backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
