"""The kernels that only MLP-Mixer needs: LayerNorm over channels, and the MLP over tokens in one piece."""

from __future__ import annotations

from mixer_kernels.ops._triton_activation import activate, activate_with_derivative
from mixer_kernels.ops._triton_jit import jit, tl
from mixer_kernels.ops._triton_linear import (
    SIZES,
    add_dot,
    add_product,
    load_affine,
    load_rows,
    pad_weights,
    store_rows,
    zeros,
)


@jit(do_not_specialize=SIZES)
def prepare_kernel(
    x_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    mean_ptr,
    rstd_ptr,
    n_ptr,
    weights,
    padded,
    heights,
    widths,
    padded_sizes,
    padded_widths,
    images,
    tokens,
    channels,
    stride_x_b,
    stride_x_s,
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PAD: tl.constexpr,
):
    """Each program normalises BLOCK_ROWS tokens, or beyond the last of these pads a part of a weight.

    With ``eps`` it computes their statistics, without it takes those that are there. The normalised tokens are wanted
    if there is room for them.
    """
    program = tl.program_id(0)
    s_tiles = tl.cdiv(tokens, BLOCK_ROWS)
    if program < images * s_tiles:
        image = (program // s_tiles).to(tl.int64)
        s = program % s_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        x_ptr += image * stride_x_b
        mean_ptr += image * tokens
        rstd_ptr += image * tokens
        if eps is not None:
            mean, rstd = statistics(x_ptr, s, tokens, stride_x_s, channels, eps, BLOCK_ROWS, BLOCK_C)
            tl.store(mean_ptr + s, mean, mask=s < tokens)
            tl.store(rstd_ptr + s, rstd, mask=s < tokens)
        else:
            mean = tl.load(mean_ptr + s, mask=s < tokens, other=0.0)
            rstd = tl.load(rstd_ptr + s, mask=s < tokens, other=0.0)
        if n_ptr is not None:
            for start in range(0, channels, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                scale, shift = load_affine(norm_weight_ptr, norm_bias_ptr, c, channels)
                x = load_rows(x_ptr, s, tokens, stride_x_s, c, channels).to(tl.float32)
                n = (x - mean[:, None]) * rstd[:, None] * scale[None, :] + shift[None, :]
                store_rows(n_ptr + image * tokens * channels, n, s, tokens, c, channels)
    else:
        program -= images * s_tiles
        pad_weights(program, weights, padded, heights, widths, padded_sizes, padded_widths, BLOCK_PAD)


@jit
def statistics(
    x_ptr, s, tokens, stride_x_s, channels, eps, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Return mean and rstd of the tokens ``s`` of one image."""
    x_ptrs = x_ptr + (s.to(tl.int64) * stride_x_s)[:, None]
    # Relative to the first channel, so that a large mean takes no digits from the differences between channels.
    origin = tl.load(x_ptrs, mask=(s < tokens)[:, None], other=0.0).to(tl.float32)
    mean = tl.zeros((BLOCK_ROWS,), tl.float32)
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (s < tokens)[:, None] & (c < channels)[None, :]
        x = tl.load(x_ptrs + c[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin, 0.0)
        # Squares of differences, block by block, joined as Chan, Golub and LeVeque do: no cancellation.
        count = tl.minimum(channels - start, BLOCK_C).to(tl.float32)
        block_mean = tl.sum(x, axis=1) / count
        difference = tl.where(inside, x - block_mean[:, None], 0.0)
        step = block_mean - mean
        share = count / (start + count)
        squares += tl.sum(difference * difference, axis=1) + step * step * share * start
        mean += step * share
    return mean + tl.reshape(origin, (BLOCK_ROWS,)), 1.0 / tl.sqrt_rn(squares / channels + eps)


@jit
def load_normalized(x_ptr, mean_ptr, rstd_ptr, scale, shift, s, tokens, stride_x_s, c, channels):
    """Return the tokens ``s`` of one image, normalised and rounded to the dtype of x, finite outside.  # [s, c]."""
    x = load_rows(x_ptr, s, tokens, stride_x_s, c, channels).to(tl.float32)
    mean = tl.load(mean_ptr + s, mask=s < tokens, other=0.0)
    rstd = tl.load(rstd_ptr + s, mask=s < tokens, other=0.0)
    # Outside it is the shift, or zero beyond the channels: the weight is zero there, or nobody reads the result.
    n = (x - mean[:, None]) * rstd[:, None] * scale[None, :] + shift[None, :]
    return n.to(x_ptr.dtype.element_ty)


@jit(do_not_specialize=SIZES)
def token_mixing_kernel(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    y_ptr,
    tokens,
    hidden,
    channels,
    stride_x_b,
    stride_x_s,
    stride_weight1_d,
    stride_weight2_s,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    STRIPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Each program takes WIDE channels of one image through the whole MLP; hidden units come and go DEPTH at a time."""
    c_tiles = tl.cdiv(channels, WIDE)
    program = tl.program_id(0)
    c = program % c_tiles * WIDE + tl.arange(0, WIDE)
    image = (program // c_tiles).to(tl.int64)

    mean_ptr += image * tokens
    rstd_ptr += image * tokens
    scale, shift = load_affine(norm_weight_ptr, norm_bias_ptr, c, channels)
    n = ()
    start = 0
    for i in tl.static_range(len(STRIPS)):
        s = start + tl.arange(0, STRIPS[i])
        strip = load_normalized(
            x_ptr + image * stride_x_b, mean_ptr, rstd_ptr, scale, shift, s, tokens, stride_x_s, c, channels
        )
        n += (strip.trans(),)  # [WIDE, strip]
        start += STRIPS[i]

    sums = zeros(WIDE, STRIPS)
    for chunk in range(0, hidden, DEPTH):
        d = chunk + tl.arange(0, DEPTH)
        z = tl.zeros((WIDE, DEPTH), tl.float32)
        start = 0
        for i in tl.static_range(len(STRIPS)):
            s = start + tl.arange(0, STRIPS[i])
            weight = tl.load(weight1_ptr + d[:, None] * stride_weight1_d + s[None, :])
            z = tl.dot(n[i], weight.trans(), z, input_precision=PRECISION)
            start += STRIPS[i]
        if bias1_ptr is not None:
            z += tl.load(bias1_ptr + d, mask=d < hidden, other=0.0).to(tl.float32)[None, :]
        h = activate(z, ACTIVATION, x_ptr.dtype.element_ty).to(x_ptr.dtype.element_ty)
        sums = add_product(sums, h, weight2_ptr, 0, d, stride_weight2_s, 1, STRIPS, PRECISION)

    y_ptr += image * tokens * channels
    start = 0
    for i in tl.static_range(len(STRIPS)):
        s = start + tl.arange(0, STRIPS[i])
        # Added up in another order than above, so that the compiler computes addresses anew and does not keep those of
        # the first load in registers through the loop.
        offsets = image * stride_x_b + s.to(tl.int64)[:, None] * stride_x_s + c[None, :]
        inside = (s < tokens)[:, None] & (c < channels)[None, :]
        y = sums[i].trans() + tl.load(x_ptr + offsets, mask=inside, other=0.0)
        if bias2_ptr is not None:
            y += tl.load(bias2_ptr + s, mask=s < tokens, other=0.0).to(tl.float32)[:, None]
        store_rows(y_ptr, y, s, tokens, c, channels)
        start += STRIPS[i]


@jit(do_not_specialize=SIZES)
def hidden_bwd_kernel(
    dy_ptr,
    n_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    h_ptr,
    dz_ptr,
    partial_ptr,
    tokens,
    hidden,
    channels,
    stride_dy_b,
    stride_dy_r,
    stride_weight1_d,
    stride_weight2_s,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Each program computes ROWS hidden units of WIDE channels of one image: dz, h, and the sums of dz over channels.

    Without a second weight, dy is the gradient of h, and h is not needed.
    """
    row_tiles = tl.cdiv(hidden, ROWS)
    c_tiles = tl.cdiv(channels, WIDE)
    program = tl.program_id(0)
    d = (program % row_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # Over all images: one row of the workspace for each.
    c_tile = (program // row_tiles).to(tl.int64)
    c = (c_tile % c_tiles).to(tl.int32) * WIDE + tl.arange(0, WIDE)
    image = c_tile // c_tiles

    n_ptr += image * tokens * channels
    dy_ptr += image * stride_dy_b

    z = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(0, tokens, DEPTH):
        s = start + tl.arange(0, DEPTH)
        n = load_rows(n_ptr, s, tokens, channels, c, channels)
        weight = tl.load(weight1_ptr + d[:, None] * stride_weight1_d + s[None, :])
        z = add_dot(weight, n, z, PRECISION)
    if bias1_ptr is not None:
        z += tl.load(bias1_ptr + d, mask=d < hidden, other=0.0).to(tl.float32)[:, None]
    h, dz = activate_with_derivative(z, ACTIVATION, n_ptr.dtype.element_ty)

    if weight2_ptr is not None:
        store_rows(h_ptr + image * hidden * channels, h, d, hidden, c, channels)
        dh = tl.zeros((ROWS, WIDE), tl.float32)
        for start in range(0, tokens, DEPTH):
            s = start + tl.arange(0, DEPTH)
            dy = load_rows(dy_ptr, s, tokens, stride_dy_r, c, channels)
            weight = tl.load(weight2_ptr + s.to(tl.int64)[None, :] * stride_weight2_s + d[:, None])
            dh = add_dot(weight, dy, dh, PRECISION)
        dz *= dh
    else:
        dz *= load_rows(dy_ptr, d, hidden, stride_dy_r, c, channels)
    store_rows(dz_ptr + image * hidden * channels, dz, d, hidden, c, channels)
    tl.store(partial_ptr + c_tile * hidden + d, tl.sum(dz, axis=1), mask=d < hidden)


@jit(do_not_specialize=SIZES)
def layer_norm_bwd_kernel(
    dn_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    norm_weight_ptr,
    residual_ptr,
    dx_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    residual_sum_ptr,
    tokens,
    channels,
    stride_x_b,
    stride_x_s,
    stride_residual_b,
    stride_residual_s,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program takes BLOCK_ROWS tokens of an image: sums over channels, then dx, and a part of the gradients' sums.

    The residual, if there is one, is added to dx and summed over channels.
    """
    s_tiles = tl.cdiv(tokens, BLOCK_ROWS)
    program = tl.program_id(0).to(tl.int64)
    image = program // s_tiles
    s = (program % s_tiles).to(tl.int32) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mean = tl.load(mean_ptr + image * tokens + s, mask=s < tokens, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + image * tokens + s, mask=s < tokens, other=0.0)[:, None]
    x_ptr += image * stride_x_b
    dn_ptr += image * tokens * channels
    dx_ptr += image * tokens * channels

    sum_g = tl.zeros((BLOCK_ROWS,), tl.float32)
    sum_gx = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        scale, _ = load_affine(norm_weight_ptr, None, c, channels)
        g = load_rows(dn_ptr, s, tokens, channels, c, channels).to(tl.float32) * scale[None, :]
        x = load_rows(x_ptr, s, tokens, stride_x_s, c, channels).to(tl.float32)
        sum_g += tl.sum(g, axis=1)
        sum_gx += tl.sum(g * ((x - mean) * rstd), axis=1)
    mean_g = (sum_g / channels)[:, None]
    mean_gx = (sum_gx / channels)[:, None]

    residual_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        scale, _ = load_affine(norm_weight_ptr, None, c, channels)
        dn = load_rows(dn_ptr, s, tokens, channels, c, channels).to(tl.float32)
        x_hat = (load_rows(x_ptr, s, tokens, stride_x_s, c, channels).to(tl.float32) - mean) * rstd
        dx = rstd * (dn * scale[None, :] - mean_g - x_hat * mean_gx)
        if residual_ptr is not None:
            dy_ptr = residual_ptr + image * stride_residual_b
            dy = load_rows(dy_ptr, s, tokens, stride_residual_s, c, channels).to(tl.float32)
            dx += dy
            residual_sum += tl.sum(dy, axis=1)
        store_rows(dx_ptr, dx, s, tokens, c, channels)
        tl.store(partial_weight_ptr + program * channels + c, tl.sum(dn * x_hat, axis=0), mask=c < channels)
        tl.store(partial_bias_ptr + program * channels + c, tl.sum(dn, axis=0), mask=c < channels)
    if residual_ptr is not None:
        tl.store(residual_sum_ptr + image * tokens + s, residual_sum, mask=s < tokens)
