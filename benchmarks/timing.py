"""Interleaved timing: rounds in which every contender has a turn, so that a machine's drift meets all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.contest import Call

# A sample repeats short calls until it is long enough for the clock and for a GPU's launch queue.
SAMPLE_SECONDS = 1e-3
MAX_INNER = 64
MIN_ROUNDS, MAX_ROUNDS = 7, 200

# A call this long brings the caches into its own state by itself.
LONG_CALL_SECONDS = 0.05

# How long a GPU sleeps before a sample while calls are queued, and cycles of its clock in a second at most.
LEAD_SECONDS = 5e-4
CYCLES_PER_SECOND = 2e9

# A call this long varies little, and is timed as often as it fits into the group's time, or once.
SLOW_CALL_SECONDS = 1.0


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the quartiles over the rounds.

    On a GPU they are the GPU's own; ``launch`` is how long the program takes to queue a call, the quickest of all.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    inner: int
    launch: float | None = None


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
    first = {name: _estimate(call, clock) for name, call in calls.items()}
    estimates = {name: sample.seconds for name, sample in first.items()}
    slow = {name for name, time_ in estimates.items() if time_ >= SLOW_CALL_SECONDS}
    inner = {name: min(MAX_INNER, max(1, int(SAMPLE_SECONDS / time_))) for name, time_ in estimates.items()}
    warm = {name: time_ < LONG_CALL_SECONDS for name, time_ in estimates.items()}
    turn_seconds = {name: (count + warm[name]) * first[name].total for name, count in inner.items()}
    round_seconds = sum(turn_seconds[name] for name in calls.keys() - slow)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / round_seconds))) if round_seconds else 0
    # The estimate of a slow call is its first turn.
    turns = {name: int(seconds / estimates[name]) - 1 if name in slow else rounds for name in calls}
    samples = {name: [sample] if name in slow else [] for name, sample in first.items()}

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


class _Sample(NamedTuple):
    """Seconds a call: of the device, and until a GPU's call was queued."""

    seconds: float
    launch: float | None = None

    @property
    def total(self) -> float:
        """Seconds that a sample of one call takes."""
        return self.seconds + 2 * (self.launch or 0.0)


_Clock = Callable[[Call, int], _Sample]


def _estimate(call: Call, clock: _Clock) -> _Sample:
    # The quickest of three where that is cheap: a call that others on the machine disturb looks long.
    first = clock(call, 1)
    if first.seconds > LONG_CALL_SECONDS:
        return first
    return min(first, clock(call, 1), clock(call, 1), key=lambda sample: sample.seconds)


def _summarise(samples: list[_Sample], inner: int) -> Timing:
    values = [sample.seconds for sample in samples]
    # Quantiles take two values.
    lower, median, upper = statistics.quantiles(values * 2 if len(values) == 1 else values, n=4, method="inclusive")
    launch = min((sample.launch for sample in samples if sample.launch is not None), default=None)
    return Timing(median, lower, upper, len(values), inner, launch)


def _cpu_sample(call: Call, inner: int) -> _Sample:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return _Sample((time.perf_counter() - start) / inner)


def _cuda_sample(call: Call, inner: int) -> _Sample:
    """Time calls that are all queued before the first of them begins, as behind the work of other layers."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    lead = LEAD_SECONDS
    while True:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.cuda._sleep(int(lead * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(inner):
            call()
        end.record()
        queued = time.perf_counter() - begin
        torch.cuda.synchronize()
        # Once more at most: what waits for the GPU itself is never early.
        if queued < lead or lead > LEAD_SECONDS:
            return _Sample(float(start.elapsed_time(end)) * 1e-3 / inner, queued / inner)
        lead = 2 * queued
