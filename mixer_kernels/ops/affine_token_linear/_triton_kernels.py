"""The kernels that only ResMLP needs: a linear over tokens with Affine, LayerScale and residual folded behind it."""

from __future__ import annotations

from mixer_kernels.ops._triton_jit import jit, tl
from mixer_kernels.ops._triton_linear import SIZES, load_affine, load_rows, product, store_rows, sum_rows


@jit(do_not_specialize=SIZES)
def prepare_kernel(
    weight_ptr,
    alpha_ptr,
    beta_ptr,
    layer_scale_ptr,
    padded_ptr,
    row_sums_ptr,
    layer_scales_ptr,
    scale_ptr,
    shift_ptr,
    factor_scale_ptr,
    factor_shift_ptr,
    unit_ptr,
    tokens,
    rows,
    depth,
    channels,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program pads BLOCK_ROWS rows of the weight and sums them up; the last one folds what belongs to channels."""
    program = tl.program_id(0)
    if program < tl.cdiv(rows, BLOCK_ROWS):
        r = program.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
        for start in range(0, depth, BLOCK_S):
            s = start + tl.arange(0, BLOCK_S)
            inside = (r < tokens)[:, None] & (s < tokens)[None, :]
            weight = tl.load(weight_ptr + r[:, None] * tokens + s[None, :], mask=inside, other=0.0)
            row_sum += tl.sum(weight.to(tl.float32), axis=1)
            padded = (r < rows)[:, None] & (s < depth)[None, :]
            tl.store(padded_ptr + r[:, None] * depth + s[None, :], weight, mask=padded)
        tl.store(row_sums_ptr + r, row_sum, mask=r < tokens)
    else:
        largest = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, channels, BLOCK_C):
            layer_scale, _ = load_affine(layer_scale_ptr, None, start + tl.arange(0, BLOCK_C), channels)
            largest = tl.maximum(largest, tl.abs(layer_scale))
        # The largest LayerScale, kept away from zero and infinity. What is divided by it loses nothing in half
        # precision, however small the LayerScale is.
        unit = tl.minimum(tl.maximum(tl.max(largest, axis=0), 1e-30), 1e30)
        tl.store(unit_ptr, unit)
        for start in range(0, channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            alpha, beta = load_affine(alpha_ptr, beta_ptr, c, channels)
            layer_scale, _ = load_affine(layer_scale_ptr, None, c, channels)
            tl.store(layer_scales_ptr + c, layer_scale, mask=c < channels)
            tl.store(scale_ptr + c, layer_scale * alpha, mask=c < channels)
            tl.store(shift_ptr + c, layer_scale * beta, mask=c < channels)
            tl.store(factor_scale_ptr + c, layer_scale / unit * alpha, mask=c < channels)
            tl.store(factor_shift_ptr + c, layer_scale / unit * beta, mask=c < channels)


@jit(do_not_specialize=SIZES)
def affine_token_linear_fwd_kernel(
    x_ptr,
    weight_ptr,
    row_sums_ptr,
    bias_ptr,
    layer_scale_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    tokens,
    channels,
    stride_x_b,
    stride_x_s,
    stride_weight_r,
    PRECISION: tl.constexpr,
    STRIPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Each program computes ROWS tokens of WIDE channels of one image: a product, and all else on its sums."""
    # Neighbouring programs share their part of x.
    row_tiles = tl.cdiv(tokens, ROWS)
    c_tiles = tl.cdiv(channels, WIDE)
    program = tl.program_id(0)
    row = (program % row_tiles).to(tl.int64) * ROWS
    c = program // row_tiles % c_tiles * WIDE + tl.arange(0, WIDE)
    image = (program // row_tiles // c_tiles).to(tl.int64)

    x_ptr += image * stride_x_b
    sums = product(
        x_ptr, tokens, stride_x_s, c, channels, weight_ptr, row, stride_weight_r, 1, PRECISION, STRIPS, WIDE, DEPTH
    )

    scale, shift = load_affine(scale_ptr, shift_ptr, c, channels)
    layer_scale, _ = load_affine(layer_scale_ptr, None, c, channels)
    y_ptr += image * tokens * channels
    for i in tl.static_range(len(STRIPS)):
        r = row + tl.arange(0, STRIPS[i])
        row_sum = tl.load(row_sums_ptr + r, mask=r < tokens, other=0.0)
        update = sums[i].trans() * scale[None, :] + row_sum[:, None] * shift[None, :]  # [strip, WIDE]
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + r, mask=r < tokens, other=0.0).to(tl.float32)
            update += bias[:, None] * layer_scale[None, :]
        y = update + load_rows(x_ptr, r, tokens, stride_x_s, c, channels).to(tl.float32)
        store_rows(y_ptr, y, r, tokens, c, channels)
        row += STRIPS[i]


@jit(do_not_specialize=SIZES)
def affine_token_linear_bwd_dx_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    row_sums_ptr,
    bias_ptr,
    layer_scale_ptr,
    scale_ptr,
    dx_ptr,
    partial_tokens_ptr,
    partial_channels_ptr,
    tokens,
    channels,
    stride_dy_b,
    stride_dy_s,
    stride_x_b,
    stride_x_s,
    stride_weight_k,
    PRECISION: tl.constexpr,
    STRIPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Each program computes ROWS tokens of WIDE channels of one image: dx, and its part of the parameters' sums.

    With U = weight.T @ dy these are, over the tokens, the sums of x * U, dy * rowsum(weight) and dy * bias, and over
    the channels the sum of layer_scale * dy.
    """
    # Neighbouring programs share their part of dy.
    row_tiles = tl.cdiv(tokens, ROWS)
    c_tiles = tl.cdiv(channels, WIDE)
    program = tl.program_id(0)
    row_tile = (program % row_tiles).to(tl.int64)
    c_tile = program // row_tiles % c_tiles
    image = (program // row_tiles // c_tiles).to(tl.int64)
    row = row_tile * ROWS
    c = c_tile * WIDE + tl.arange(0, WIDE)

    dy_ptr += image * stride_dy_b
    sums = product(
        dy_ptr, tokens, stride_dy_s, c, channels, weight_ptr, row, 1, stride_weight_k, PRECISION, STRIPS, WIDE, DEPTH
    )

    scale, _ = load_affine(scale_ptr, None, c, channels)
    layer_scale, _ = load_affine(layer_scale_ptr, None, c, channels)
    x_ptr += image * stride_x_b
    dx_ptr += image * tokens * channels
    partial_tokens_ptr += (image * c_tiles + c_tile) * tokens
    x_u = tl.zeros((WIDE,), tl.float32)
    dy_row_sum = tl.zeros((WIDE,), tl.float32)
    dy_bias = tl.zeros((WIDE,), tl.float32)
    for i in tl.static_range(len(STRIPS)):
        r = row + tl.arange(0, STRIPS[i])
        u = sums[i].trans()  # [strip, WIDE]
        dy = load_rows(dy_ptr, r, tokens, stride_dy_s, c, channels).to(tl.float32)
        store_rows(dx_ptr, dy + u * scale[None, :], r, tokens, c, channels)
        tl.store(partial_tokens_ptr + r, tl.sum(dy * layer_scale[None, :], axis=1), mask=r < tokens)
        row_sum = tl.load(row_sums_ptr + r, mask=r < tokens, other=0.0)
        dy_row_sum += tl.sum(dy * row_sum[:, None], axis=0)
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + r, mask=r < tokens, other=0.0).to(tl.float32)
            dy_bias += tl.sum(dy * bias[:, None], axis=0)
        x = load_rows(x_ptr, r, tokens, stride_x_s, c, channels).to(tl.float32)
        x_u += tl.sum(x * u, axis=0)
        row += STRIPS[i]
    partial_channels_ptr += (image * row_tiles + row_tile) * 3 * channels
    tl.store(partial_channels_ptr + c, x_u, mask=c < channels)
    tl.store(partial_channels_ptr + channels + c, dy_row_sum, mask=c < channels)
    tl.store(partial_channels_ptr + 2 * channels + c, dy_bias, mask=c < channels)


@jit(do_not_specialize=SIZES)
def channel_gradients_kernel(
    partial_ptr,
    alpha_ptr,
    beta_ptr,
    layer_scale_ptr,
    dalpha_ptr,
    dbeta_ptr,
    dlayer_scale_ptr,
    parts,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each program adds up the sums of COLUMNS channels and makes them gradients of alpha, beta and layer_scale."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    x_u = sum_rows(partial_ptr, parts, 3 * channels, c, channels, ROWS, COLUMNS)
    dy_row_sum = sum_rows(partial_ptr + channels, parts, 3 * channels, c, channels, ROWS, COLUMNS)
    dy_bias = sum_rows(partial_ptr + 2 * channels, parts, 3 * channels, c, channels, ROWS, COLUMNS)
    alpha, beta = load_affine(alpha_ptr, beta_ptr, c, channels)
    layer_scale, _ = load_affine(layer_scale_ptr, None, c, channels)
    if alpha_ptr is not None:
        tl.store(dalpha_ptr + c, (layer_scale * x_u).to(dalpha_ptr.dtype.element_ty), mask=c < channels)
    if beta_ptr is not None:
        tl.store(dbeta_ptr + c, (layer_scale * dy_row_sum).to(dbeta_ptr.dtype.element_ty), mask=c < channels)
    if layer_scale_ptr is not None:
        dlayer_scale = alpha * x_u + beta * dy_row_sum + dy_bias
        tl.store(dlayer_scale_ptr + c, dlayer_scale.to(dlayer_scale_ptr.dtype.element_ty), mask=c < channels)
