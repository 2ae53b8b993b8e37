"""Correctness before speed: a contender whose result is wrong is not timed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.contest import CEILING, PYTORCH, Arena, Call, Contender, tensors

# As in tests/tolerances.py, an error may be a small multiple of what eager PyTorch makes in the same dtype. That holds
# for the root of the mean square; the largest error, in which a single wrong element shows, varies more and may be
# MAX_ROOM times that. In a model, every layer's order of summation differs between eager and compiled code.
FACTOR = {"op": 2.0, "model": 8.0}
MAX_ROOM = 2.0

# What else PyTorch has is there to be taken, also where it loses more digits than eager: it may lose so many times as
# much as one of ours, and is timed. So may ours where PyTorch compiled what lies around them.
BASELINE_ROOM = 16.0


class WrongResultError(Exception):
    """A contender's result is not that of the reference."""


class Gate:
    """Holds the contenders of one group to the float64 result of the reference."""

    def __init__(self, arena: Arena) -> None:
        group = arena.group
        self._arena = arena
        self._exact = [value.detach().clone() for value in tensors(group.exact(*arena.inputs[0]))]
        eager = next(contender for contender in group.contenders if contender.name == "eager")
        self._allowed = [
            self._limits(exact, errors)
            for exact, errors in zip(self._exact, self._errors(self._run(eager)), strict=True)
        ]

    def check(self, contender: Contender, call: Call | None = None) -> str:
        """Run a contender once on the first inputs.

        Args:
            contender: the one to hold to the reference.
            call: its call, if it is bound already; it stands at the first inputs.

        Returns:
            Where a contender loses more digits than one of ours may by itself, by how much; else an empty string.

        Raises:
            WrongResultError: the result differs by more than rounding explains.
        """
        if contender.role == CEILING:
            return ""
        result = self._run(contender, call)
        room = BASELINE_ROOM if contender.role == PYTORCH or contender.compiled else 1.0
        losses = ""
        for index, ((rms, largest), (allowed_rms, allowed_largest)) in enumerate(
            zip(self._errors(result), self._allowed, strict=True)
        ):
            error = f"error {rms:.2e} (rms), {largest:.2e} (largest); allowed {allowed_rms:.2e}, {allowed_largest:.2e}"
            # Written so that NaN is wrong.
            if not (rms <= room * allowed_rms and largest <= room * allowed_largest):
                raise WrongResultError(f"{self._arena.group.name}: {contender.name}: result {index} is wrong: {error}")
            if rms > allowed_rms or largest > allowed_largest:
                losses = losses or f"result {index}: {error}"
        return losses

    def _limits(self, exact: torch.Tensor, eager: tuple[float, float]) -> tuple[float, float]:
        # An operation that only copies has no error in eager mode; one rounding of the result is always allowed.
        eps, factor = torch.finfo(self._arena.group.dtype).eps, FACTOR[self._arena.group.kind]
        rms, largest = _size(exact)
        return max(factor * eager[0], eps * rms), MAX_ROOM * max(factor * eager[1], eps * largest)

    def _run(self, contender: Contender, call: Call | None = None) -> Any:
        self._arena.refresh()
        with self._arena.group.mode():
            return (call or contender.prepare(*self._arena.inputs[0]))()

    def _errors(self, result: Any) -> list[tuple[float, float]]:
        actual = list(tensors(result))
        shapes = [tuple(value.shape) for value in actual]
        if shapes != [tuple(value.shape) for value in self._exact]:
            raise WrongResultError(f"{self._arena.group.name}: the result has the wrong shape, {shapes}")
        return [_size(value.detach().double() - exact) for value, exact in zip(actual, self._exact, strict=True)]


def _size(value: torch.Tensor) -> tuple[float, float]:
    """Return the root of the mean square and the largest magnitude."""
    return value.square().mean().sqrt().item(), value.abs().max().item()


def in_float64(inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the inputs in float64, requiring grad where they did."""
    return [value.detach().double().requires_grad_(value.requires_grad) for value in inputs]
