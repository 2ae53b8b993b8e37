"""The checks that need an NVIDIA GPU, in stages that each end within a few minutes and can run alone.

    python tests/gpu_check.py                     # every stage, in order
    python tests/gpu_check.py build tests         # some of them

Offline, with the Python, torch and Triton that are there; run from the root of a source checkout. Each stage's outcome
is written to benchmarks/results/<device>/gpu_check.json as soon as it ends.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q"]
# Of each of the processes that share the tests.
FEW_THREADS = {"OMP_NUM_THREADS": "2"}
OPS = ("spatial_shift", "split_attention", "token_mixing", "affine_token_linear", "depthwise_conv2d")
# What runs on the GPU: files of Triton's kernels, tests with a device in their name, and those marked gpu.
ON_GPU = [*(f"tests/test_{op}{kind}.py" for op in OPS for kind in ("", "_triton")), "-k", "triton or cuda or gpu"]
# Forward and backward of every native kernel, small enough for a sanitizer that slows each access down by orders of
# magnitude: under autocast the products of bfloat16 run, too, and with 113 tokens the warpgroups.
SANITIZED = [
    *(f"tests/test_{op}.py" for op in OPS),
    "-k",
    "cuda-native and (autocast or (exact and float32 and shape0 and contiguous) or (accurate and 113))",
]


def run(*command: str, **environment: str) -> int:
    """Run a command in the checkout and return its exit status."""
    print("+", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode


def _workers() -> list[str]:
    """Return the options that share tests among processes, where pytest-xdist is there."""
    return [] if importlib.util.find_spec("xdist") is None else ["-n", "auto", "--maxprocesses", "16"]


def build() -> int:
    """Build and install the extension for this GPU, then say what is available."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}.{minor}" + ("a" if major >= 9 else "")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", "."]
    status = run(*pip, MIXER_KERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST=arch)
    return status or run(sys.executable, "-m", "mixer_kernels", "info")


def tests() -> int:
    """Run what runs on the GPU."""
    return run(*PYTEST, *_workers(), *ON_GPU, **FEW_THREADS)


def suite() -> int:
    """Run the whole test-suite: on the GPU and on the CPU wherever a test names a device."""
    return run(*PYTEST, *_workers(), **FEW_THREADS)


def sanitizer() -> int:
    """Run a small subset under compute-sanitizer: accesses out of bounds, then races in shared memory."""
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer was not found")
        return 1
    # Without the caching allocator an access beyond a tensor is an access beyond an allocation.
    return max(
        run("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *PYTEST, *SANITIZED,
            PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        for tool in ("memcheck", "racecheck")
    )  # fmt: skip


def bench() -> int:
    """Measure the quick preset against the best of PyTorch and publish it; `make bench-full` takes far longer."""
    return run(sys.executable, "-m", "mixer_kernels", "bench", "--preset", "quick", "--details", "--publish")


def search() -> int:
    """Time every candidate tile of the Triton kernels and print the fastest of each."""
    return run(sys.executable, "-m", "benchmarks.search_tiles")


STAGES: dict[str, Callable[[], int]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
    "search": search,
    "suite": suite,
}


def main() -> int:
    """Run the stages named on the command line; 1 if any failed."""
    import torch

    # Run as a script, Python looks for modules in tests/; build has not installed anything yet.
    sys.path.insert(0, str(ROOT))
    names = sys.argv[1:] or list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        print(f"gpu_check: stages must be of {', '.join(STAGES)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu_check: PyTorch sees no GPU", file=sys.stderr)
        return 2
    from benchmarks import machine, result_files

    device = torch.device("cuda")
    report = result_files.ROOT / machine.slug(device) / "gpu_check.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    outcome = json.loads(report.read_text()) if report.exists() else {}
    for name in names:
        started = time.monotonic()
        status = STAGES[name]()
        outcome[name] = {
            "passed": status == 0,
            "seconds": round(time.monotonic() - started),
            "device": machine.device_name(device),
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }
        report.write_text(json.dumps(outcome, indent=2) + "\n")
        print(f"== {name}: {'passed' if status == 0 else 'FAILED'} in {outcome[name]['seconds']} s", flush=True)
    return int(any(not outcome[name]["passed"] for name in names))


if __name__ == "__main__":
    sys.exit(main())
