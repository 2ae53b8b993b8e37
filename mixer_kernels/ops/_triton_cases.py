"""Launches noted instead of run: the configurations that are compiled on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from mixer_kernels.ops._triton_launch import Launch
from mixer_kernels.ops._triton_linear import SIZES

# A dtype, and how products of it may be computed where it is float32.
BFLOAT16, FLOAT16 = (torch.bfloat16, "ieee"), (torch.float16, "ieee")
FLOAT32, TF32 = (torch.float32, "ieee"), (torch.float32, "tf32")

# The name of its inputs, their precision, and what launches an op's kernels on them.
Call = tuple[str, str, Callable[[Launch], None]]
# A name, the kernel, the arguments of a launch (tensors without memory), and what the machine code must hold.
Case = tuple[str, Any, dict[str, Any], set[str]]


def compile_cases(calls: Iterable[Call], sizes: Sequence[str] = SIZES) -> Iterator[Case]:
    """Yield what the calls launch, once for each way to compile it; ``sizes`` are arguments that change nothing."""
    seen = set()
    for name, precision, call in calls:
        for kernel, arguments in _launches(call, precision):
            relevant = [value for key, value in arguments.items() if key not in sizes]
            key = kernel, str([_specialisation(value) for value in relevant])
            if key in seen:
                continue
            seen.add(key)
            arithmetic = arguments.get("PRECISION")
            matrix = arithmetic == "tf32" or (arithmetic and _dtype(arguments) != torch.float32)
            full_name = f"{kernel.fn.__name__} {len(seen)}, {name}" + ", tf32" * (precision == "tf32")
            yield full_name, kernel, arguments, {"matrix"} if matrix else set()


def _launches(call: Callable[[Launch], None], precision: str) -> list[tuple[Any, dict[str, Any]]]:
    launches: list[tuple[Any, dict[str, Any]]] = []
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        call(lambda kernel, programs, arguments: launches.append((kernel, arguments)))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    return launches


def _dtype(arguments: dict[str, Any]) -> torch.dtype:
    """Return the dtype of the first input."""
    return next(value.dtype for value in arguments.values() if isinstance(value, torch.Tensor))


def _specialisation(value: Any) -> Any:
    """Return what of an argument a compiled kernel depends on."""
    if isinstance(value, tuple):
        return len(value)
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, int):
        return value == 1, value % 16 == 0
    return type(value) if isinstance(value, float) else value
