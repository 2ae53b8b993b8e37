"""Peak memory of one call, beyond what was there before it."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import Call


def peak_bytes(call: Call, device: torch.device) -> int:
    """Return the most bytes that PyTorch's allocator holds during a call on top of what it held before.

    On a GPU the allocator keeps count. On a CPU the profiler records every allocation and release; memory that a
    library takes past PyTorch's allocator is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(0, 0, *itertools.accumulate(int(event.nbytes()) for event in events))


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    # The profiler announces every start and stop on the process's stderr, across the progress bar.
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
