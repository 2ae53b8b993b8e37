"""Products over tokens, ``weight @ x[b]`` with channels side by side in memory, and what goes with them.

Where tokens are rows of the result, products are computed transposed: channels, of which there are many, lie on the
side of the matrix instruction that comes in steps of 64, tokens on the side that comes in steps of 8. There they are
cut into strips, whose widths are powers of two, so that 196 tokens cost 128 + 64 + 16 = 208 and not 256. Weights come
padded with zeros to whole tiles: their rows start on 16 bytes, and loads need no masks.
"""

from __future__ import annotations

from mixer_kernels.ops._triton_activation import activate
from mixer_kernels.ops._triton_jit import jit, tl

# Arguments that are never constants of a compiled kernel, so that one serves every size. The number of channels is not
# among them: whether it is a multiple of 16 decides how wide accesses are.
SIZES = ("images", "tokens", "hidden", "rows", "depth", "chunks", "chunks_of_split", "parts")

# What one program adds up at a time.
SUM_ROWS, SUM_COLUMNS = 64, 64


@jit
def pad_weights(program, weights, padded, heights, widths, padded_sizes, padded_widths, BLOCK: tl.constexpr):
    """Copy this program's share of the weights, a tuple, into their zero-padded forms."""
    for i in tl.static_range(len(weights)):
        programs = tl.cdiv(padded_sizes[i], BLOCK)
        if (program >= 0) & (program < programs):
            element = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            row = element // padded_widths[i]
            column = element % padded_widths[i]
            inside = (row < heights[i]) & (column < widths[i])
            values = tl.load(weights[i] + row * widths[i] + column, mask=inside, other=0.0)
            tl.store(padded[i] + element, values, mask=element < padded_sizes[i])
        program -= programs


@jit
def load_affine(scale_ptr, shift_ptr, c, channels):
    """Return scale and shift of the channels ``c``, float32; ones and zeros where a parameter is absent."""
    scale = tl.full(c.shape, 1.0, tl.float32)
    shift = tl.full(c.shape, 0.0, tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    return scale, shift


@jit
def load_rows(x_ptr, r, rows, stride_x_r, c, channels):
    """Return the rows ``r`` of one image, zero outside.  # [r, c]."""
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    return tl.load(x_ptr + r.to(tl.int64)[:, None] * stride_x_r + c[None, :], mask=inside, other=0.0)


@jit
def zeros(WIDE: tl.constexpr, STRIPS: tl.constexpr):
    """Return an accumulator, a tuple of tiles.  # [WIDE, strip] each."""
    sums = ()
    for i in tl.static_range(len(STRIPS)):
        sums += (_zero_strip(WIDE, STRIPS[i]),)
    return sums


@jit
def _zero_strip(WIDE: tl.constexpr, STRIP: tl.constexpr):
    return tl.zeros((WIDE, STRIP), tl.float32)


@jit
def add_dot(a, b, sums, PRECISION: tl.constexpr):
    """Return ``sums`` plus the product of ``a`` and ``b``."""
    if (a.dtype == tl.float32) & (PRECISION == "ieee"):
        # This product first, then the sums: the longer a plain sum, the larger its error. The limit, which means
        # nothing in float32, keeps the compiler from making it one long sum again.
        sums += tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=16)
    else:
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums


@jit
def add_product(
    sums, a, weight_ptr, row, k, stride_weight_r, stride_weight_k, STRIPS: tl.constexpr, PRECISION: tl.constexpr
):
    """Return ``sums`` plus the product of ``a`` [WIDE, k] with the transposed strips of the weight from ``row`` on.

    Offsets are computed in the types of ``row`` and ``k``.
    """
    new = ()
    for i in tl.static_range(len(STRIPS)):
        r = row + tl.arange(0, STRIPS[i])
        weight = tl.load(weight_ptr + r[:, None] * stride_weight_r + k[None, :] * stride_weight_k)
        new += (add_dot(a, weight.trans(), sums[i], PRECISION),)
        row += STRIPS[i]
    return new


@jit
def product(
    x_ptr, depth, stride_x_k, c, channels, weight_ptr, row, stride_weight_r, stride_weight_k,
    PRECISION: tl.constexpr, STRIPS: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Return the rows from ``row`` on of weight @ x, for the channels ``c`` of one image, in transposed strips."""
    sums = zeros(WIDE, STRIPS)
    for start in range(0, depth, DEPTH):
        k = start + tl.arange(0, DEPTH).to(tl.int64)
        x = load_rows(x_ptr, k, depth, stride_x_k, c, channels)
        sums = add_product(sums, x.trans(), weight_ptr, row, k, stride_weight_r, stride_weight_k, STRIPS, PRECISION)
    return sums


@jit(do_not_specialize=SIZES)
def token_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    rows,
    depth,
    channels,
    stride_x_b,
    stride_x_k,
    stride_weight_r,
    stride_weight_k,
    stride_residual_b,
    stride_residual_r,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    STRIPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Each program computes ROWS rows of WIDE channels of one image: residual + activation(weight @ x + bias)."""
    # Neighbouring programs share their part of x.
    row_tiles = tl.cdiv(rows, ROWS)
    c_tiles = tl.cdiv(channels, WIDE)
    program = tl.program_id(0)
    row = (program % row_tiles).to(tl.int64) * ROWS
    c = program // row_tiles % c_tiles * WIDE + tl.arange(0, WIDE)
    image = (program // row_tiles // c_tiles).to(tl.int64)

    x_ptr += image * stride_x_b
    sums = product(
        x_ptr, depth, stride_x_k, c, channels, weight_ptr, row, stride_weight_r, stride_weight_k,
        PRECISION, STRIPS, WIDE, DEPTH,
    )  # fmt: skip

    y_ptr += image * rows * channels
    for i in tl.static_range(len(STRIPS)):
        r = row + tl.arange(0, STRIPS[i])
        y = sums[i].trans()  # [strip, WIDE]
        if bias_ptr is not None:
            y += tl.load(bias_ptr + r, mask=r < rows, other=0.0).to(tl.float32)[:, None]
        y = activate(y, ACTIVATION, y_ptr.dtype.element_ty)
        if residual_ptr is not None:
            y += load_rows(residual_ptr + image * stride_residual_b, r, rows, stride_residual_r, c, channels)
        store_rows(y_ptr, y, r, rows, c, channels)
        row += STRIPS[i]


@jit
def store_rows(y_ptr, y, r, rows, c, channels):
    """Write the rows ``r`` of one image, contiguous, in the dtype of ``y_ptr``."""
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + r.to(tl.int64)[:, None] * channels + c[None, :], y, mask=inside)


@jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    scale_ptr,
    shift_ptr,
    unit_ptr,
    partial_ptr,
    hidden,
    tokens,
    channels,
    chunks,
    chunks_of_split,
    stride_dy_b,
    stride_dy_d,
    stride_x_b,
    stride_x_s,
    stride_partial_d,
    stride_partial_s,
    PRECISION: tl.constexpr,
    STRIPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Each program sums dy @ x.T over a part of the batch, for WIDE rows of dy and ROWS of x.

    A part is a run of ``chunks_of_split`` chunks, each DEPTH channels of an image. With a unit, by which the sums are
    multiplied, x is scaled and shifted on its way into the product.
    """
    d_tiles = tl.cdiv(hidden, WIDE)
    s_tiles = tl.cdiv(tokens, ROWS)
    program = tl.program_id(0)
    d = program % d_tiles * WIDE + tl.arange(0, WIDE)
    row = program // d_tiles % s_tiles * ROWS
    split = program // d_tiles // s_tiles

    c_tiles = tl.cdiv(channels, DEPTH)
    sums = zeros(WIDE, STRIPS)
    first = split * chunks_of_split
    for chunk in range(first, tl.minimum(first + chunks_of_split, chunks)):
        image = tl.cast(chunk // c_tiles, tl.int64)
        c = chunk % c_tiles * DEPTH + tl.arange(0, DEPTH)
        dy = load_rows(dy_ptr + image * stride_dy_b, d, hidden, stride_dy_d, c, channels)  # [WIDE, DEPTH]
        scale, shift = load_affine(scale_ptr, shift_ptr, c, channels)
        new = ()
        start = row
        for i in tl.static_range(len(STRIPS)):
            s = start + tl.arange(0, STRIPS[i])
            x = load_rows(x_ptr + image * stride_x_b, s, tokens, stride_x_s, c, channels)
            if unit_ptr is not None:
                x = (x.to(tl.float32) * scale[None, :] + shift[None, :]).to(x.dtype)
            new += (add_dot(dy, x.trans(), sums[i], PRECISION),)
            start += STRIPS[i]
        sums = new

    unit = 1.0
    if unit_ptr is not None:
        unit = tl.load(unit_ptr)
    partial_ptr += split.to(tl.int64) * hidden * tokens
    for i in tl.static_range(len(STRIPS)):
        s = row + tl.arange(0, STRIPS[i])
        offsets = d.to(tl.int64)[:, None] * stride_partial_d + s.to(tl.int64)[None, :] * stride_partial_s
        tl.store(partial_ptr + offsets, sums[i] * unit, mask=(d < hidden)[:, None] & (s < tokens)[None, :])
        row += STRIPS[i]


@jit
def sum_rows(partial_ptr, count, stride, column, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sums of ``count`` rows of a workspace, ROWS at a time and always in the same order."""
    # In float64, for the rows are large sums; the kernel waits for memory anyway.
    total = tl.zeros((COLUMNS,), tl.float64)
    for start in range(0, count, ROWS):
        r = start + tl.arange(0, ROWS)
        inside = (r < count)[:, None] & (column < width)[None, :]
        offsets = r.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.sum(tl.load(partial_ptr + offsets, mask=inside, other=0.0).to(tl.float64), axis=0)
    return total.to(tl.float32)


@jit
def sum_kernel(partials, totals, counts, widths, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each program adds up COLUMNS columns of one of the workspaces, a tuple, always in the same order."""
    program = tl.program_id(0)
    for i in tl.static_range(len(partials)):
        programs = tl.cdiv(widths[i], COLUMNS)
        if (program >= 0) & (program < programs):
            column = program.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
            total = sum_rows(partials[i], counts[i], widths[i], column, widths[i], ROWS, COLUMNS)
            tl.store(totals[i] + column, total.to(totals[i].dtype.element_ty), mask=column < widths[i])
        program -= programs
