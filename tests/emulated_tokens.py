"""What the sweeps of the ops over the tokens share: problems in, results out, and how far they may be from float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emulated import ELEMENT_TYPES, run

Tensors = dict[str, torch.Tensor]

# The largest error, as a share of how large the terms of the result are.
TOLERANCE = {"float32": 3e-6, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}


def dtype_of(precision: str) -> torch.dtype:
    return getattr(torch, "float32" if precision == "tf32" else precision)


def is_half(precision: str) -> bool:
    return dtype_of(precision).itemsize == 2


def transposed(rows: int, channels: int) -> tuple[int, int, int]:
    """Strides of a (B, C, rows) tensor seen as (B, rows, C)."""
    return (rows * channels, 1, rows)


class Draw:
    """Random tensors of one dtype."""

    def __init__(self, rng: np.random.Generator, dtype: torch.dtype) -> None:
        self.rng, self.dtype = rng, dtype

    def __call__(
        self, *shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape) * scale + shift).to(dtype or self.dtype)

    def features(self, shape: tuple[int, ...], strides: tuple[int, ...] | None, shift: float = 0.0) -> torch.Tensor:
        """Equal elements where a stride is 0."""
        own = [1 if strides and strides[i] == 0 else extent for i, extent in enumerate(shape)]
        return self(*own, shift=shift).expand(shape).contiguous()


def sweep(
    program: Path,
    folder: Path,
    problems: Sequence[Any],
    names: tuple[str, ...],
    make_tensors: Callable[[Any, Draw], Tensors],
    exact_results: Callable[[Any, Tensors], tuple[Tensors, dict[str, Any]]],
    precision: str,
    seed: int,
) -> None:
    """Run a program on all problems and compare what it writes.

    The arguments are ``names`` and dy, as far as they are there; ``exact_results`` yields the results in the order in
    which the program writes them, and how large the terms of each are, for it may cancel.
    """
    dtype = dtype_of(precision)
    element_type, _ = ELEMENT_TYPES[str(dtype).removeprefix("torch.")]
    draw = Draw(np.random.default_rng(seed), dtype)
    cases = [make_tensors(problem, draw) for problem in problems]
    lines = [problem.line(element_type, precision == "tf32", seed) for problem in problems]
    (folder / "problems").write_text("\n".join(lines) + "\n")
    arguments = [tensors[name] for tensors in cases for name in (*names, "dy") if name in tensors]
    (folder / "input").write_bytes(b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in arguments))
    result = run(program, *(folder / name for name in ("problems", "input", "output")))
    assert result.returncode == 0, result.stderr

    output = torch.frombuffer(bytearray((folder / "output").read_bytes()), dtype=torch.uint8)
    begin = 0
    for problem, tensors in zip(problems, cases, strict=True):
        exact, scales = exact_results(problem, tensors)
        for name, expected in exact.items():
            own = torch.float32 if name in ("mean", "rstd") else dtype if name == "y" else tensors[name[1:]].dtype
            end = begin + expected.numel() * own.itemsize
            actual = output[begin:end].clone().view(own).view(expected.shape).double()
            begin = end
            error, allowed = (actual - expected).abs(), torch.as_tensor(TOLERANCE[precision] * scales[name])
            # Written so that NaN is wrong.
            assert (error <= allowed).all(), (
                f"{name}: {(error / allowed).max():.2f} times the error allowed, in {problem}"
            )
    assert begin == len(output)
