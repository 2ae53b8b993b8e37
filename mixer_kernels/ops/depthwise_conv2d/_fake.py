"""What the kernels of every backend return, without the values: for torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._prims_common import suggest_memory_format

from mixer_kernels.ops._dtypes import accumulation_dtype
from mixer_kernels.ops.depthwise_conv2d._arguments import Geometry, Optional


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    scale: Optional,
    shift: Optional,
    residual: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> torch.Tensor:
    """Return a tensor like y."""
    return like(x, (*x.shape[:2], *Geometry(stride, padding, dilation).output_size(x, weight)))


def backward_input(
    dz: torch.Tensor,
    weight: torch.Tensor,
    residual: Optional,
    height: int,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return a tensor like the gradient of x."""
    return like(dz, (*dz.shape[:2], height, width))


def backward_weight(
    dz: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors like the gradients of weight and bias."""
    return x.new_empty((x.shape[1], 1, *kernel_size)), x.new_empty(x.shape[1])


def statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors like z, mean and variance."""
    z = forward(x, weight, bias, None, None, None, stride, padding, dilation, activation)
    return z, sums(x), sums(x)


def epilogue_forward(
    z: torch.Tensor, scale: Optional, shift: Optional, residual: Optional, activation: int
) -> torch.Tensor:
    """Return a tensor like y."""
    return like(z, z.shape)


def epilogue_sums(
    dy: torch.Tensor, z: torch.Tensor, center: Optional, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors like the two sums."""
    return sums(z), sums(z)


def epilogue_backward(
    dy: torch.Tensor, z: torch.Tensor, c0: Optional, c1: Optional, c2: Optional, activation: int
) -> torch.Tensor:
    """Return a tensor like the gradient of z."""
    return like(z, z.shape)


def batch_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    norm_weight: Optional,
    norm_bias: Optional,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors like y, mean and variance."""
    return like(x, x.shape), sums(x), sums(x)


def batch_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    norm_weight: Optional,
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    wants_input: bool,
    wants_convolution: bool,
) -> tuple[torch.Tensor, ...]:
    """Return tensors like the gradients of x, weight, bias, norm_weight and norm_bias."""
    dx = like(x, x.shape) if wants_input else x.new_empty(0)
    channels = x.shape[1] if wants_convolution else 0
    dweight = x.new_empty(weight.shape if wants_convolution else 0)
    return dx, dweight, x.new_empty(channels), sums(x), sums(x)


def like(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return an empty tensor of this shape in the memory format of ``x``."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))


def sums(x: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor for sums over everything but the channels of ``x``."""
    return x.new_empty(x.shape[1], dtype=accumulation_dtype(x))
