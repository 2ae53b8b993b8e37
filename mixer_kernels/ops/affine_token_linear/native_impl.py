"""The compiled kernels behind PyTorch's dispatcher, which picks CPU or CUDA."""

from __future__ import annotations

import torch

from mixer_kernels.ops import _native

Optional = torch.Tensor | None


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if this backend runs on the device, and for the dtype if one is given, else the reason."""
    if device.type == "cuda" and dtype == torch.float64:
        return "there are no native CUDA kernels of this op for float64"
    return _native.why_not(device)


def forward(
    x: torch.Tensor, alpha: Optional, beta: Optional, weight: torch.Tensor, bias: Optional, layer_scale: Optional
) -> torch.Tensor:
    """Return y, (B, S, C)."""
    return torch.ops.mixer_kernels.affine_token_linear_fwd(x, alpha, beta, weight, bias, layer_scale)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    alpha: Optional,
    beta: Optional,
    weight: torch.Tensor,
    bias: Optional,
    layer_scale: Optional,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x and the five parameters in their order; empty where the parameter is absent."""
    return torch.ops.mixer_kernels.affine_token_linear_bwd(dy, x, alpha, beta, weight, bias, layer_scale)


def _gradient(parameter: Optional, x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(0) if parameter is None else parameter.new_empty(parameter.shape)


if _native.extension is not None:

    @torch.library.register_fake("mixer_kernels::affine_token_linear_fwd")
    def _(x: torch.Tensor, *parameters: Optional) -> torch.Tensor:
        return x.new_empty(x.shape)

    @torch.library.register_fake("mixer_kernels::affine_token_linear_bwd")
    def _(dy: torch.Tensor, x: torch.Tensor, *parameters: Optional) -> tuple[torch.Tensor, ...]:
        return x.new_empty(x.shape), *(_gradient(parameter, x) for parameter in parameters)
