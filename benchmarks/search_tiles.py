"""Times candidate tiles of the Triton kernels on the GPU that is there: `python -m benchmarks.search_tiles [REGEX]`.

Prints the fastest candidates for each entry of a table that a published shape takes; the table is then edited by hand.
All are compiled first, by as many processes as there are cores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import timing
from benchmarks.tile_candidates import Search, searches
from mixer_kernels.ops._triton_launch import run

# Of timing a candidate.
SECONDS = 0.03
SHOWN = 5
COMPILE = "--compile"


def launches(search: Search, execute: Callable[[Any, int, dict[str, Any]], None]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each candidate with what it launches of the search's kernel; the table ends up as it was."""
    try:
        for candidate in search.candidates:
            found: list[Any] = []

            def launch(kernel: Any, programs: int, arguments: dict[str, Any], found: list[Any] = found) -> None:
                execute(kernel, programs, arguments)
                if kernel.fn.__name__ == search.kernel and programs > 0:
                    found.append((kernel, programs, arguments))

            search.put(candidate)
            search.run(launch)
            yield candidate, found
    finally:
        search.put(search.candidates[0])


def _compile(pattern: str, part: int, parts: int) -> None:
    """Compile this part of all candidates into Triton's cache."""
    for search in searches("meta"):
        if not re.search(pattern, search.what):
            continue
        for number, (_, found) in enumerate(launches(search, lambda *_: None)):
            if number % parts != part:
                continue
            for kernel, _, arguments in found:
                try:
                    kernel.warmup(grid=(1,), **arguments)
                except Exception as error:
                    # Some take more shared memory than there is; they are shown when they are timed.
                    print(f"search_tiles: {search.what}: {type(error).__name__}", file=sys.stderr)


def _time(search: Search, device: torch.device) -> None:
    calls: dict[str, Callable[[], None]] = {}
    for candidate, found in _runnable(search):

        def call(found: list[Any] = found) -> None:
            for launch in found:
                run(*launch)

        calls[str(candidate)] = call
    times = timing.measure(calls, device, SECONDS * len(calls))
    print(f"{search.what}, now {search.candidates[0]!s}")
    for name, result in sorted(times.items(), key=lambda item: item[1].median)[:SHOWN]:
        print(f"  {result.median * 1e6:8.1f} us  {name}")
    if slower := times.get(str(search.candidates[0])):
        print(f"  {slower.median * 1e6:8.1f} us  as it is", flush=True)


def _runnable(search: Search) -> Iterator[tuple[Any, list[Any]]]:
    """Yield what `launches` does, without the candidates that this GPU cannot take."""
    for candidate in search.candidates:
        try:
            yield from launches(search._replace(candidates=(candidate,)), run)
        except Exception as error:
            print(f"{search.what}: {candidate!s}: {type(error).__name__}")
    search.put(search.candidates[0])


def main() -> int:
    """Run the search; the exit status."""
    if not torch.cuda.is_available():
        print("search_tiles: PyTorch sees no GPU", file=sys.stderr)
        return 2
    if COMPILE in sys.argv:
        _compile(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return 0
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    parts = os.cpu_count() or 1
    command = [sys.executable, "-m", "benchmarks.search_tiles", COMPILE, pattern]
    for process in [subprocess.Popen([*command, str(part), str(parts)]) for part in range(parts)]:
        process.wait()
    device = torch.device("cuda")
    for search in searches("cuda"):
        if re.search(pattern, search.what):
            _time(search, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
