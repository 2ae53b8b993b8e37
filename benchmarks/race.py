"""Runs a group: correctness, then memory, then time; the record that JSON files hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import memory, timing
from benchmarks.contest import CEILING, OURS, PYTORCH, Arena, Call, Contender, Group
from benchmarks.gate import Gate, WrongResultError
from benchmarks.machine import Ceilings

OK, LESS_ACCURATE, WRONG, FAILED = "ok", "less accurate", "wrong", "failed"


def run(
    group: Group, seconds: float, ceilings: Ceilings, notify: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure a group.

    A contender whose result is wrong, or that raises, is not timed; if it is one of ours, nothing of the group is. What
    loses digits in PyTorch's code is timed, and its record says so.

    Args:
        group: what to measure.
        seconds: about how long the timing may take.
        ceilings: the machine's rates, measured in this run.
        notify: takes what is happening, for a progress bar.

    Returns:
        What a result file holds of a group.
    """
    arena = Arena(group)
    notify("float64 reference")
    gate = Gate(arena)
    calls: dict[str, Call] = {}
    records = []
    for contender in group.contenders:
        notify(f"{contender.name}: checking")
        record: dict[str, Any] = {"name": contender.name, "role": contender.role}
        call, record["status"], reason = _admit(contender, arena, gate)
        if reason:
            record["reason"] = reason
        if call is not None:
            calls[contender.name] = call
            with group.mode():
                record["peak_bytes"] = memory.peak_bytes(call, group.device)
        records.append(record)

    if is_right({"contenders": records}):
        notify("timing")
        with group.mode():
            timings = timing.measure(calls, group.device, seconds, arena.refresh)
        for record in records:
            if record["name"] in timings:
                record |= rates(group, timings[record["name"]])
        _add_percent(group, records, ceilings)
    return {**describe(group), "contenders": records, **_summary(records)}


def describe(group: Group) -> dict[str, Any]:
    """Return what a group is."""
    return {
        "subject": group.subject,
        "kind": group.kind,
        "shape": list(group.shape),
        "dtype": group.dtype_name,
        "pass": group.which,
        "bytes": group.moved,
        "bytes_formula": group.moved_formula,
        "flops": group.flops,
    }


def is_right(record: dict[str, Any]) -> bool:
    """Return whether nothing of ours in a group's record is wrong."""
    return not any(
        contender["role"] == OURS and contender["status"] in (WRONG, FAILED) for contender in record["contenders"]
    )


def rates(group: Group, result: timing.Timing) -> dict[str, Any]:
    """Return a timing in the units of the tables."""
    found: dict[str, Any] = {
        "median_ms": result.median * 1e3,
        "quartiles_ms": [result.lower_quartile * 1e3, result.upper_quartile * 1e3],
        "rounds": result.rounds,
        "inner": result.inner,
    }
    if result.launch is not None:
        found["launch_ms"] = result.launch * 1e3
    if group.moved is not None:
        found["gbps"] = group.moved / result.median * 1e-9
    if group.flops is not None:
        found["tflops"] = group.flops / result.median * 1e-12
    if group.kind == "model":
        found["images_per_second"] = group.shape[0] / result.median
    return found


def percent_of_ceiling(group: Group, rate: dict[str, Any], copy: dict[str, Any] | None, ceilings: Ceilings) -> float:
    """Return a rate in percent: of the fastest copy of as many bytes if the group has one, else of the matmul rate."""
    if copy is not None:
        return float(100 * rate["gbps"] / copy["gbps"])
    return float(100 * rate["tflops"] / ceilings.matmul_tflops[group.dtype_name])


def fastest_copy(rates_of_copies: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the ceiling out of a group's copies: each of them meets something else than memory now and then."""
    return max(rates_of_copies, key=lambda rate: rate["gbps"], default=None)


def _admit(contender: Contender, arena: Arena, gate: Gate) -> tuple[Call | None, str, str]:
    try:
        call = arena.bind(contender)
        if contender.role == CEILING:
            with arena.group.mode():
                call()
        losses = gate.check(contender, call)
    except WrongResultError as error:
        return None, WRONG, str(error)
    except Exception as error:
        # One of ours that raises fails the run; a baseline may need what this machine lacks, such as a compiler.
        first_line, _, _ = str(error).strip().partition("\n")
        return None, FAILED, f"{type(error).__name__}: {first_line}"
    return call, LESS_ACCURATE if losses else OK, losses


def _add_percent(group: Group, records: list[dict[str, Any]], ceilings: Ceilings) -> None:
    copy = fastest_copy([record for record in records if record["role"] == CEILING and "gbps" in record])
    for record in records:
        if "median_ms" in record:
            record["percent_of_ceiling"] = percent_of_ceiling(group, record, copy, ceilings)


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    fastest = {
        role: min(
            (record for record in records if record["role"] == role and "median_ms" in record),
            key=lambda record: record["median_ms"],
            default=None,
        )
        for role in (OURS, PYTORCH)
    }
    ours, best = fastest[OURS], fastest[PYTORCH]
    return {
        "ours": ours and ours["name"],
        "best_pytorch": best and best["name"],
        "speedup": best["median_ms"] / ours["median_ms"] if ours and best else None,
    }
