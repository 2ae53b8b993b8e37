"""The suites under pytest-benchmark: `pytest benchmarks --benchmark-enable [--preset full]`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import machine, memory, race, shapes, timing
from benchmarks.contest import CEILING, Arena, Contender, Group
from benchmarks.gate import Gate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Of a round, and of all rounds of a contender.
SAMPLE_SECONDS, BUDGET_SECONDS = 5e-3, 2.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--preset", choices=shapes.PRESETS, default=shapes.QUICK, help="which shapes to measure")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def synchronised_clock() -> float:
    """Read the clock when the GPU has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one benchmark of every contender in every group of a suite."""
    if "entry" in metafunc.fixturenames:
        entries = [
            pytest.param((group, contender), id=f"{group.name} {contender.name}".replace(" ", "-"))
            for group in metafunc.module.groups(DEVICE, metafunc.config.getoption("preset"))
            for contender in group.contenders
        ]
        metafunc.parametrize("entry", entries)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=synchronised_clock))


@pytest.fixture
def measure_entry(benchmark: Any, entry: tuple[Group, Contender]) -> Callable[[], None]:
    """Return what holds one contender to the reference and then times it."""
    group, contender = entry

    # pytest-benchmark notes the group when the timing starts.
    benchmark.group = group.name

    def run() -> None:
        arena, gate, copy = _prepare(group)
        call = arena.bind(contender)
        losses = gate.check(contender, call)
        arena.refresh()
        with group.mode():
            peak = memory.peak_bytes(call, DEVICE)
            estimate = timing.measure({"": call}, DEVICE, seconds=0)[""].median
            iterations = min(timing.MAX_INNER, max(1, int(SAMPLE_SECONDS / estimate)))
            rounds = max(timing.MIN_ROUNDS, min(timing.MAX_ROUNDS, int(BUDGET_SECONDS / (iterations * estimate))))
            arena.refresh()
            benchmark.pedantic(call, rounds=rounds, iterations=iterations, warmup_rounds=1)
        benchmark.extra_info |= race.describe(group) | _machine()
        benchmark.extra_info |= {"role": contender.role, "peak_bytes": peak, "losses": losses}
        # With --benchmark-disable there is no time, only the check.
        if benchmark.stats is not None:
            stats = benchmark.stats.stats
            rate = race.rates(group, timing.Timing(stats.median, stats.q1, stats.q3, rounds, iterations))
            percent = race.percent_of_ceiling(group, rate, copy, _ceilings(group.dtype))
            benchmark.extra_info |= rate | {"percent_of_ceiling": percent, "ceilings": asdict(_ceilings(group.dtype))}

    return run


# Contenders of one group follow each other; only the newest group's inputs are kept.
@functools.lru_cache(maxsize=1)
def _prepare(group: Group) -> tuple[Arena, Gate, dict[str, Any] | None]:
    arena = Arena(group)
    gate = Gate(arena)
    copies = [contender for contender in group.contenders if contender.role == CEILING]
    with group.mode():
        times = [
            timing.measure({"": arena.bind(contender)}, DEVICE, SAMPLE_SECONDS, arena.refresh)[""]
            for contender in copies
        ]
    return arena, gate, race.fastest_copy([race.rates(group, result) for result in times])


@functools.cache
def _machine() -> dict[str, Any]:
    return machine.describe(DEVICE)


@functools.cache
def _ceilings(dtype: torch.dtype) -> machine.Ceilings:
    return machine.measure_ceilings(DEVICE, [dtype])
