"""What the Triton kernels are launched with: workspaces, grids and arguments.

Every function takes ``launch``, which runs a kernel or, for compilation without a GPU, notes what would have run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from mixer_kernels.ops import _triton_linear
from mixer_kernels.ops._triton_linear import round_up
from mixer_kernels.ops.token_mixing import _triton_kernels as kernels
from mixer_kernels.ops.token_mixing import _triton_tiles as tiles

# Kernel, number of programs, arguments.
Launch = Callable[[Any, int, dict[str, Any]], None]


class Norm(NamedTuple):
    """What it takes to normalise an input on its way into a product."""

    mean: torch.Tensor
    rstd: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def linear_forward(
    launch: Launch,
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, mean and rstd of ``layer_norm_token_linear``."""
    x = _channels_together(x)
    product = tiles.block("normalized_linear", x)
    shape = round_up(len(weight), product["ROWS"]), round_up(x.size(1), product["DEPTH"])
    mean, rstd, (padded,) = _prepare(launch, x, eps, [(weight, shape)])
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    y = _normalized_linear(launch, product, x, norm, padded, len(weight), bias, activation)
    return y, mean, rstd


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, mean and rstd of ``token_mixing``."""
    x = _channels_together(x)
    _, tokens, _ = x.shape
    hidden = len(weight1)

    fused = tiles.fused(x)
    if fused is not None:
        height, width = round_up(hidden, fused["DEPTH"]), fused["ROWS"]
        weights = [(weight1, (height, width)), (weight2, (width, height))]
        mean, rstd, (padded1, padded2) = _prepare(launch, x, eps, weights)
        norm = Norm(mean, rstd, norm_weight, norm_bias)
        return _token_mixing(launch, fused, x, norm, padded1, bias1, padded2, bias2, hidden, activation), mean, rstd

    to_hidden = tiles.block("normalized_linear", x)
    to_tokens = tiles.strips("token_linear", x, tokens)
    shape1 = round_up(hidden, to_hidden["ROWS"]), round_up(tokens, to_hidden["DEPTH"])
    shape2 = round_up(tokens, to_tokens["ROWS"]), round_up(hidden, to_tokens["DEPTH"])
    mean, rstd, (padded1, padded2) = _prepare(launch, x, eps, [(weight1, shape1), (weight2, shape2)])
    norm = Norm(mean, rstd, norm_weight, norm_bias)
    h = _normalized_linear(launch, to_hidden, x, norm, padded1, hidden, bias1, activation)
    y = _token_linear(launch, to_tokens, h, padded2, tokens, bias2, x)
    return y, mean, rstd


def linear_backward(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight and bias of ``layer_norm_token_linear``."""
    dy, x = _channels_together(dy), _channels_together(x)
    hidden, tokens = weight.shape
    sums = _Sums(x)

    to_hidden = tiles.block("hidden_bwd", x)
    to_tokens = tiles.strips("token_linear", x, tokens)
    shape = _padded_both_ways(to_hidden, hidden, to_tokens, tokens)
    _, _, (padded,) = _prepare(launch, x, None, [(weight, shape)])
    if activation == 0:
        dz = dy
        dbias = dy.sum((0, 2)) if bias is not None else x.new_empty(0)
    else:
        dz, partial = _hidden_bwd(launch, to_hidden, dy, x, norm, padded, bias, None, None, hidden, activation)
        dbias = sums.add(partial, bias)
    dn = _token_linear(launch, to_tokens, dz, padded.t(), tokens, None, None)
    dx, dnorm_weight, dnorm_bias = _layer_norm_bwd(launch, sums, dn, x, norm, None, None)
    dweight = sums.add(_weight_gradient(launch, dz, x, norm, transposed=False), weight)
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, norm_weight, norm_bias, weight1, bias1, weight2 and bias2 of ``token_mixing``."""
    dy, x = _channels_together(dy), _channels_together(x)
    hidden, tokens = weight1.shape
    sums = _Sums(x)

    to_hidden = tiles.block("hidden_bwd", x)
    to_tokens = tiles.strips("token_linear", x, tokens)
    height, width = _padded_both_ways(to_hidden, hidden, to_tokens, tokens)
    _, _, (padded1, padded2) = _prepare(launch, x, None, [(weight1, (height, width)), (weight2, (width, height))])
    h = x.new_empty((x.size(0), hidden, x.size(2)))
    dz, partial = _hidden_bwd(launch, to_hidden, dy, x, norm, padded1, bias1, padded2, h, hidden, activation)
    dbias1 = sums.add(partial, bias1)
    dn = _token_linear(launch, to_tokens, dz, padded1.t(), tokens, None, None)
    dy_sums = torch.empty_like(norm.mean)
    dx, dnorm_weight, dnorm_bias = _layer_norm_bwd(launch, sums, dn, x, norm, dy, dy_sums)
    dbias2 = sums.add(dy_sums, bias2)
    dweight1 = sums.add(_weight_gradient(launch, dz, x, norm, transposed=False), weight1)
    dweight2 = sums.add(_weight_gradient(launch, h, dy, None, transposed=True), weight2)
    sums.run(launch)
    return dx, dnorm_weight, dnorm_bias, dweight1, dbias1, dweight2, dbias2


class _Sums:
    """Workspaces that one kernel adds up at the end, all of them in one launch."""

    def __init__(self, x: torch.Tensor) -> None:
        self.absent = x.new_empty(0)
        self.partials: list[torch.Tensor] = []
        self.totals: list[torch.Tensor] = []

    def add(self, partial: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
        """Return the gradient of the parameter, which will be the sum of ``partial`` over its first dimension."""
        if parameter is None:
            return self.absent.clone()
        total = parameter.new_empty(parameter.shape)
        self.partials.append(partial)
        self.totals.append(total)
        return total

    def run(self, launch: Launch) -> None:
        """Launch the kernel."""
        widths = tuple(total.numel() for total in self.totals)
        arguments = {
            "partials": tuple(self.partials),
            "totals": tuple(self.totals),
            "counts": tuple(len(partial) for partial in self.partials),
            "widths": widths,
            "ROWS": _triton_linear.SUM_ROWS,
            "COLUMNS": _triton_linear.SUM_COLUMNS,
            "num_warps": 4,
        }
        programs = sum(_cdiv(width, _triton_linear.SUM_COLUMNS) for width in widths)
        launch(_triton_linear.sum_kernel, programs, arguments)


def _prepare(
    launch: Launch, x: torch.Tensor, eps: float | None, weights: Sequence[tuple[torch.Tensor, tuple[int, int]]]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return mean and rstd of each token, not filled in if ``eps`` is None, and the weights padded to these shapes."""
    batch, tokens, channels = x.shape
    mean = x.new_empty((batch, tokens), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    padded = [weight.new_empty(shape) for weight, shape in weights]
    images = batch if eps is not None else 0
    arguments = {
        "x_ptr": x,
        "mean_ptr": mean,
        "rstd_ptr": rstd,
        "weights": tuple(weight for weight, _ in weights),
        "padded": tuple(padded),
        "heights": tuple(weight.size(0) for weight, _ in weights),
        "widths": tuple(weight.size(1) for weight, _ in weights),
        "padded_sizes": tuple(weight.numel() for weight in padded),
        "padded_widths": tuple(weight.size(1) for weight in padded),
        "images": images,
        "tokens": tokens,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "eps": eps or 0.0,
        **tiles.PREPARE,
    }
    programs = images * _cdiv(tokens, tiles.PREPARE["BLOCK_ROWS"])
    programs += sum(_cdiv(weight.numel(), tiles.PREPARE["BLOCK_PAD"]) for weight in padded)
    launch(kernels.prepare_kernel, programs, arguments)
    return mean, rstd, padded


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
        **_norm_arguments(norm),
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
    launch(kernels.token_mixing_kernel, batch * _cdiv(channels, constants["WIDE"]), arguments)
    return y


def _normalized_linear(
    launch: Launch,
    constants: dict[str, Any],
    x: torch.Tensor,
    norm: Norm,
    weight: torch.Tensor,
    rows: int,
    bias: torch.Tensor | None,
    activation: int,
) -> torch.Tensor:
    """Return ``activation(weight @ normalised x + bias)`` with the first ``rows`` rows of a padded weight."""
    batch, depth, channels = x.shape
    y = x.new_empty((batch, rows, channels))
    arguments = {
        "x_ptr": x,
        **_norm_arguments(norm),
        "weight_ptr": weight,
        "bias_ptr": bias,
        "y_ptr": y,
        "rows": rows,
        "depth": depth,
        "channels": channels,
        "stride_x_b": x.stride(0),
        "stride_x_k": x.stride(1),
        "stride_weight_r": weight.stride(0),
        "ACTIVATION": activation,
        **constants,
    }
    programs = batch * _cdiv(channels, constants["WIDE"]) * _cdiv(rows, constants["ROWS"])
    launch(_triton_linear.normalized_linear_kernel, programs, arguments)
    return y


def _token_linear(
    launch: Launch,
    constants: dict[str, Any],
    x: torch.Tensor,
    weight: torch.Tensor,
    rows: int,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """Return ``residual + weight @ x + bias`` with the first ``rows`` rows of a padded weight."""
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
        **constants,
    }
    programs = batch * _cdiv(channels, constants["WIDE"]) * _cdiv(rows, constants["ROWS"])
    launch(_triton_linear.token_linear_kernel, programs, arguments)
    return y


def _hidden_bwd(
    launch: Launch,
    constants: dict[str, Any],
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    padded1: torch.Tensor,
    bias1: torch.Tensor | None,
    padded2: torch.Tensor | None,
    h: torch.Tensor | None,
    hidden: int,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dz and its sums over channels, in parts; with a second weight also fill ``h``."""
    batch, tokens, channels = x.shape
    c_tiles = _cdiv(channels, constants["WIDE"])
    dz = x.new_empty((batch, hidden, channels))
    partial = x.new_empty((batch * c_tiles, hidden), dtype=torch.float32)
    arguments = {
        "dy_ptr": dy,
        "x_ptr": x,
        **_norm_arguments(norm),
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
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_weight1_d": padded1.stride(0),
        "stride_weight2_s": padded2.stride(0) if padded2 is not None else 0,
        "ACTIVATION": activation,
        **constants,
    }
    launch(kernels.hidden_bwd_kernel, batch * c_tiles * _cdiv(hidden, constants["ROWS"]), arguments)
    return dz, partial


def _layer_norm_bwd(
    launch: Launch,
    sums: _Sums,
    dn: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None,
    residual_sum: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, plus ``residual``, and of the norm; fill the sums of ``residual`` over channels."""
    batch, tokens, channels = x.shape
    programs = batch * _cdiv(tokens, tiles.LAYER_NORM_BWD["BLOCK_ROWS"])
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


def _weight_gradient(
    launch: Launch, dy: torch.Tensor, x: torch.Tensor, norm: Norm | None, transposed: bool
) -> torch.Tensor:
    """Return ``dy @ x.T`` summed over images, or its transpose, in parts: their number is the first dimension."""
    batch, tokens, channels = x.shape
    hidden = dy.size(1)
    constants = tiles.strips("weight_gradient", x, tokens)
    programs = _cdiv(hidden, constants["WIDE"]) * _cdiv(tokens, constants["ROWS"])
    chunks = batch * _cdiv(channels, constants["DEPTH"])
    chunks_of_split = max(1, _cdiv(chunks, max(1, tiles.SPLIT_PROGRAMS // programs)))
    splits = _cdiv(chunks, chunks_of_split)
    partial = x.new_empty((splits, tokens, hidden) if transposed else (splits, hidden, tokens), dtype=torch.float32)
    arguments = {
        "dy_ptr": dy,
        "x_ptr": x,
        **_norm_arguments(norm),
        "partial_ptr": partial,
        "hidden": hidden,
        "tokens": tokens,
        "channels": channels,
        "chunks": chunks,
        "chunks_of_split": chunks_of_split,
        "stride_dy_b": dy.stride(0),
        "stride_dy_d": dy.stride(1),
        "stride_x_b": x.stride(0),
        "stride_x_s": x.stride(1),
        "stride_partial_d": 1 if transposed else tokens,
        "stride_partial_s": hidden if transposed else 1,
        **constants,
    }
    launch(_triton_linear.weight_gradient_kernel, programs * splits, arguments)
    return partial


def _norm_arguments(norm: Norm | None) -> dict[str, torch.Tensor | None]:
    mean, rstd, weight, bias = norm or (None, None, None, None)
    return {"mean_ptr": mean, "rstd_ptr": rstd, "norm_weight_ptr": weight, "norm_bias_ptr": bias}


def _padded_both_ways(
    to_hidden: dict[str, Any], hidden: int, to_tokens: dict[str, Any], tokens: int
) -> tuple[int, int]:
    """Return a shape that the first weight fills with whole tiles, whichever of its sides a product sums over."""
    height = max(round_up(hidden, to_hidden["ROWS"]), round_up(hidden, to_tokens["DEPTH"]))
    width = max(round_up(tokens, to_tokens["ROWS"]), round_up(tokens, to_hidden["DEPTH"]))
    return height, width


def _channels_together(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` or a copy whose channels lie side by side; the kernels read it more often than a copy does."""
    return x if x.stride(2) == 1 or x.size(2) == 1 else x.contiguous()


def _cdiv(value: int, divisor: int) -> int:
    return -(-value // divisor)
