"""ConvMixer (Trockman and Kolter, arXiv 2201.09792): large-kernel depthwise, then pointwise convolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mixer_kernels.reference._arguments import check_sizes, checked_backend, make_activation


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of every channel with its own kernel: ``nn.Conv2d(C, C, K, groups=C)`` and its state_dict.

    Args:
        channels: channels C.
        kernel_size: K, or (KH, KW).
        stride: step along both dimensions, or of each.
        padding: zeros around the map: "same", "valid", a number, or one for each dimension.
        dilation: distance between taps, or one for each dimension.
        bias: whether an offset for every channel is added.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(type(self).__name__, channels=channels)
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.backend = checked_backend(type(self).__name__, backend)


class Residual(nn.Module):
    """``y = fn(x) + x``; a module of its own because timm's parameter names carry its ``fn``.

    Args:
        fn: what the input is added to.
    """

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``fn(x) + x``."""
        return self.fn(x) + x


class ConvMixerLayer(nn.Sequential):
    """A ConvMixer layer (eqs. 2 and 3) with timm's parameter names.

    ``z = x + BN(act(depthwise(x)))``; ``y = BN(act(pointwise(z)))``.

    Args:
        dim: channels C.
        kernel_size: K of the depthwise convolution.
        activation: None, "relu", "gelu" or "gelu_tanh".
        backend: kept for the fused layer of the same name; this one is always plain PyTorch.
        device: where the parameters are created.
        dtype: their type.
    """

    # A subclass with fused layers names its own convolution here; the constructor is the same.
    depthwise_class: type[DepthwiseConv2d] = DepthwiseConv2d

    def __init__(
        self,
        dim: int,
        kernel_size: int | tuple[int, int] = 9,
        *,
        activation: str | None = "gelu",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(type(self).__name__, dim=dim)
        super().__init__(
            Residual(
                nn.Sequential(
                    self.depthwise_class(dim, kernel_size, backend=backend, device=device, dtype=dtype),
                    make_activation(activation),
                    nn.BatchNorm2d(dim, device=device, dtype=dtype),
                )
            ),
            nn.Conv2d(dim, dim, kernel_size=1, device=device, dtype=dtype),
            make_activation(activation),
            nn.BatchNorm2d(dim, device=device, dtype=dtype),
        )
        self.activation = activation
        self.backend = checked_backend(type(self).__name__, backend)
