"""The drop-in layers of MLP-Mixer."""

from __future__ import annotations

import torch

from mixer_kernels import functional as MF
from mixer_kernels import reference
from mixer_kernels.reference.mlp import Mlp


class TokenMixing(reference.TokenMixing):
    """:class:`mixer_kernels.reference.TokenMixing` through :func:`mixer_kernels.functional.token_mixing`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        return _mix_tokens(x, self.norm, self, self.backend)


class MixerBlock(reference.MixerBlock):
    """:class:`mixer_kernels.reference.MixerBlock` with its token half in one op."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, S, C) to (B, S, C)."""
        x = _mix_tokens(x, self.norm1, self.mlp_tokens, self.backend)
        return x + self.mlp_channels(self.norm2(x))


def _mix_tokens(x: torch.Tensor, norm: torch.nn.LayerNorm, mlp: Mlp, backend: str | None) -> torch.Tensor:
    return MF.token_mixing(
        x,
        norm.weight,
        norm.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
        eps=norm.eps,
        activation=mlp.activation,
        backend=backend,
    )
