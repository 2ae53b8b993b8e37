"""Interleaved timing: rounds in which every contender has a turn, so that a machine's drift meets all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.contest import Call

# A sample repeats short calls until it is long enough for the clock and for a GPU's launch queue.
SAMPLE_SECONDS = 1e-3
MAX_INNER = 64
MIN_ROUNDS, MAX_ROUNDS = 7, 200

# A call this long brings the caches into its own state by itself.
LONG_CALL_SECONDS = 0.05

# A call this long varies little, and is timed as often as it fits into the group's time, or once.
SLOW_CALL_SECONDS = 1.0


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the quartiles over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    inner: int


def measure(
    calls: Mapping[str, Call], device: torch.device, seconds: float, refresh: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time calls in rounds, in a new order every round.

    Args:
        calls: name -> call; every call has run before, so that nothing is compiled here.
        device: where they run; on a GPU its own clock is read.
        seconds: about how long this may take; a minimum of rounds runs in any case, but of slow calls.
        refresh: runs before every sample, untimed.
    """
    clock = _cuda_sample if device.type == "cuda" else _cpu_sample
    estimates = {name: _estimate(call, clock) for name, call in calls.items()}
    slow = {name for name, time_ in estimates.items() if time_ >= SLOW_CALL_SECONDS}
    inner = {name: min(MAX_INNER, max(1, int(SAMPLE_SECONDS / time_))) for name, time_ in estimates.items()}
    warm = {name: time_ < LONG_CALL_SECONDS for name, time_ in estimates.items()}
    round_seconds = sum((inner[name] + warm[name]) * estimates[name] for name in calls.keys() - slow)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / round_seconds))) if round_seconds else 0
    # The estimate of a slow call is its first turn.
    turns = {name: int(seconds / estimates[name]) - 1 if name in slow else rounds for name in calls}
    samples = {name: [estimates[name]] if name in slow else [] for name in calls}

    shuffle = random.Random(0).shuffle
    for turn in range(max(turns.values())):
        order = [name for name in calls if turn < turns[name]]
        shuffle(order)
        for name in order:
            refresh()
            if warm[name]:
                # What the contender before left in the caches is not this one's condition.
                calls[name]()
            samples[name].append(clock(calls[name], inner[name]))
    return {name: _summarise(values, inner[name]) for name, values in samples.items()}


def _estimate(call: Call, clock: Callable[[Call, int], float]) -> float:
    # The quickest of three where that is cheap: a call that others on the machine disturb looks long.
    first = clock(call, 1)
    return first if first > LONG_CALL_SECONDS else min(first, clock(call, 1), clock(call, 1))


def _summarise(values: list[float], inner: int) -> Timing:
    # Quantiles take two values.
    lower, median, upper = statistics.quantiles(values * 2 if len(values) == 1 else values, n=4, method="inclusive")
    return Timing(median, lower, upper, len(values), inner)


def _cpu_sample(call: Call, inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def _cuda_sample(call: Call, inner: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(inner):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / inner
