"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

import torch

from mixer_kernels.ops import _native
from mixer_kernels.ops.token_mixing import _fake

Optional = torch.Tensor | None


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    return _native.why_not(device, dtype)


def layer_norm_token_linear_forward(
    x: torch.Tensor,
    norm_weight: Optional,
    norm_bias: Optional,
    weight: torch.Tensor,
    bias: Optional,
    eps: float,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, (B, D, C), and the mean and 1 / standard deviation of each token, (B, S)."""
    return torch.ops.mixer_kernels.layer_norm_token_linear_fwd(
        x, norm_weight, norm_bias, weight, bias, eps, activation, allow_tf32
    )


def layer_norm_token_linear_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: Optional,
    norm_bias: Optional,
    weight: torch.Tensor,
    bias: Optional,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, norm_weight, norm_bias, weight and bias; empty where the parameter is absent."""
    return torch.ops.mixer_kernels.layer_norm_token_linear_bwd(
        dy, x, mean, rstd, norm_weight, norm_bias, weight, bias, activation, allow_tf32
    )


def token_mixing_forward(
    x: torch.Tensor,
    norm_weight: Optional,
    norm_bias: Optional,
    weight1: torch.Tensor,
    bias1: Optional,
    weight2: torch.Tensor,
    bias2: Optional,
    eps: float,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, (B, S, C), and the mean and 1 / standard deviation of each token, (B, S)."""
    return torch.ops.mixer_kernels.token_mixing_fwd(
        x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, allow_tf32
    )


def token_mixing_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: Optional,
    norm_bias: Optional,
    weight1: torch.Tensor,
    bias1: Optional,
    weight2: torch.Tensor,
    bias2: Optional,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x and the six parameters in their order; empty where the parameter is absent."""
    return torch.ops.mixer_kernels.token_mixing_bwd(
        dy, x, mean, rstd, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation, allow_tf32
    )


_native.register_fake("layer_norm_token_linear_fwd", _fake.layer_norm_token_linear_forward)
_native.register_fake("layer_norm_token_linear_bwd", _fake.backward)
_native.register_fake("token_mixing_fwd", _fake.token_mixing_forward)
_native.register_fake("token_mixing_bwd", _fake.backward)
