"""`python -m mixer_kernels info | bench`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from mixer_kernels._version import __version__
from mixer_kernels.ops import _native
from mixer_kernels.ops._registry import load_ops

HELP = {
    "native": "native kernels: with a C++ compiler (Debian: apt install g++), run `pip install -e .` again",
    "cuda": "CUDA kernels: with nvcc (CUDA toolkit) and a CUDA build of torch, run "
    "`MIXER_KERNELS_CUDA=1 pip install -e .` again",
    "triton": "Triton kernels: `pip install triton` (Linux)",
    "gpu": "a GPU: PyTorch sees none; it takes an NVIDIA GPU, its driver and a CUDA build of torch",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mixer_kernels", description="Kernels for MLP-like vision models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, and which backend runs which op here, or why not")
    # The benchmarks have a parser of their own, also for --help.
    commands.add_parser("bench", help="compare with the best of PyTorch on this device", add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "bench":
        return bench(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    print("\n".join(info()))
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmarks of the source tree, which stand beside the package and are not installed with it."""
    for root in (Path(__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "run.py").exists():
            sys.path.insert(0, str(root))
            status: int = importlib.import_module("benchmarks.run").main(arguments)
            return status
    print("bench: there is no benchmarks/ here; run it in a clone of the repository", file=sys.stderr)
    return 1


def info() -> list[str]:
    """Return versions, the machine, and for each op and backend: available, or why not."""
    extension = _native.extension
    build = extension.build_info() if extension is not None else {}
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
    triton = metadata.version("triton") if importlib.util.find_spec("triton") else None
    facts = {
        "mixer_kernels": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})" if torch.version.cuda else torch.__version__,
        "triton": triton or "not installed",
        "extension": "loaded" if build else _native.why_not(torch.device("cpu")) or "",
        "compiler": build.get("compiler", "-"),
        "CPU kernels": f"{build['cpu_isa']}, {torch.get_num_threads()} threads" if build else "-",
        "CUDA kernels": build.get("cuda_archs") or "not built",
        "GPU": ", ".join(gpus) or "none",
    }
    lines = [f"{name:<15}{value}" for name, value in facts.items()]
    for device in ("cpu", "cuda") if cuda else ("cpu",):
        for op, module in load_ops().items():
            lines += ["", f"{op} on {device}"]
            reasons = module.why_not(torch.device(device))
            lines += [f"  {backend:<13}{reason or 'available'}" for backend, reason in reasons.items()]

    missing = {"native": not build, "cuda": not build.get("cuda_archs"), "triton": not triton, "gpu": not cuda}
    if any(missing.values()):
        lines += ["", "how to get what is missing", *(f"  {HELP[name]}" for name in HELP if missing[name])]
    return lines


if __name__ == "__main__":
    sys.exit(main())
