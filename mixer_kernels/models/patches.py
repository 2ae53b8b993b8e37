"""Images into patches: the grid, the embedding and its initialisation."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from mixer_kernels.nn._channels import patchwise

# Standard deviation of a unit normal cut off at two; dividing by it restores the variance that is asked for.
_TRUNCATED_STD = 0.8796256610342398


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``(size, size)`` for a number, a pair as it is."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def grid_size(model: str, img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the patches along height and width.

    Args:
        model: who asks, for the message.
        img_size: pixels along both sides, or (H, W).
        patch_size: pixels along a side of a patch.

    Raises:
        ValueError: the image is not whole patches.
    """
    height, width = to_pair(img_size)
    if height < 1 or width < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"{model}: img_size must be a positive multiple of {patch_size}, got {img_size}")
    return height // patch_size, width // patch_size


class PatchEmbed(nn.Module):
    """Cut an image into patches and embed each with one linear map.

    Args:
        img_size: pixels along both sides, or (H, W).
        patch_size: pixels P along a side of a patch.
        in_chans: channels of the image.
        embed_dim: channels C of a token.
        backend: None, or "reference" for plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        rows, columns = grid_size(type(self).__name__, img_size, patch_size)
        self.img_size = to_pair(img_size)
        self.num_patches = rows * columns
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw LeCun-normal weights and zero the bias, as timm's Mixer does."""
        std = self.proj.weight[0].numel() ** -0.5 / _TRUNCATED_STD
        nn.init.trunc_normal_(self.proj.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(cast("torch.Tensor", self.proj.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chans, H, W) to (B, S, C), S = HW / P^2."""
        _check_image(x, self.proj.in_channels, *self.img_size)
        # One copy here, or the residual sums of all blocks would keep the convolution's channel-first layout.
        return patchwise(self.proj, x, self.backend).flatten(2).transpose(1, 2).contiguous()


# Symbolic tracing takes it as it is.
@torch.fx.wrap
def _check_image(x: torch.Tensor, channels: int, height: int, width: int) -> None:
    if x.dim() != 4 or x.shape[2:] != (height, width):
        raise ValueError(
            f"PatchEmbed: x must have shape (B, {channels}, {height}, {width}), got shape {tuple(x.shape)}"
        )
