"""What follows the convolution where it does not run in the same pass; tiles are those of ``_triton_kernels.py``.

Maps have the rows they have, or, where those follow on one another, one row of all pixels.
"""

from __future__ import annotations

from mixer_kernels.ops._triton_activation import activate, activate_with_derivative
from mixer_kernels.ops._triton_jit import jit, tl
from mixer_kernels.ops._triton_linear import load_affine
from mixer_kernels.ops.depthwise_conv2d._triton_kernels import SIZES, offsets


@jit(do_not_specialize=SIZES)
def depthwise_epilogue_fwd_kernel(
    z_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, channels, rows, pixels,
    stride_z_b, stride_z_c, stride_z_h, stride_z_w,
    stride_residual_b, stride_residual_c, stride_residual_h, stride_residual_w,
    stride_y_b, stride_y_c, stride_y_h, stride_y_w,
    ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each program computes COLUMNS pixels of a row of one image, for CHANNELS channels."""
    image, h, w, c = tile_of_map(channels, rows, pixels, COLUMNS, CHANNELS)
    inside = (w < pixels)[:, None] & (c < channels)[None, :]
    z_ptrs = z_ptr + image * stride_z_b + h * stride_z_h + offsets(w, c, stride_z_w, stride_z_c)
    scale, shift = load_affine(scale_ptr, shift_ptr, c, channels)
    z = tl.load(z_ptrs, mask=inside, other=0.0).to(tl.float32)
    y = activate(z, ACTIVATION, tl.float32) * scale[None, :] + shift[None, :]
    if residual_ptr is not None:
        residual_ptr += image * stride_residual_b + h * stride_residual_h
        residual_ptrs = residual_ptr + offsets(w, c, stride_residual_w, stride_residual_c)
        y += tl.load(residual_ptrs, mask=inside, other=0.0).to(tl.float32)
    y_ptrs = y_ptr + image * stride_y_b + h * stride_y_h + offsets(w, c, stride_y_w, stride_y_c)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit(do_not_specialize=SIZES)
def depthwise_epilogue_bwd_kernel(
    dy_ptr, z_ptr, c0_ptr, c1_ptr, c2_ptr, dz_ptr, channels, rows, pixels,
    stride_dy_b, stride_dy_c, stride_dy_h, stride_dy_w,
    stride_z_b, stride_z_c, stride_z_h, stride_z_w,
    stride_dz_b, stride_dz_c, stride_dz_h, stride_dz_w,
    ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each program computes COLUMNS pixels of a row of one image, for CHANNELS channels."""
    image, h, w, c = tile_of_map(channels, rows, pixels, COLUMNS, CHANNELS)
    inside = (w < pixels)[:, None] & (c < channels)[None, :]
    dy_ptrs = dy_ptr + image * stride_dy_b + h * stride_dy_h + offsets(w, c, stride_dy_w, stride_dy_c)
    z_ptrs = z_ptr + image * stride_z_b + h * stride_z_h + offsets(w, c, stride_z_w, stride_z_c)
    c0, c2 = load_affine(c0_ptr, c2_ptr, c, channels)
    dy = tl.load(dy_ptrs, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(z_ptrs, mask=inside, other=0.0).to(tl.float32)
    activated, derivative = activate_with_derivative(z, ACTIVATION, tl.float32)
    da = c0[None, :] * dy + c2[None, :]
    if c1_ptr is not None:
        c1, _ = load_affine(c1_ptr, None, c, channels)
        da += c1[None, :] * activated
    dz_ptrs = dz_ptr + image * stride_dz_b + h * stride_dz_h + offsets(w, c, stride_dz_w, stride_dz_c)
    tl.store(dz_ptrs, (da * derivative).to(dz_ptr.dtype.element_ty), mask=inside)


@jit(do_not_specialize=SIZES)
def depthwise_epilogue_sums_kernel(
    dy_ptr, z_ptr, center_ptr, partial_dy_ptr, partial_product_ptr, channels, rows, pixels, chunks, chunks_of_split,
    stride_dy_b, stride_dy_c, stride_dy_h, stride_dy_w,
    stride_z_b, stride_z_c, stride_z_h, stride_z_w,
    ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each program sums up CHANNELS channels over its share of the chunks, COLUMNS pixels of a row each."""
    column_tiles = tl.cdiv(pixels, COLUMNS)
    c_tiles = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    c = program % c_tiles * CHANNELS + tl.arange(0, CHANNELS)
    split = (program // c_tiles).to(tl.int64)
    _, center = load_affine(None, center_ptr, c, channels)
    sum_dy = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    sum_product = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for chunk in range(split * chunks_of_split, tl.minimum((split + 1) * chunks_of_split, chunks)):
        row = chunk // column_tiles
        w = (chunk % column_tiles * COLUMNS).to(tl.int32) + tl.arange(0, COLUMNS)
        inside = (w < pixels)[:, None] & (c < channels)[None, :]
        dy_ptrs = dy_ptr + row // rows * stride_dy_b + row % rows * stride_dy_h
        z_ptrs = z_ptr + row // rows * stride_z_b + row % rows * stride_z_h
        dy = tl.load(dy_ptrs + offsets(w, c, stride_dy_w, stride_dy_c), mask=inside, other=0.0).to(tl.float32)
        z = tl.load(z_ptrs + offsets(w, c, stride_z_w, stride_z_c), mask=inside, other=0.0).to(tl.float32)
        sum_dy += dy
        sum_product += dy * (activate(z, ACTIVATION, tl.float32) - center[None, :])
    tl.store(partial_dy_ptr + split * channels + c, tl.sum(sum_dy, axis=0), mask=c < channels)
    tl.store(partial_product_ptr + split * channels + c, tl.sum(sum_product, axis=0), mask=c < channels)


@jit
def tile_of_map(channels, rows, pixels, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return image, row, pixels and channels of this program's tile."""
    column_tiles = tl.cdiv(pixels, COLUMNS)
    c_tiles = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    w = program % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    h = (program // column_tiles % rows).to(tl.int64)
    c = program // column_tiles // rows % c_tiles * CHANNELS + tl.arange(0, CHANNELS)
    return (program // column_tiles // rows // c_tiles).to(tl.int64), h, w, c
