"""The main job: mixer_kernels against the best of PyTorch on the device that is there."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    bench_affine_token_linear,
    bench_depthwise_conv2d,
    bench_models,
    bench_spatial_shift,
    bench_split_attention,
    bench_token_mixing,
    machine,
    picture,
    race,
    result_files,
    shapes,
    table,
)
from benchmarks.contest import Group, kernels
from mixer_kernels.ops._registry import load_ops

SUITES = (
    bench_spatial_shift,
    bench_split_attention,
    bench_token_mixing,
    bench_affine_token_linear,
    bench_depthwise_conv2d,
    bench_models,
)

# Seconds of timing a group.
SECONDS = {shapes.QUICK: {"op": 1.0, "model": 6.0}, shapes.FULL: {"op": 3.0, "model": 30.0}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a result of ours is wrong or there is nothing of ours to run, else 0."""
    options = _parse(arguments)
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    groups = [
        group
        for suite in SUITES
        for group in suite.groups(device, options.preset)
        if re.search(options.only, group.name)
    ]
    unavailable = _unavailable(device)
    # Without kernels, a model of ours is its reference.
    if not any(kernels(module, device) for module in load_ops().values()):
        print(f"bench: no kernel of mixer_kernels runs on {device}: {unavailable}", file=sys.stderr)
        return 1
    if not groups:
        print(f"bench: nothing on {device} matches --only {options.only!r}", file=sys.stderr)
        return 1

    started = time.monotonic()
    described = machine.describe(device)
    print(picture.caption(described))
    if machine.is_busy(described["load_average"]):
        print(f"other programs are running (load average {described['load_average']:.1f}): expect noise")
    record = {
        "schema": result_files.SCHEMA,
        "preset": options.preset,
        **described,
        "conditions": result_files.CONDITIONS,
        "unavailable": unavailable,
    }
    for found in _measure(groups, device, options):
        # After every group, so that nothing is lost to a machine that goes away.
        path = result_files.save(record | found, options.out)
    record |= found
    print(f"\n{table.as_text(found['groups'])}\n")
    if options.details:
        print(f"{table.details(found['groups'])}\n")
    for line in table.complaints(found["groups"]):
        print(line)
    print(f"saved in {path.parent}: {path.name}{_draw(record, path.with_suffix('.png'))}; ", end="")
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(not race.is_right(group) for group in found["groups"]))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mixer_kernels bench", description=__doc__)
    parser.add_argument("--preset", choices=shapes.PRESETS, default=shapes.QUICK)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; by default PyTorch's own choice")
    parser.add_argument("--only", default="", metavar="REGEX", help="only groups such as 'spatial_shift .* bfloat16'")
    parser.add_argument("--details", action="store_true", help="print every contender's time and peak memory, too")
    parser.add_argument(
        "--out", type=Path, default=result_files.LOCAL, help="folder for <device>/<preset>.json and .png"
    )
    parser.add_argument(
        "--publish",
        dest="out",
        action="store_const",
        const=result_files.ROOT,
        help="save where README.md's tables come from",
    )
    return parser.parse_args(arguments)


def _measure(groups: Sequence[Group], device: torch.device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the ceilings and the records so far, before the first group and after each."""
    records: list[dict[str, Any]] = []
    with _progress(len(groups) + 1) as (describe, advance):
        describe("copy and matmul rates of this machine")
        ceilings = machine.measure_ceilings(device, dict.fromkeys(group.dtype for group in groups))
        advance()
        found = {"ceilings": asdict(ceilings), "groups": records}
        yield found
        # What was asked for by name is measured, however long it takes.
        left_out = set() if options.only or options.preset != shapes.QUICK else machine.slow_dtypes(ceilings)
        for group in groups:

            def notify(text: str, name: str = group.name) -> None:
                describe(f"{name}: {text}")

            if not (group.flops and group.dtype_name in left_out):
                records.append(race.run(group, SECONDS[options.preset][group.kind], ceilings, notify))
                yield found
            advance()
    for dtype in left_out:
        print(f"{dtype}: PyTorch has no fast products of it on this device, so that they are in the full preset only")


def _unavailable(device: torch.device) -> dict[str, dict[str, str]]:
    """Return op -> backend -> why it does not run here."""
    reasons = {op: module.why_not(device) for op, module in load_ops().items()}
    return {
        op: missing
        for op, of_op in reasons.items()
        if (missing := {backend: reason for backend, reason in of_op.items() if reason is not None})
    }


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Yield a function that says what is happening, and one that moves the bar on."""
    if importlib.util.find_spec("tqdm") is None:
        yield (lambda text: print(text, file=sys.stderr)), (lambda: None)
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=total, bar_format="{percentage:3.0f}% |{bar:20}| {elapsed} {desc}", dynamic_ncols=True) as bar:
        yield bar.set_description_str, bar.update


def _draw(record: dict[str, Any], path: Path) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return " (no picture: matplotlib is not installed)"
    if not any(group["speedup"] for group in record["groups"]):
        return " (no picture: there is no speedup to show)"
    picture.draw(record, path)
    return f", {path.name}"
