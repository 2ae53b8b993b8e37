"""The kernels: tiles of PIXELS pixels of an image, VECTORS vectors of channels and the VECTOR channels of each.

A shift is a step of a vector's own direction, so one gather takes the pixels of all four groups of a branch.
"""

from __future__ import annotations

from mixer_kernels.ops._triton_jit import jit, tl

# Arguments that are never constants of a compiled kernel, so that one serves every size. Numbers of pixels have the
# type that holds them all.
SIZES = ("images", "height", "width", "pixels", "vectors", "chunks", "chunks_of_split", "splits")


@jit(do_not_specialize=SIZES)
def split_attention_sums_kernel(
    x_ptr, partial_ptr, images, height, width, pixels, vectors, chunks, chunks_of_split, splits,
    stride_x_b, stride_x_h, stride_x_w, stride_x_c,
    PIXELS: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Each program adds up the branches over ``chunks_of_split`` tiles of VECTORS vectors of one image."""
    v, split, image = decode(vectors, splits, VECTORS)
    x_ptr += image * stride_x_b * VECTOR
    total = tl.zeros((PIXELS, VECTORS, VECTOR), tl.float32)
    for chunk in range(split * chunks_of_split, tl.minimum((split + 1) * chunks_of_split, chunks)):
        p = pixels_of(chunk, pixels, PIXELS)
        s1, s2, s3 = load_branches(
            x_ptr, p, v, height, width, pixels, vectors, stride_x_h, stride_x_w, stride_x_c, VECTOR
        )
        total += s1 + s2 + s3
    store_sums(partial_ptr, split.to(tl.int64) * images + image, total, v, vectors, VECTOR)


@jit(do_not_specialize=SIZES)
def split_attention_fwd_kernel(
    x_ptr, weights_ptr, y_ptr, height, width, pixels, vectors, chunks,
    stride_x_b, stride_x_h, stride_x_w, stride_x_c,
    PIXELS: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Each program computes a tile of y: the weighted sum of the branches."""
    v, chunk, image = decode(vectors, chunks, VECTORS)
    w1, w2, w3 = load_weights(weights_ptr, image, v, vectors, VECTOR)
    p = pixels_of(chunk, pixels, PIXELS)
    x_ptr += image * stride_x_b * VECTOR
    s1, s2, s3 = load_branches(x_ptr, p, v, height, width, pixels, vectors, stride_x_h, stride_x_w, stride_x_c, VECTOR)
    store(y_ptr, w1 * s1 + w2 * s2 + w3 * s3, (image * pixels + p) * vectors + v, (p < pixels) & (v < vectors), VECTOR)


@jit(do_not_specialize=SIZES)
def split_attention_bwd_weights_kernel(
    dy_ptr, x_ptr, partial_ptr, images, height, width, pixels, vectors, chunks, chunks_of_split, splits,
    stride_dy_b, stride_dy_h, stride_dy_w, stride_dy_c, stride_x_b, stride_x_h, stride_x_w, stride_x_c,
    PIXELS: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Each program adds up dy times each branch over ``chunks_of_split`` tiles of VECTORS vectors of one image."""
    v, split, image = decode(vectors, splits, VECTORS)
    x_ptr += image * stride_x_b * VECTOR
    dy_ptr += image * stride_dy_b * VECTOR
    total1 = tl.zeros((PIXELS, VECTORS, VECTOR), tl.float32)
    total2 = tl.zeros((PIXELS, VECTORS, VECTOR), tl.float32)
    total3 = tl.zeros((PIXELS, VECTORS, VECTOR), tl.float32)
    for chunk in range(split * chunks_of_split, tl.minimum((split + 1) * chunks_of_split, chunks)):
        p = pixels_of(chunk, pixels, PIXELS)
        offset = offset_of(p, v, width, stride_dy_h, stride_dy_w, stride_dy_c)
        dy = load(dy_ptr, offset, (p < pixels) & (v < vectors), VECTOR)
        s1, s2, s3 = load_branches(
            x_ptr, p, v, height, width, pixels, vectors, stride_x_h, stride_x_w, stride_x_c, VECTOR
        )
        total1 += dy * s1
        total2 += dy * s2
        total3 += dy * s3
    row = (split.to(tl.int64) * images + image) * 3
    store_sums(partial_ptr, row, total1, v, vectors, VECTOR)
    store_sums(partial_ptr, row + 1, total2, v, vectors, VECTOR)
    store_sums(partial_ptr, row + 2, total3, v, vectors, VECTOR)


@jit(do_not_specialize=SIZES)
def split_attention_bwd_features_kernel(
    dy_ptr, weights_ptr, da_ptr, dx_ptr, height, width, pixels, vectors, chunks,
    stride_dy_b, stride_dy_h, stride_dy_w, stride_dy_c,
    PIXELS: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Each program computes a tile of each branch of dx."""
    v, chunk, image = decode(vectors, chunks, VECTORS)
    w1, w2, w3 = load_weights(weights_ptr, image, v, vectors, VECTOR)
    da = load(da_ptr, image * vectors + v, v < vectors, VECTOR)
    p = pixels_of(chunk, pixels, PIXELS)
    inside = (p < pixels) & (v < vectors)
    dy_ptr += image * stride_dy_b * VECTOR
    own = offset_of(p, v, width, stride_dy_h, stride_dy_w, stride_dy_c)
    dy = load(dy_ptr, own, inside, VECTOR)
    group = group_of(v, vectors)
    out = (image * pixels + p) * 3 * vectors + v
    dy1, count1 = gather(dy_ptr, dy, own, inside, group < 2, group, p, height, width, stride_dy_h, stride_dy_w, VECTOR)
    store(dx_ptr, w1 * dy1 + count1 * da, out, inside, VECTOR)
    dy2, count2 = gather(dy_ptr, dy, own, inside, group >= 2, group, p, height, width, stride_dy_h, stride_dy_w, VECTOR)
    store(dx_ptr, w2 * dy2 + count2 * da, out + vectors, inside, VECTOR)
    store(dx_ptr, w3 * dy + da, out + 2 * vectors, inside, VECTOR)


@jit
def decode(vectors, parts, VECTORS: tl.constexpr):
    """Return this program's vectors of channels, part and image."""
    # Neighbouring programs take the vectors of the same pixels: together they read whole rows of memory.
    tiles = tl.cdiv(vectors, VECTORS)
    program = tl.program_id(0)
    v = program % tiles * VECTORS + tl.arange(0, VECTORS)[None, :, None]
    return v, program // tiles % parts, (program // tiles // parts).to(tl.int64)


@jit
def pixels_of(chunk, pixels, PIXELS: tl.constexpr):
    """Return the numbers of a chunk's pixels.  # [PIXELS, 1, 1]."""
    return tl.cast(chunk, pixels.dtype) * PIXELS + tl.arange(0, PIXELS)[:, None, None]


@jit
def offset_of(p, v, width, stride_h, stride_w, stride_c):
    """Return where the vectors ``v`` of the pixels ``p`` of an image are, in vectors."""
    return (p // width).to(tl.int64) * stride_h + (p % width).to(tl.int64) * stride_w + v.to(tl.int64) * stride_c


@jit
def group_of(v, vectors):
    """Return which of four groups the vectors are in; the group i begins at i * vectors / 4, rounded down."""
    second, third, fourth = v >= vectors // 4, v >= vectors * 2 // 4, v >= vectors * 3 // 4
    return second.to(tl.int32) + third.to(tl.int32) + fourth.to(tl.int32)


@jit
def axis(along_h, group, p, height, width, stride_h, stride_w):
    """Return of each pixel and vector the position along its axis, and of each vector the last one and the step back.

    Even groups ("+h", "+w") take what lies before them; for the odd ones, positions count from the other end.
    """
    back = tl.where(along_h, stride_h, stride_w).to(tl.int64)
    last = tl.where(along_h, height, width) - 1
    position = tl.where(along_h, p // width, p % width)
    odd = group % 2 == 1
    return tl.where(odd, last - position, position), last, tl.where(odd, back, -back)


@jit
def load(x_ptr, offset, inside, VECTOR: tl.constexpr):
    """Return vectors, float32, zero outside."""
    element = tl.arange(0, VECTOR)[None, None, :]
    return tl.load(x_ptr + offset * VECTOR + element, mask=inside, other=0.0).to(tl.float32)


@jit
def store(y_ptr, y, offset, inside, VECTOR: tl.constexpr):
    """Write vectors in the dtype of ``y_ptr``."""
    element = tl.arange(0, VECTOR)[None, None, :]
    tl.store(y_ptr + offset * VECTOR + element, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def load_weights(weights_ptr, image, v, vectors, VECTOR: tl.constexpr):
    """Return the weights of the three branches."""
    w1 = load(weights_ptr, image * 3 * vectors + v, v < vectors, VECTOR)
    w2 = load(weights_ptr, (image * 3 + 1) * vectors + v, v < vectors, VECTOR)
    w3 = load(weights_ptr, (image * 3 + 2) * vectors + v, v < vectors, VECTOR)
    return w1, w2, w3


@jit
def load_branches(
    x_ptr, p, v, height, width, pixels, vectors, stride_h, stride_w, stride_c, VECTOR: tl.constexpr
):  # fmt: skip
    """Return the three branches of an image, the first shifted by SHIFT_1 and the second by SHIFT_2."""
    inside = (p < pixels) & (v < vectors)
    group = group_of(v, vectors)
    position1, _, back1 = axis(group < 2, group, p, height, width, stride_h, stride_w)
    position2, _, back2 = axis(group >= 2, group, p, height, width, stride_h, stride_w)
    own1 = offset_of(p, v, width, stride_h, stride_w, stride_c)
    own2 = offset_of(p, v + vectors, width, stride_h, stride_w, stride_c)
    own3 = offset_of(p, v + 2 * vectors, width, stride_h, stride_w, stride_c)
    # The border keeps its own value.
    s1 = load(x_ptr, own1 + tl.where(position1 > 0, back1, 0), inside, VECTOR)
    s2 = load(x_ptr, own2 + tl.where(position2 > 0, back2, 0), inside, VECTOR)
    return s1, s2, load(x_ptr, own3, inside, VECTOR)


@jit
def gather(
    dy_ptr, dy, own, inside, along_h, group, p, height, width, stride_h, stride_w, VECTOR: tl.constexpr
):  # fmt: skip
    """Return the sum of dy over the pixels that took this one, and their number: the one behind, the border itself."""
    position, last, back = axis(along_h, group, p, height, width, stride_h, stride_w)
    taken = position < last
    behind = load(dy_ptr, own - back, inside & taken, VECTOR)
    border = position == 0
    return behind + tl.where(border, dy, 0.0), taken.to(tl.float32) + border.to(tl.float32)


@jit
def store_sums(partial_ptr, row, total, v, vectors, VECTOR: tl.constexpr):
    """Write the sums over a tile's pixels to a row of a workspace."""
    store(partial_ptr, tl.sum(total, axis=0, keep_dims=True), row * vectors + v, v < vectors, VECTOR)
