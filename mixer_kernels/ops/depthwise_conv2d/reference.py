"""The depthwise convolution in plain PyTorch: the definition, the oracle of the tests and the eager baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from mixer_kernels.ops._activation import apply_activation
from mixer_kernels.ops._dtypes import accumulation_dtype
from mixer_kernels.ops.depthwise_conv2d._arguments import Optional


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    scale: Optional,
    shift: Optional,
    residual: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> torch.Tensor:
    """Return ``residual + scale * act(conv(x) + bias) + shift``, with padding (top, bottom, left, right)."""
    y = apply_activation(_convolve(x, weight, bias, stride, padding, dilation), activation)
    if scale is not None:
        y = scale.view(-1, 1, 1) * y
    if shift is not None:
        y = y + shift.view(-1, 1, 1)
    if residual is not None:
        y = residual + y
    # Scales kept in float32 make the result float32.
    return y.to(x.dtype).contiguous(memory_format=suggest_memory_format(x))


def depthwise_conv2d_batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    norm_weight: Optional,
    norm_bias: Optional,
    eps: float,
    activation: str | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``x + BN(act(conv(x) + bias))``, and the mean and biased variance that BN took from the batch."""
    activated = apply_activation(_convolve(x, weight, bias, stride, padding, dilation), activation)
    var, mean = torch.var_mean(activated.detach().to(accumulation_dtype(x)), (0, 2, 3), correction=0)
    y = x + F.batch_norm(activated, None, None, norm_weight, norm_bias, training=True, eps=eps)
    return y.contiguous(memory_format=suggest_memory_format(x)), mean, var


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        # PyTorch's own kernels never return with few channels and a large kernel, bfloat16 in channels_last and float16
        # in either layout. They accumulate in float32, too.
        bias = None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            return _convolve(x.float(), weight.float(), bias, stride, padding, dilation).to(x.dtype)
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups=x.shape[1])
