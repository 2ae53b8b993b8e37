"""The depthwise convolution: a sliding window of rows in registers, whatever lies side by side in memory.

A tile is COLUMNS pixels of a row for CHANNELS channels. Which of the two the lanes follow is up to the strides: the one
that is 1 is a constant of the compiled kernel.
"""

from __future__ import annotations

from mixer_kernels.ops._triton_activation import activate
from mixer_kernels.ops._triton_jit import jit, tl
from mixer_kernels.ops._triton_linear import load_affine

# Arguments that are never constants of a compiled kernel, so that one serves every size. The number of channels is not
# among them, nor that of all pixels: whether it is a multiple of 16 decides how wide accesses are.
SIZES = (
    "height", "width", "out_height", "out_width", "kernel_h", "kernel_w", "pad_h", "pad_w", "chunks", "chunks_of_split",
    "rows", "parts",
)  # fmt: skip


@jit(do_not_specialize=SIZES)
def depthwise_conv2d_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, partial_ptr,
    channels, height, width, out_height, out_width, kernel_h, kernel_w,
    step_h, step_w, zoom_h, zoom_w, dilation_h, dilation_w, pad_h, pad_w,
    stride_x_b, stride_x_c, stride_x_h, stride_x_w, stride_weight_c, stride_weight_t,
    stride_residual_b, stride_residual_c, stride_residual_h, stride_residual_w,
    stride_y_b, stride_y_c, stride_y_h, stride_y_w,
    ACTIVATION: tl.constexpr, SLIDE: tl.constexpr, UNROLL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each program computes ROWS rows of COLUMNS pixels of CHANNELS channels of one image, a tile a row.

    An output pixel h takes its taps i from ``(h * step_h - pad_h + i * dilation_h) / zoom_h``, where that is a pixel of
    x: zeros lie between the pixels of a zoomed map. With SLIDE, the step is the dilation, and the rows that the next
    tap meets are those of this one but for the last. With a workspace, y is what comes before the activation, and the
    program's count, mean and squared deviations of the activations of each channel go to the workspace.
    """
    row_tiles = tl.cdiv(out_height, ROWS)
    column_tiles = tl.cdiv(out_width, COLUMNS)
    c_tiles = tl.cdiv(channels, CHANNELS)
    # Neighbouring programs share rows of x.
    program = tl.program_id(0)
    row = program % row_tiles * ROWS
    column = program // row_tiles % column_tiles * COLUMNS
    c = program // row_tiles // column_tiles % c_tiles * CHANNELS + tl.arange(0, CHANNELS)
    image = (program // row_tiles // column_tiles // c_tiles).to(tl.int64)
    w = column + tl.arange(0, COLUMNS)
    inside_c = c < channels
    inside = (w < out_width)[:, None] & inside_c[None, :]

    x_ptr += image * stride_x_b
    weight_ptr += c.to(tl.int64) * stride_weight_c
    sums = zeros(ROWS, COLUMNS, CHANNELS)
    for j in range(kernel_w):
        x_ptrs, inside_x = columns(
            x_ptr, w * step_w - pad_w + j * dilation_w, width, zoom_w, inside, c, stride_x_w, stride_x_c
        )
        weight_ptrs = weight_ptr + j * stride_weight_t
        n = row * step_h - pad_h
        # How many rows of the window the next one takes over.
        KEPT: tl.constexpr = ROWS - 1 if SLIDE else 0
        window = load_rows((), x_ptrs, n, step_h, height, zoom_h, inside_x, stride_x_h, KEPT)
        for _ in tl.range(0, kernel_h, loop_unroll_factor=UNROLL):
            weight = tl.load(weight_ptrs, mask=inside_c, other=0.0).to(tl.float32)
            window = load_rows(window, x_ptrs, n, step_h, height, zoom_h, inside_x, stride_x_h, ROWS)
            sums = add_products(sums, window, weight[None, :], ROWS)
            window = window[ROWS - KEPT :]
            weight_ptrs += kernel_w * stride_weight_t
            n += dilation_h

    scale, shift = load_affine(scale_ptr, shift_ptr, c, channels)
    bias = tl.zeros((CHANNELS,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + c, mask=inside_c, other=0.0).to(tl.float32)
    y_ptrs = y_ptr + image * stride_y_b + offsets(w, c, stride_y_w, stride_y_c)
    residual_ptrs = None
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + image * stride_residual_b + offsets(w, c, stride_residual_w, stride_residual_c)
    activated = ()
    for r in tl.static_range(ROWS):
        h = (row + r).to(tl.int64)
        inside_y = only_if(h < out_height, inside)
        y = sums[r] + bias[None, :]
        if partial_ptr is not None:
            # Statistics of what the next pass reads.
            y = y.to(y_ptr.dtype.element_ty)
            activated += (activate(y.to(tl.float32), ACTIVATION, tl.float32),)
        else:
            y = activate(y, ACTIVATION, tl.float32) * scale[None, :] + shift[None, :]
            if residual_ptr is not None:
                y += tl.load(residual_ptrs + h * stride_residual_h, mask=inside_y, other=0.0).to(tl.float32)
        tl.store(y_ptrs + h * stride_y_h, y.to(y_ptr.dtype.element_ty), mask=inside_y)

    if partial_ptr is not None:
        count = (tl.minimum(out_height - row, ROWS) * tl.minimum(out_width - column, COLUMNS)).to(tl.float32)
        total = tl.zeros((COLUMNS, CHANNELS), tl.float32)
        for r in tl.static_range(ROWS):
            total += tl.where(only_if(row + r < out_height, inside), activated[r], 0.0)
        mean = tl.sum(total, axis=0) / count
        squares = tl.zeros((COLUMNS, CHANNELS), tl.float32)
        for r in tl.static_range(ROWS):
            deviation = tl.where(only_if(row + r < out_height, inside), activated[r] - mean[None, :], 0.0)
            squares += deviation * deviation
        part = (image * row_tiles + program % row_tiles) * column_tiles + program // row_tiles % column_tiles
        partial_ptr += part * 3 * channels + c
        tl.store(partial_ptr, tl.zeros((CHANNELS,), tl.float32) + count, mask=inside_c)
        tl.store(partial_ptr + channels, mean, mask=inside_c)
        tl.store(partial_ptr + 2 * channels, tl.sum(squares, axis=0), mask=inside_c)


@jit(do_not_specialize=SIZES)
def statistics_kernel(
    partial_ptr, mean_ptr, var_ptr, parts, channels, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Each program makes mean and variance of COLUMNS channels from the parts' counts, means and squared deviations."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, parts, ROWS):
        counts, means, _ = load_parts(partial_ptr, start + tl.arange(0, ROWS), parts, c, channels)
        total += tl.sum(counts * means, axis=0)
    mean = total / count
    squares = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, parts, ROWS):
        counts, means, deviations = load_parts(partial_ptr, start + tl.arange(0, ROWS), parts, c, channels)
        squares += tl.sum(deviations + counts * (means - mean[None, :]) * (means - mean[None, :]), axis=0)
    tl.store(mean_ptr + c, mean, mask=c < channels)
    tl.store(var_ptr + c, squares / count, mask=c < channels)


@jit(do_not_specialize=SIZES)
def depthwise_conv2d_bwd_weight_kernel(
    dz_ptr, x_ptr, partial_weight_ptr, partial_bias_ptr,
    channels, height, width, out_height, out_width, kernel_h, kernel_w, chunks, chunks_of_split,
    step_h, step_w, dilation_h, dilation_w, pad_h, pad_w,
    stride_dz_b, stride_dz_c, stride_dz_h, stride_dz_w, stride_x_b, stride_x_c, stride_x_h, stride_x_w,
    SLIDE: tl.constexpr, TAPS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each program sums up TAPS taps of one column of the kernel, for CHANNELS channels, over its share of the chunks.

    A chunk is COLUMNS columns of an image, walked from the top to the bottom. With SLIDE, the step is the dilation, and
    the rows of x that the next row of dz meets are those of this one but for the last.
    """
    strips = tl.cdiv(kernel_h, TAPS)
    column_tiles = tl.cdiv(out_width, COLUMNS)
    c_tiles = tl.cdiv(channels, CHANNELS)
    # Neighbouring programs share their part of x and dz.
    program = tl.program_id(0)
    j = program % kernel_w
    first = program // kernel_w % strips * TAPS
    c = program // kernel_w // strips % c_tiles * CHANNELS + tl.arange(0, CHANNELS)
    split = (program // kernel_w // strips // c_tiles).to(tl.int64)
    inside_c = c < channels

    # In float32 first over a few rows: the longer a plain sum, the larger its error.
    IN_PARTS: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    rows = 16 if IN_PARTS else out_height
    sums = zeros(TAPS, COLUMNS, CHANNELS)
    sum_dz = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for chunk in range(split * chunks_of_split, tl.minimum((split + 1) * chunks_of_split, chunks)):
        image = chunk // column_tiles
        w = (chunk % column_tiles * COLUMNS).to(tl.int32) + tl.arange(0, COLUMNS)
        inside = (w < out_width)[:, None] & inside_c[None, :]
        dz_ptrs = dz_ptr + image * stride_dz_b + offsets(w, c, stride_dz_w, stride_dz_c)
        # Where dz is not inside, neither is x: it may be infinite.
        x_ptrs, inside_x = columns(
            x_ptr + image * stride_x_b, w * step_w - pad_w + j * dilation_w, width, 1, inside, c, stride_x_w, stride_x_c
        )
        n = first * dilation_h - pad_h
        KEPT: tl.constexpr = TAPS - 1 if SLIDE else 0
        window = load_rows((), x_ptrs, n, dilation_h, height, 1, inside_x, stride_x_h, KEPT)
        for start in range(0, out_height, rows):
            near_sums, near_sum_dz = sums, sum_dz
            if IN_PARTS:
                near_sums, near_sum_dz = zeros(TAPS, COLUMNS, CHANNELS), tl.zeros_like(sum_dz)
            for _ in range(tl.minimum(rows, out_height - start)):
                dz = tl.load(dz_ptrs, mask=inside, other=0.0).to(tl.float32)
                window = load_rows(window, x_ptrs, n, dilation_h, height, 1, inside_x, stride_x_h, TAPS)
                near_sums = add_products(near_sums, window, dz, TAPS)
                near_sum_dz += dz
                window = window[TAPS - KEPT :]
                dz_ptrs += stride_dz_h
                n += step_h
            if IN_PARTS:
                near_sums = add_products(sums, near_sums, 1.0, TAPS)
                near_sum_dz += sum_dz
            sums, sum_dz = near_sums, near_sum_dz

    partial_weight_ptr += (split * channels + c) * kernel_h * kernel_w + j
    for t in tl.static_range(TAPS):
        inside_t = only_if(first + t < kernel_h, inside_c)
        tl.store(partial_weight_ptr + (first + t) * kernel_w, tl.sum(sums[t], axis=0), mask=inside_t)
    if (j == 0) & (first == 0):
        tl.store(partial_bias_ptr + split * channels + c, tl.sum(sum_dz, axis=0), mask=inside_c)


@jit
def zeros(COUNT: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return COUNT tiles of zeros, a tuple."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles += (tl.zeros((COLUMNS, CHANNELS), tl.float32),)
    return tiles


@jit
def columns(x_ptr, n, width, zoom_w, inside, c, stride_x_w, stride_x_c):
    """Return pointers to the columns ``n`` of a map with zeros between its pixels, and which are pixels."""
    valid = (n >= 0) & (n % zoom_w == 0) & (n // zoom_w < width)
    return x_ptr + offsets(n // zoom_w, c, stride_x_w, stride_x_c), inside & valid[:, None]


@jit
def offsets(w, c, stride_w, stride_c):
    """Return where the pixels ``w`` of the channels ``c`` lie in a row.  # [w, c]."""
    return w.to(tl.int64)[:, None] * stride_w + c.to(tl.int64)[None, :] * stride_c


@jit
def load_rows(window, x_ptrs, n, step, height, zoom_h, inside, stride_x_h, COUNT: tl.constexpr):
    """Return the first COUNT of the rows ``n``, ``n + step``...; ``window``, a tuple, has the first few of them.

    They are those of a map with zeros between its rows, float32, zero outside.  # [w, c] each.
    """
    for r in tl.static_range(len(window), COUNT):
        row = n + r * step
        valid = (row >= 0) & (row % zoom_h == 0) & (row // zoom_h < height)
        x_row_ptrs = x_ptrs + (row // zoom_h).to(tl.int64) * stride_x_h
        window += (tl.load(x_row_ptrs, mask=only_if(valid, inside), other=0.0).to(tl.float32),)
    return window


@jit
def only_if(valid, inside):
    """Return ``inside`` if ``valid``, a number; the interpreter takes no ``&`` of the two."""
    return tl.where(valid, inside, False)


@jit
def add_products(sums, factors, factor, COUNT: tl.constexpr):
    """Return ``sums`` plus the products of each of ``factors``, a tuple as well, with ``factor``."""
    new = ()
    for i in tl.static_range(COUNT):
        new += (sums[i] + factors[i] * factor,)
    return new


@jit
def load_parts(partial_ptr, part, parts, c, channels):
    """Return counts, means and squared deviations of the parts ``part``.  # [part, c] each."""
    inside = (part < parts)[:, None] & (c < channels)[None, :]
    partial_ptrs = partial_ptr + part.to(tl.int64)[:, None] * 3 * channels + c[None, :]
    counts = tl.load(partial_ptrs, mask=inside, other=0.0)
    means = tl.load(partial_ptrs + channels, mask=inside, other=0.0)
    return counts, means, tl.load(partial_ptrs + 2 * channels, mask=inside, other=0.0)
