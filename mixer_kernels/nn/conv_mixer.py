"""The drop-in layers of ConvMixer."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mixer_kernels import reference
from mixer_kernels.functional import depthwise_conv2d
from mixer_kernels.nn._channels import patchwise
from mixer_kernels.nn._parts import ACTIVATIONS, activation_name, is_plain, observed
from mixer_kernels.ops import _backend, _checks
from mixer_kernels.ops.depthwise_conv2d import choose, depthwise_conv2d_batch_norm, normalization, scaled_activation
from mixer_kernels.reference.conv_mixer import Residual

logger = logging.getLogger("mixer_kernels")

# Symbolic tracing takes it as it is.
torch.fx.wrap("depthwise_conv2d")


class DepthwiseConv2d(reference.DepthwiseConv2d):
    """:class:`mixer_kernels.reference.DepthwiseConv2d` through :func:`mixer_kernels.functional.depthwise_conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, H', W'); without the B also (C, H, W)."""
        if isinstance(x, torch.Tensor) and x.dim() == 3:
            return self.forward(x[None])[0]
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = "valid"
        return depthwise_conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            backend=self.backend,
        )


class ConvMixerLayer(reference.ConvMixerLayer):
    """:class:`mixer_kernels.reference.ConvMixerLayer` with its depthwise half in one op, in training in two passes.

    Where the parts of that half are not what the op computes, such as a SyncBatchNorm, or are observed by hooks, they
    run as they are, on the backend that was asked for where they take one; a debug message says so. In inference the
    activation and the BatchNorm of the other half are one pass.
    """

    depthwise_class = DepthwiseConv2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        mix_pixels: Any
        mix_pixels, *mix_channels = self
        reason = _why_not(mix_pixels)
        if reason is None:
            x = _mix_pixels(x, mix_pixels.fn, self.backend)
        else:
            if not torch.compiler.is_compiling():
                logger.debug("ConvMixerLayer: running the depthwise half as it is: %s", reason)
            x = mix_pixels(x)
        return _mix_channels(x, mix_channels, self.backend)


def _why_not(mix_pixels: Any) -> str | None:
    """Return None if the op computes what the parts of the depthwise half do, else the reason."""
    parts = mix_pixels.fn if type(mix_pixels) is Residual else None
    if type(parts) is not nn.Sequential or len(parts) != 3:
        return f"it is {mix_pixels}"
    conv, act, norm = parts
    is_depthwise = is_plain(conv, DepthwiseConv2d) or is_plain(conv, reference.DepthwiseConv2d)
    if not is_depthwise or conv.padding_mode != "zeros":
        return f"fn.0 is {conv}"
    if type(act) not in ACTIVATIONS:
        return f"fn.1 is {act}"
    if not is_plain(norm, nn.BatchNorm2d):
        return f"fn.2 is {norm}"
    for path, part in (("it", mix_pixels), ("fn", parts), ("fn.0", conv), ("fn.1", act), ("fn.2", norm)):
        what = observed(part)
        if what is not None:
            return f"{what} on {path}"
    return None


def _mix_pixels(x: torch.Tensor, parts: Any, backend: str | None) -> torch.Tensor:
    """Return ``x + norm(act(conv(x)))``."""
    conv, act, norm = parts
    activation = activation_name(act)
    if _is_affine(norm):
        scale, shift = _affine(norm, x)
        return depthwise_conv2d(
            x,
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            activation=activation,
            scale=scale,
            shift=shift,
            residual=x,
            backend=backend,
        )
    if not isinstance(x, torch.Tensor) or x.numel() == 0:
        # Symbolic tracing knows no sizes. Without numbers there are no statistics, and the running ones stay.
        return x + norm(act(conv(x)))
    y, mean, var = depthwise_conv2d_batch_norm(
        x,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        norm.eps,
        activation,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        backend=backend,
    )
    _update_running_statistics(norm, mean, var, x.numel() // x.shape[1])
    return y


def _mix_channels(x: torch.Tensor, parts: Any, backend: str | None) -> torch.Tensor:
    """Return what the parts of the pointwise half compute, ``norm(act(conv(x)))`` unless they were changed."""
    if len(parts) != 3:
        for part in parts:
            x = part(x)
        return x
    conv, act, norm = parts
    z = patchwise(conv, x, backend)
    name = choose("ConvMixerLayer", backend, z) if _is_one_pass(z, act, norm) else _backend.REFERENCE
    if name == _backend.REFERENCE:
        return norm(act(z))
    scale, shift = _affine(norm, z)
    return scaled_activation(z, scale, shift, activation_name(act), name)


def _is_one_pass(z: torch.Tensor, act: nn.Module, norm: Any) -> bool:
    """Return whether activation and BatchNorm of a map may be one pass of our kernels."""
    # Compilers make them one pass, too, and know a free place for the result.
    if not _checks.is_inference() or torch.compiler.is_compiling() or not isinstance(z, torch.Tensor):
        return False
    if type(act) not in ACTIVATIONS or observed(act):
        return False
    if not is_plain(norm, nn.BatchNorm2d) or observed(norm) or not _is_affine(norm):
        return False
    constants = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    # The dtypes and sizes that PyTorch takes: it has to answer for others.
    dtypes = (z.dtype, torch.float32) if z.element_size() == 2 else (z.dtype,)
    return z.dim() == 4 and all(
        value is None or (value.dtype in dtypes and value.shape == z.shape[1:2]) for value in constants
    )


def _is_affine(norm: Any) -> bool:
    """Return whether a BatchNorm takes its running statistics."""
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _affine(norm: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift, (C,), of a BatchNorm that takes its running statistics."""
    # In float32 also where the buffers are of lower precision.
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, var = norm.running_mean.to(dtype), norm.running_var.to(dtype)
    return normalization(mean, var, norm.weight, norm.bias, norm.eps)


def _update_running_statistics(norm: Any, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
    """Do to the buffers of a BatchNorm what its own forward does; ``mean`` and ``var`` are of ``count`` numbers."""
    if not norm.track_running_stats or norm.running_mean is None:
        return
    weight = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if weight is None:
            # Without a momentum every batch weighs the same.
            weight = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    if weight is None:
        # Nothing counts the batches: PyTorch leaves the statistics as they are.
        return
    for running, value in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        # An exported program does not know that the statistics are not to be differentiated.
        running.copy_(running.to(value.dtype).lerp(value.detach(), weight))
