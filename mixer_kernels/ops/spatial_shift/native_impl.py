"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixer_kernels.ops import _native


def why_not(device: torch.device) -> str | None:
    """Return None if this backend runs on the device, else the reason."""
    return _native.why_not(device)


def forward(x: torch.Tensor, directions: Sequence[int]) -> torch.Tensor:
    """Return shifted ``x``, a new tensor."""
    return torch.ops.mixer_kernels.spatial_shift_fwd(x, directions)


def forward_(x: torch.Tensor, directions: Sequence[int]) -> None:
    """Shift ``x`` in place."""
    torch.ops.mixer_kernels.spatial_shift_fwd_(x, directions)


def backward(dy: torch.Tensor, directions: Sequence[int]) -> torch.Tensor:
    """Return the adjoint of the shift applied to ``dy``, a new tensor."""
    return torch.ops.mixer_kernels.spatial_shift_bwd(dy, directions)


def backward_(dy: torch.Tensor, directions: Sequence[int]) -> None:
    """Apply the adjoint of the shift to ``dy`` in place."""
    torch.ops.mixer_kernels.spatial_shift_bwd_(dy, directions)


if _native.extension is not None:

    @torch.library.register_fake("mixer_kernels::spatial_shift_fwd")
    @torch.library.register_fake("mixer_kernels::spatial_shift_bwd")
    def _(x: torch.Tensor, directions: Sequence[int]) -> torch.Tensor:
        return torch.empty_like(x)

    @torch.library.register_fake("mixer_kernels::spatial_shift_fwd_")
    @torch.library.register_fake("mixer_kernels::spatial_shift_bwd_")
    def _(x: torch.Tensor, directions: Sequence[int]) -> None:
        return None
