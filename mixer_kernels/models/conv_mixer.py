"""ConvMixer (Trockman and Kolter, arXiv 2201.09792)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

from mixer_kernels.models.patches import grid_size
from mixer_kernels.nn._channels import linear, patchwise
from mixer_kernels.reference._arguments import make_activation


class PatchStem(nn.Sequential):
    """Eq. 1: the convolution that embeds patches, an activation and BatchNorm.

    Args:
        parts: the three, as ``nn.Sequential`` takes them.
        backend: None, or "reference" for plain PyTorch.
    """

    def __init__(self, *parts: Any, backend: str | None = None) -> None:
        super().__init__(*parts)
        self.backend = backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to (B, C, H / P, W / P)."""
        for part in self:
            x = patchwise(part, x, self.backend)
        return x


class ConvMixer(nn.Module):
    """Patches (eq. 1), ConvMixer layers (eqs. 2 and 3), average pooling, linear head; timm's names.

    Args:
        layers: module that holds the layer classes.
        num_classes: outputs of the head; 0 for none.
        img_size: pixels along both sides, or (H, W); any other size of whole patches runs too.
        in_chans: channels of the image.
        dim: channels C.
        depth: number of ConvMixer layers.
        kernel_size: K of the depthwise convolutions.
        patch_size: pixels along a side of a patch.
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
        dim: int = 1536,
        depth: int = 20,
        kernel_size: int = 9,
        patch_size: int = 7,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        grid_size("ConvMixer", img_size, patch_size)
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.backend = backend
        self.stem = PatchStem(
            nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, device=device, dtype=dtype),
            make_activation(activation),
            nn.BatchNorm2d(dim, device=device, dtype=dtype),
            backend=backend,
        )
        self.blocks = nn.Sequential(
            *(
                layers.ConvMixerLayer(
                    dim, kernel_size, activation=activation, backend=backend, device=device, dtype=dtype
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Linear(dim, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to the last map, (B, C, h, w)."""
        return self.blocks(self.stem(x))

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, h, w) to (B, num_classes)."""
        return linear(self.head, x.mean(dim=(2, 3)), self.backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
