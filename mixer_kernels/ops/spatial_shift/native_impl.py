"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixer_kernels.ops import _native
from mixer_kernels.ops.spatial_shift import _fake


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


_native.register_fake("spatial_shift_fwd", _fake.shifted)
_native.register_fake("spatial_shift_bwd", _fake.shifted)
_native.register_fake("spatial_shift_fwd_", _fake.in_place)
_native.register_fake("spatial_shift_bwd_", _fake.in_place)
