"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

import torch

from mixer_kernels.ops import _native
from mixer_kernels.ops.affine_token_linear import _fake

Optional = torch.Tensor | None


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    return _native.why_not(device, dtype)


def forward(
    x: torch.Tensor,
    alpha: Optional,
    beta: Optional,
    weight: torch.Tensor,
    bias: Optional,
    layer_scale: Optional,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Return y, (B, S, C)."""
    return torch.ops.mixer_kernels.affine_token_linear_fwd(x, alpha, beta, weight, bias, layer_scale, allow_tf32)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    alpha: Optional,
    beta: Optional,
    weight: torch.Tensor,
    bias: Optional,
    layer_scale: Optional,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x and the five parameters in their order; empty where the parameter is absent."""
    return torch.ops.mixer_kernels.affine_token_linear_bwd(dy, x, alpha, beta, weight, bias, layer_scale, allow_tf32)


_native.register_fake("affine_token_linear_fwd", _fake.forward)
_native.register_fake("affine_token_linear_bwd", _fake.backward)
