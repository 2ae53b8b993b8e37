"""The drop-in layers of S2-MLPv2."""

from __future__ import annotations

import torch

from mixer_kernels import functional as MF
from mixer_kernels import reference


class SpatialShift(reference.SpatialShift):
    """:class:`mixer_kernels.reference.SpatialShift` through :func:`mixer_kernels.functional.spatial_shift`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to a new tensor of that shape."""
        return MF.spatial_shift(x, self.directions, backend=self.backend)


class S2Attention(reference.S2Attention):
    """:class:`mixer_kernels.reference.S2Attention` with both shifts in place, in the expanded map: no stack."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        expanded = self.mlp1(x).unflatten(-1, (3, -1))  # [B, H, W, 3, C]
        MF.spatial_shift_(expanded[..., 0, :], MF.SHIFT_1, backend=self.backend)
        MF.spatial_shift_(expanded[..., 1, :], MF.SHIFT_2, backend=self.backend)
        return self.mlp2(self.split_attention(expanded.movedim(-2, 1)))


class S2Block(reference.S2Block):
    """:class:`mixer_kernels.reference.S2Block` with the fused attention."""

    attention_class = S2Attention
