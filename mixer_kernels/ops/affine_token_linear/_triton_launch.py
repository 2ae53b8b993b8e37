"""What the Triton kernels are launched with: workspaces, grids and arguments.

Every function takes ``launch``, which runs a kernel or, for compilation without a GPU, notes what would have run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._tokens import Optional
from mixer_kernels.ops._triton_launch import Factor, Launch, Sums, cdiv, channels_together, weight_gradient
from mixer_kernels.ops._triton_tiles import in_strips, round_up
from mixer_kernels.ops.affine_token_linear import _triton_kernels as kernels
from mixer_kernels.ops.affine_token_linear import _triton_tiles as tiles


class Parameters(NamedTuple):
    """The op's parameters."""

    alpha: Optional
    beta: Optional
    weight: torch.Tensor
    bias: Optional
    layer_scale: Optional


class Folded(NamedTuple):
    """What the parameters become before the products; float32 but for the padded weight."""

    padded: torch.Tensor
    row_sums: torch.Tensor
    # Of each channel: LayerScale, LayerScale * alpha and LayerScale * beta.
    layer_scale: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    # The last two divided by the unit, one number: what x is scaled and shifted by in the gradient of the weight.
    factor_scale: torch.Tensor
    factor_shift: torch.Tensor
    unit: torch.Tensor


def forward(launch: Launch, x: torch.Tensor, parameters: Parameters, allow_tf32: bool = False) -> torch.Tensor:
    """Return y."""
    x = channels_together(x)
    batch, tokens, channels = x.shape
    constants = in_strips(tiles.TILES, "fwd", x, tokens, allow_tf32)
    height, width = round_up(tokens, constants["ROWS"]), round_up(tokens, constants["DEPTH"])
    folded = _fold(launch, x, parameters, height, width)
    y = x.new_empty(x.shape)
    arguments = {
        "x_ptr": x,
        "weight_ptr": folded.padded,
        "row_sums_ptr": folded.row_sums,
        "bias_ptr": parameters.bias,
        "layer_scale_ptr": folded.layer_scale,
        "scale_ptr": folded.scale,
        "shift_ptr": folded.shift,
        "y_ptr": y,
        "tokens": tokens,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_weight_r": folded.padded.stride(0),
        **constants,
    }
    programs = batch * cdiv(channels, constants["WIDE"]) * cdiv(tokens, constants["ROWS"])
    launch(kernels.affine_token_linear_fwd_kernel, programs, arguments)
    return y


def backward(
    launch: Launch, dy: torch.Tensor, x: torch.Tensor, parameters: Parameters, allow_tf32: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x and the parameters."""
    dy, x = channels_together(dy), channels_together(x)
    batch, tokens, channels = x.shape
    constants = in_strips(tiles.TILES, "bwd_dx", x, tokens, allow_tf32)
    height, width = round_up(tokens, constants["DEPTH"]), round_up(tokens, constants["ROWS"])
    folded = _fold(launch, x, parameters, height, width)
    row_tiles, c_tiles = cdiv(tokens, constants["ROWS"]), cdiv(channels, constants["WIDE"])
    dx = x.new_empty(x.shape)
    partial_tokens = x.new_empty((batch * c_tiles, tokens), dtype=torch.float32)
    partial_channels = x.new_empty((batch * row_tiles, 3, channels), dtype=torch.float32)
    arguments = {
        "dy_ptr": dy,
        "x_ptr": x,
        "weight_ptr": folded.padded,
        "row_sums_ptr": folded.row_sums,
        "bias_ptr": parameters.bias,
        "layer_scale_ptr": folded.layer_scale,
        "scale_ptr": folded.scale,
        "dx_ptr": dx,
        "partial_tokens_ptr": partial_tokens,
        "partial_channels_ptr": partial_channels,
        "tokens": tokens,
        "channels": channels,
        "stride_dy_b": dy.stride(0),
        "stride_dy_s": dy.stride(1),
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_weight_k": folded.padded.stride(0),
        **constants,
    }
    launch(kernels.affine_token_linear_bwd_dx_kernel, batch * c_tiles * row_tiles, arguments)

    dalpha, dbeta, dlayer_scale = _channel_gradients(launch, partial_channels, x, parameters)
    sums = Sums(x)
    to_weight = in_strips(tiles.TILES, "weight_gradient", x, tokens, allow_tf32)
    factor = Factor(folded.factor_scale, folded.factor_shift, folded.unit)
    dweight = sums.add(weight_gradient(launch, to_weight, dy, x, factor), parameters.weight)
    dbias = sums.add(partial_tokens, parameters.bias)
    sums.run(launch)
    return dx, dalpha, dbeta, dweight, dbias, dlayer_scale


def _fold(launch: Launch, x: torch.Tensor, parameters: Parameters, height: int, width: int) -> Folded:
    """Return the folded parameters, the weight padded to height and width."""
    tokens, channels = len(parameters.weight), x.size(2)
    padded = parameters.weight.new_empty((height, width))
    sizes = tokens, channels, channels, channels, channels, channels, 1
    folded = Folded(padded, *(x.new_empty(size, dtype=torch.float32) for size in sizes))
    arguments = {
        "weight_ptr": parameters.weight,
        "alpha_ptr": parameters.alpha,
        "beta_ptr": parameters.beta,
        "layer_scale_ptr": parameters.layer_scale,
        "padded_ptr": folded.padded,
        "row_sums_ptr": folded.row_sums,
        "layer_scales_ptr": folded.layer_scale,
        "scale_ptr": folded.scale,
        "shift_ptr": folded.shift,
        "factor_scale_ptr": folded.factor_scale,
        "factor_shift_ptr": folded.factor_shift,
        "unit_ptr": folded.unit,
        "tokens": tokens,
        "rows": height,
        "depth": width,
        "channels": channels,
        **tiles.PREPARE,
    }
    launch(kernels.prepare_kernel, cdiv(height, tiles.PREPARE["BLOCK_ROWS"]) + 1, arguments)
    return folded


def _channel_gradients(
    launch: Launch, partial: torch.Tensor, x: torch.Tensor, parameters: Parameters
) -> list[torch.Tensor]:
    """Return the gradients of alpha, beta and layer_scale; of an absent one, an empty tensor."""
    of_channels = (parameters.alpha, parameters.beta, parameters.layer_scale)
    gradients = [x.new_empty(0) if parameter is None else torch.empty_like(parameter) for parameter in of_channels]
    arguments = {
        "partial_ptr": partial,
        "alpha_ptr": parameters.alpha,
        "beta_ptr": parameters.beta,
        "layer_scale_ptr": parameters.layer_scale,
        "dalpha_ptr": gradients[0],
        "dbeta_ptr": gradients[1],
        "dlayer_scale_ptr": gradients[2],
        "parts": len(partial),
        "channels": x.size(2),
        "ROWS": _triton_linear.SUM_ROWS,
        "COLUMNS": _triton_linear.SUM_COLUMNS,
        "num_warps": 4,
    }
    launch(kernels.channel_gradients_kernel, cdiv(x.size(2), _triton_linear.SUM_COLUMNS), arguments)
    return gradients
