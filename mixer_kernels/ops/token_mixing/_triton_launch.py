"""What the Triton kernels are launched with: workspaces, grids and arguments.

Every function takes ``launch``, which runs a kernel or, for compilation without a GPU, notes what would have run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._triton_launch import Launch, Sums, cdiv, channels_together, weight_gradient
from mixer_kernels.ops._triton_tiles import block, in_strips, round_up
from mixer_kernels.ops.token_mixing import _triton_kernels as kernels
from mixer_kernels.ops.token_mixing import _triton_tiles as tiles


class Norm(NamedTuple):
    """What it takes to normalise an input: two numbers for each token, up to two for each channel."""

    mean: torch.Tensor
    rstd: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Norm:
        """Return one whose statistics are still to be computed."""
        mean = x.new_empty(x.shape[:2], dtype=torch.float32)
        return cls(mean, torch.empty_like(mean), weight, bias)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """Return the arguments of a kernel that normalises."""
        return {
            "mean_ptr": self.mean,
            "rstd_ptr": self.rstd,
            "norm_weight_ptr": self.weight,
            "norm_bias_ptr": self.bias,
        }


def linear_forward(
    launch: Launch,
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, mean and rstd of ``layer_norm_token_linear``."""
    x = channels_together(x)
    hidden, tokens = weight.shape
    norm, n = Norm.of(x, norm_weight, norm_bias), x.new_empty(x.shape)
    product = in_strips(tiles.TILES, "token_linear", x, hidden, allow_tf32)
    shape = round_up(hidden, product["ROWS"]), round_up(tokens, product["DEPTH"])
    (padded,) = _prepare(launch, x, norm, eps, n, [(weight, shape)])
    return _token_linear(launch, product, n, padded, hidden, bias, activation), norm.mean, norm.rstd


def mixing_forward(
    launch: Launch,
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    eps: float,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, mean and rstd of ``token_mixing``."""
    x = channels_together(x)
    hidden, tokens = weight1.shape
    norm = Norm.of(x, norm_weight, norm_bias)

    fused = tiles.fused(x)
    if fused is not None:
        height, width = round_up(hidden, fused["DEPTH"]), fused["ROWS"]
        padded = _prepare(launch, x, norm, eps, None, [(weight1, (height, width)), (weight2, (width, height))])
        y = _token_mixing(launch, fused, x, norm, padded[0], bias1, padded[1], bias2, hidden, activation)
        return y, norm.mean, norm.rstd

    n = x.new_empty(x.shape)
    to_hidden = in_strips(tiles.TILES, "token_linear", x, hidden, allow_tf32)
    to_tokens = in_strips(tiles.TILES, "token_linear", x, tokens, allow_tf32)
    shape1 = round_up(hidden, to_hidden["ROWS"]), round_up(tokens, to_hidden["DEPTH"])
    shape2 = round_up(tokens, to_tokens["ROWS"]), round_up(hidden, to_tokens["DEPTH"])
    padded1, padded2 = _prepare(launch, x, norm, eps, n, [(weight1, shape1), (weight2, shape2)])
    h = _token_linear(launch, to_hidden, n, padded1, hidden, bias1, activation)
    return _token_linear(launch, to_tokens, h, padded2, tokens, bias2, residual=x), norm.mean, norm.rstd


def linear_backward(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight and bias of ``layer_norm_token_linear``."""
    dy, x = channels_together(dy), channels_together(x)
    hidden, tokens = weight.shape
    sums = Sums(x)

    to_hidden = block(tiles.TILES, "hidden_bwd", x, allow_tf32)
    to_tokens = in_strips(tiles.TILES, "token_linear", x, tokens, allow_tf32)
    to_weight = in_strips(tiles.TILES, "weight_gradient", x, tokens, allow_tf32)
    shape = _padded_both_ways(to_hidden, hidden, to_tokens, tokens)
    n = x.new_empty(x.shape)
    (padded,) = _prepare(launch, x, norm, None, n, [(weight, shape)])
    if activation == 0:
        dz = dy
        dbias = dy.sum((0, 2)) if bias is not None else x.new_empty(0)
    else:
        dz, partial = _hidden_bwd(launch, to_hidden, dy, n, padded, bias, None, None, hidden, activation)
        dbias = sums.add(partial, bias)
    dn = _token_linear(launch, to_tokens, dz, padded.t(), tokens)
    dx, dnorm_weight, dnorm_bias = _layer_norm_bwd(launch, sums, dn, x, norm, None, None)
    dweight = sums.add(weight_gradient(launch, to_weight, dz, n), weight)
    sums.run(launch)
    return dx, dnorm_weight, dnorm_bias, dweight, dbias


def mixing_backward(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    activation: int,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight1, bias1, weight2 and bias2 of ``token_mixing``."""
    dy, x = channels_together(dy), channels_together(x)
    hidden, tokens = weight1.shape
    sums = Sums(x)

    to_hidden = block(tiles.TILES, "hidden_bwd", x, allow_tf32)
    to_tokens = in_strips(tiles.TILES, "token_linear", x, tokens, allow_tf32)
    to_weight = in_strips(tiles.TILES, "weight_gradient", x, tokens, allow_tf32)
    height, width = _padded_both_ways(to_hidden, hidden, to_tokens, tokens)
    n = x.new_empty(x.shape)
    padded1, padded2 = _prepare(launch, x, norm, None, n, [(weight1, (height, width)), (weight2, (width, height))])
    h = x.new_empty((x.size(0), hidden, x.size(2)))
    dz, partial = _hidden_bwd(launch, to_hidden, dy, n, padded1, bias1, padded2, h, hidden, activation)
    dbias1 = sums.add(partial, bias1)
    dn = _token_linear(launch, to_tokens, dz, padded1.t(), tokens)
    dy_sums = x.new_empty(x.shape[:2], dtype=torch.float32)
    dx, dnorm_weight, dnorm_bias = _layer_norm_bwd(launch, sums, dn, x, norm, dy, dy_sums)
    dbias2 = sums.add(dy_sums, bias2)
    dweight1 = sums.add(weight_gradient(launch, to_weight, dz, n), weight1)
    dweight2 = sums.add(weight_gradient(launch, to_weight, h, dy, transposed=True), weight2)
    sums.run(launch)
    return dx, dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2


def _prepare(
    launch: Launch,
    x: torch.Tensor,
    norm: Norm,
    eps: float | None,
    n: torch.Tensor | None,
    weights: Sequence[tuple[torch.Tensor, tuple[int, int]]],
) -> list[torch.Tensor]:
    """Fill in the statistics if there is an ``eps``, and ``n``, the normalised tokens; return the padded weights."""
    batch, tokens, channels = x.shape
    padded = [weight.new_empty(shape) for weight, shape in weights]
    arguments = {
        "x_ptr": x,
        **norm.arguments(),
        "n_ptr": n,
        "weights": tuple(weight for weight, _ in weights),
        "padded": tuple(padded),
        "heights": tuple(weight.size(0) for weight, _ in weights),
        "widths": tuple(weight.size(1) for weight, _ in weights),
        "padded_sizes": tuple(weight.numel() for weight in padded),
        "padded_widths": tuple(weight.size(1) for weight in padded),
        "images": batch,
        "tokens": tokens,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "eps": eps,
        **tiles.PREPARE,
    }
    programs = batch * cdiv(tokens, tiles.PREPARE["BLOCK_ROWS"])
    programs += sum(cdiv(weight.numel(), tiles.PREPARE["BLOCK_PAD"]) for weight in padded)
    launch(kernels.prepare_kernel, programs, arguments)
    return padded


def _token_mixing(
    launch: Launch,
    constants: dict[str, Any],
    x: torch.Tensor,
    norm: Norm,
    padded1: torch.Tensor,
    bias1: torch.Tensor | None,
    padded2: torch.Tensor,
    bias2: torch.Tensor | None,
    hidden: int,
    activation: int,
) -> torch.Tensor:
    """Return ``x + weight2 @ activation(weight1 @ normalised x + bias1) + bias2``, in one kernel."""
    batch, tokens, channels = x.shape
    y = x.new_empty(x.shape)
    arguments = {
        "x_ptr": x,
        **norm.arguments(),
        "weight1_ptr": padded1,
        "bias1_ptr": bias1,
        "weight2_ptr": padded2,
        "bias2_ptr": bias2,
        "y_ptr": y,
        "tokens": tokens,
        "hidden": hidden,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_weight1_d": padded1.stride(0),
        "stride_weight2_s": padded2.stride(0),
        "ACTIVATION": activation,
        **constants,
    }
    launch(kernels.token_mixing_kernel, batch * cdiv(channels, constants["WIDE"]), arguments)
    return y


def _token_linear(
    launch: Launch,
    constants: dict[str, Any],
    x: torch.Tensor,
    weight: torch.Tensor,
    rows: int,
    bias: torch.Tensor | None = None,
    activation: int = 0,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``residual + activation(weight @ x + bias)`` with the first ``rows`` rows of a padded weight."""
    batch, depth, channels = x.shape
    y = x.new_empty((batch, rows, channels))
    arguments = {
        "x_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "residual_ptr": residual,
        "y_ptr": y,
        "rows": rows,
        "depth": depth,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_k": x.stride(1),
        "stride_weight_r": weight.stride(0),
        "stride_weight_k": weight.stride(1),
        "stride_residual_b": residual.stride(0) if residual is not None else 0,
        "stride_residual_r": residual.stride(1) if residual is not None else 0,
        "ACTIVATION": activation,
        **constants,
    }
    programs = batch * cdiv(channels, constants["WIDE"]) * cdiv(rows, constants["ROWS"])
    launch(_triton_linear.token_linear_kernel, programs, arguments)
    return y


def _hidden_bwd(
    launch: Launch,
    constants: dict[str, Any],
    dy: torch.Tensor,
    n: torch.Tensor,
    padded1: torch.Tensor,
    bias1: torch.Tensor | None,
    padded2: torch.Tensor | None,
    h: torch.Tensor | None,
    hidden: int,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dz and its sums over channels, in parts; with a second weight also fill ``h``."""
    batch, tokens, channels = n.shape
    c_tiles = cdiv(channels, constants["WIDE"])
    dz = n.new_empty((batch, hidden, channels))
    partial = n.new_empty((batch * c_tiles, hidden), dtype=torch.float32)
    arguments = {
        "dy_ptr": dy,
        "n_ptr": n,
        "weight1_ptr": padded1,
        "bias1_ptr": bias1,
        "weight2_ptr": padded2,
        "h_ptr": h,
        "dz_ptr": dz,
        "partial_ptr": partial,
        "tokens": tokens,
        "hidden": hidden,
        "channels": channels,
        "stride_dy_b": dy.stride(0),
        "stride_dy_r": dy.stride(1),
        "stride_weight1_d": padded1.stride(0),
        "stride_weight2_s": padded2.stride(0) if padded2 is not None else 0,
        "ACTIVATION": activation,
        **constants,
    }
    launch(kernels.hidden_bwd_kernel, batch * c_tiles * cdiv(hidden, constants["ROWS"]), arguments)
    return dz, partial


def _layer_norm_bwd(
    launch: Launch,
    sums: Sums,
    dn: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None,
    residual_sum: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, plus ``residual``, and of the norm; fill the sums of ``residual`` over channels."""
    batch, tokens, channels = x.shape
    programs = batch * cdiv(tokens, tiles.LAYER_NORM_BWD["BLOCK_ROWS"])
    dx = x.new_empty(x.shape)
    partial_weight = x.new_empty((programs, channels), dtype=torch.float32)
    partial_bias = torch.empty_like(partial_weight)
    arguments = {
        "dn_ptr": dn,
        "x_ptr": x,
        "mean_ptr": norm.mean,
        "rstd_ptr": norm.rstd,
        "norm_weight_ptr": norm.weight,
        "residual_ptr": residual,
        "dx_ptr": dx,
        "partial_weight_ptr": partial_weight,
        "partial_bias_ptr": partial_bias,
        "residual_sum_ptr": residual_sum,
        "tokens": tokens,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_residual_b": residual.stride(0) if residual is not None else 0,
        "stride_residual_s": residual.stride(1) if residual is not None else 0,
        **tiles.LAYER_NORM_BWD,
    }
    launch(kernels.layer_norm_bwd_kernel, programs, arguments)
    return dx, sums.add(partial_weight, norm.weight), sums.add(partial_bias, norm.bias)


def _padded_both_ways(
    to_hidden: dict[str, Any], hidden: int, to_tokens: dict[str, Any], tokens: int
) -> tuple[int, int]:
    """Return a shape that the first weight fills with whole tiles, whichever of its sides a product sums over."""
    height = max(round_up(hidden, to_hidden["ROWS"]), round_up(hidden, to_tokens["DEPTH"]))
    width = max(round_up(tokens, to_tokens["ROWS"]), round_up(tokens, to_hidden["DEPTH"]))
    return height, width
