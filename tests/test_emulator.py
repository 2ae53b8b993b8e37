"""The CUDA kernels on the host emulator (tests/emulator), under AddressSanitizer and UBSan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from emulated import ELEMENT_TYPES, run

PLUS_H, MINUS_H, PLUS_W, MINUS_W = range(4)
SHIFT_1 = (PLUS_H, MINUS_H, PLUS_W, MINUS_W)
SHIFT_2 = (PLUS_W, MINUS_W, PLUS_H, MINUS_H)
SEVENTEEN = tuple(i * 7 % 4 for i in range(17))

# --- the emulator itself


SOUND = (
    *("sum", "reverse", "half", "gelu", "tf32", "mma_half", "mma_bfloat16", "mma_tf32"),
    *("ldmatrix", "ldmatrix_transposed", "stmatrix_transposed", "copy", "ring", "narrow_ring"),
)


@pytest.mark.parametrize("case", SOUND)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sound_kernels_pass(programs: dict[str, Path], case: str, seed: int) -> None:
    result = run(programs["self_test"], case, str(seed))
    assert result.returncode == 0, result.stderr


WRONG_RESULT = 2


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("missing_barrier", WRONG_RESULT, ""),
        ("missing_syncwarp", WRONG_RESULT, ""),
        ("uninitialised_shared", WRONG_RESULT, ""),
        ("race_in_place", WRONG_RESULT, ""),
        ("past_global", 1, "heap-buffer-overflow"),
        ("past_dynamic_shared", 1, "heap-buffer-overflow"),
        ("past_static_shared", 1, "out of bounds"),
        ("misaligned", 1, "misaligned address"),
        ("two_barriers", 1, "divergent barrier"),
        ("early_exit", 1, "divergent barrier"),
        ("inactive_lane", 1, "outside its mask"),
        ("much_shared", 1, "more shared memory"),
        ("mma_wrong_row", WRONG_RESULT, ""),
        ("mma_missing_lane", 1, "divergent barrier"),
        ("copy_missing_wait", 1, "copies under way"),
        ("copy_missing_barrier", WRONG_RESULT, ""),
        ("copy_early_reuse", WRONG_RESULT, ""),
        ("copy_unfinished", 1, "copies under way"),
        ("copy_misaligned", 1, "misaligned"),
        ("copy_past_global", 1, "heap-buffer-overflow"),
        ("ring_missing_wait", WRONG_RESULT, ""),
        ("ring_touched_operand", WRONG_RESULT, ""),
        ("ring_early_refill", 1, "phase does not end"),
        ("ring_no_release", 1, "phase does not end"),
        ("ring_wrong_swizzle", WRONG_RESULT, ""),
        ("narrow_ring_wrong_swizzle", WRONG_RESULT, ""),
        ("ring_unfinished", 1, "bulk copies under way"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_bugs_are_caught(programs: dict[str, Path], case: str, code: int, message: str, seed: int) -> None:
    result = run(programs["self_test"], case, str(seed))
    assert result.returncode == code, result.stderr
    assert message in result.stderr


# --- the spatial shift


@dataclass(frozen=True)
class Problem:
    """One call of the kernel; strides of None are dense (B, H, W, C)."""

    shape: tuple[int, int, int, int]
    directions: tuple[int, ...] = SHIFT_1
    strides: tuple[int, int, int, int] | None = None
    out_strides: tuple[int, int, int, int] | None = None
    offset: int = 0
    out_offset: int = 0
    in_place: bool = False

    def line(self, element_type: int, adjoint: bool, seed: int) -> str:
        strides = self.strides or dense(self.shape)
        out_strides = self.out_strides or dense(self.shape)
        words = (element_type, *self.shape, *strides, self.offset, *out_strides, self.out_offset)
        words += (self.in_place, adjoint, seed, len(self.directions), *self.directions)
        return " ".join(str(int(word)) for word in words)


def dense(shape: tuple[int, ...], order: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions lie in memory in that order, outermost first."""
    strides = [0] * len(shape)
    step = 1
    for dimension in reversed(order):
        strides[dimension] = step
        step *= max(shape[dimension], 1)
    return tuple(strides)


NCHW = (0, 3, 1, 2)
BATCH_LAST = (1, 2, 3, 0)


def problems() -> list[Problem]:
    """Every shape in and out of place, and what only one of the two can be."""
    both = [
        Problem((2, 5, 7, 32)),
        Problem((1, 32, 32, 96)),  # a published row length: four batches of a line
        Problem((2, 9, 10, 64), SHIFT_2),
        Problem((1, 17, 18, 30)),  # groups of 7 and 8 channels: vectors of a half type do not fit their bounds
        Problem((2, 6, 5, 13)),
        Problem((2, 6, 5, 97)),
        Problem((1, 8, 8, 136)),  # groups of 34: aligned rows, misaligned groups
        Problem((1, 9, 9, 72)),
        Problem((3, 4, 4, 3)),  # fewer channels than groups
        Problem((2, 4, 4, 1), (MINUS_W,)),
        Problem((1, 40, 41, 1), (PLUS_W,)),  # one channel: the line itself is contiguous
        Problem((1, 1, 9, 40)),
        Problem((1, 9, 1, 40)),
        Problem((2, 1, 1, 24)),
        Problem((1, 2, 2, 16)),
        Problem((1, 2, 300, 8)),
        Problem((1, 300, 2, 8)),
        Problem((0, 4, 4, 8)),
        Problem((2, 0, 4, 8)),
        Problem((2, 4, 4, 0)),
        Problem((1, 6, 6, 64), (PLUS_H,)),
        Problem((1, 6, 6, 64), SEVENTEEN),
        Problem((1, 3, 3, 7), SEVENTEEN),
        Problem((1, 5, 5, 300), SEVENTEEN),
        *(Problem((1, 10, 9, 40), (direction,)) for direction in range(4)),
        # A slice of the first linear's output, (B, H, W, 3C), and slices that misalign.
        Problem((2, 6, 7, 32), strides=(6 * 7 * 96, 7 * 96, 96, 1), offset=32),
        Problem((2, 6, 7, 32), strides=(6 * 7 * 96, 7 * 96, 96, 1), offset=3),
        Problem((2, 6, 7, 64), strides=(6 * 7 * 80, 7 * 80, 80, 1), offset=6),
        Problem((1, 6, 7, 64), strides=(6 * 7 * 65, 7 * 65, 65, 1), offset=1),
        Problem((1, 6, 7, 24), strides=(6 * 7 * 48, 7 * 48, 48, 2), offset=1),  # every other channel
        # NCHW, where W is contiguous: short lines, lines of more than a warp, and of more than a warp's window.
        *(Problem((2, height, width, 6), directions, strides=dense((2, height, width, 6), NCHW),
                  out_strides=dense((2, height, width, 6), NCHW))
          for height, width in ((5, 7), (7, 14), (12, 33), (3, 290))
          for directions in (SHIFT_1, SHIFT_2)),
        Problem((3, 4, 5, 12), strides=dense((3, 4, 5, 12), BATCH_LAST), out_strides=dense((3, 4, 5, 12), BATCH_LAST)),
    ]  # fmt: skip
    only_out_of_place = [
        Problem((2, 6, 7, 32), offset=1),  # input and output lie differently within 16 bytes
        Problem((2, 6, 7, 32), out_offset=2),
        Problem((2, 6, 7, 32), offset=5, out_offset=5),
        Problem((2, 6, 7, 32), strides=dense((2, 6, 7, 32), NCHW)),
        Problem((2, 6, 7, 32), out_strides=dense((2, 6, 7, 32), NCHW)),
        Problem((2, 6, 7, 32), out_strides=(6 * 7 * 40, 7 * 40, 40, 1)),
        # Offsets beyond 32 bits.
        Problem((2, 5, 6, 16), strides=(5 << 29, 6 * 16, 16, 1)),
        Problem((1, 3, 4, 16), strides=(0, 1 << 31, 16, 1), out_strides=(0, 16, 3 << 30, 1)),
    ]
    return both + [replace(problem, in_place=True, out_strides=None) for problem in both] + only_out_of_place


def bfloat16_to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum in float32 (float64 for float64), rounded once."""
    with np.errstate(over="ignore", invalid="ignore"):
        if a.dtype == np.uint16:
            return float_to_bfloat16(bfloat16_to_float(a) + bfloat16_to_float(b))
        acc = np.float64 if a.dtype == np.float64 else np.float32
        return (a.astype(acc) + b.astype(acc)).astype(a.dtype)


def shift(x: np.ndarray, directions: tuple[int, ...], adjoint: bool) -> np.ndarray:
    """The definition, a channel at a time."""
    y = np.zeros_like(x) if adjoint else x.copy()
    channels, groups = x.shape[3], len(directions)
    for group, direction in enumerate(directions):
        for channel in range(group * channels // groups, (group + 1) * channels // groups):
            axis = 1 if direction in (PLUS_H, MINUS_H) else 2
            lines, moved = (np.moveaxis(array[..., channel], axis, 0) for array in (x, y))
            if direction in (MINUS_H, MINUS_W):
                lines, moved = lines[::-1], moved[::-1]
            if not adjoint:
                moved[1:] = lines[:-1]
            elif len(lines) > 1:
                moved[:-1] = lines[1:]
                moved[0] = add(lines[0], lines[1])
            else:
                moved[:] = lines
    return y


def random_elements(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Numbers of all sizes, subnormal and infinite ones among them."""
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-30, 18, shape)
    values[rng.random(shape) < 0.02] = np.inf
    with np.errstate(over="ignore"):
        return float_to_bfloat16(values.astype(np.float32)) if dtype is np.uint16 else values.astype(dtype)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, except that a NaN is a NaN."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    a_nan, b_nan = (np.isnan(bfloat16_to_float(v) if v.dtype == np.uint16 else v) for v in (a, b))
    return bool(((a.view(bits) == b.view(bits)) | (a_nan & b_nan)).all())


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_spatial_shift(programs: dict[str, Path], tmp_path: Path, dtype: str, adjoint: bool, seed: int) -> None:
    element_type, numpy_dtype = ELEMENT_TYPES[dtype]
    rng = np.random.default_rng(seed)
    cases = problems()
    inputs = [random_elements(rng, problem.shape, numpy_dtype) for problem in cases]
    lines = [problem.line(element_type, adjoint, seed) for problem in cases]
    (tmp_path / "problems").write_text("\n".join(lines) + "\n")
    (tmp_path / "input").write_bytes(b"".join(x.tobytes() for x in inputs))
    result = run(programs["spatial_shift_emulated"], *(tmp_path / name for name in ("problems", "input", "output")))
    assert result.returncode == 0, result.stderr

    output = np.frombuffer((tmp_path / "output").read_bytes(), numpy_dtype)
    assert output.size == sum(x.size for x in inputs)
    begin = 0
    for problem, x in zip(cases, inputs, strict=True):
        y = output[begin : begin + x.size].reshape(x.shape)
        begin += x.size
        assert same(y, shift(x, problem.directions, adjoint)), problem
