"""Compiles every shipped Triton configuration for one target, on a machine without a GPU; prints what came out as JSON.

``python tests/compile_triton.py sm_90`` in a process without ``TRITON_INTERPRET``. The cases are those that
``compile_cases()`` of each ``mixer_kernels/ops/<op>/triton_impl.py`` yields: a name, the kernel, the arguments of a
launch (with meta tensors) and the features, names of :data:`FEATURES`, that the machine code must hold. They take the
same way through Triton as a launch, so the specialisation is the one that runs.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from wgmma_registers import touched_under_way

import mixer_kernels.ops

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Bytes of shared memory that one block may take.
SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}

_LOADS_PTX, _STORES_PTX = (r"ld\.global\S*\.(v4\.b32|v2\.b64)",), (r"st\.global\S*\.(v4\.b32|v2\.b64)",)
_LOADS_AMD, _STORES_AMD = (r"(global|buffer)_load_dwordx4",), (r"(global|buffer)_store_dwordx4",)

# Feature -> target -> patterns that must all occur in the assembly.
FEATURES = {
    "128-bit load": {"sm_80": _LOADS_PTX, "sm_90": _LOADS_PTX, "sm_100": _LOADS_PTX, "gfx942": _LOADS_AMD},
    "128-bit store": {"sm_80": _STORES_PTX, "sm_90": _STORES_PTX, "sm_100": _STORES_PTX, "gfx942": _STORES_AMD},
    "barrier": {
        "sm_80": (r"bar(rier)?\.sync",),
        "sm_90": (r"bar(rier)?\.sync",),
        "sm_100": (r"bar(rier)?\.sync",),
        "gfx942": (r"s_barrier",),
    },
    "matrix": {
        "sm_80": (r"mma\.sync",),
        "sm_90": (r"wgmma\.mma_async",),
        "sm_100": (r"tcgen05\.mma",),
        "gfx942": (r"v_mfma_",),
    },
}


class OfflineDriver:
    """Stands in for the driver of a GPU that is not there: enough for Triton to compile, not to launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """Return the target to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the number of the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return a stream that nothing runs on."""
        return 0


def ops() -> list[str]:
    """Return the ops that have Triton kernels, by name."""
    root = Path(next(iter(mixer_kernels.ops.__path__)))
    return sorted(path.parent.name for path in root.glob("*/triton_impl.py"))


def compile_all(name: str) -> Iterator[dict[str, Any]]:
    """Compile every case of every op for the named target and yield what is to be checked."""
    driver.set_active(OfflineDriver(TARGETS[name]))
    for op in ops():
        implementation = importlib.import_module(f"mixer_kernels.ops.{op}.triton_impl")
        for case, kernel, arguments, features in implementation.compile_cases():
            compiled = kernel.warmup(grid=(1,), **arguments)
            assembly = compiled.asm["ptx" if name.startswith("sm_") else "amdgcn"]
            has_wgmma = name == "sm_90" and "matrix" in features
            yield {
                "case": f"{op}: {case}",
                "local_bytes": local_bytes(compiled.asm),
                "shared_bytes": compiled.metadata.shared,
                "shared_limit": SHARED_LIMITS[name],
                "missing": sorted(feature for feature in features if not holds(assembly, FEATURES[feature][name])),
                "serialized": has_wgmma and says_serialized(ptxas_log(assembly)),
                "touched": touched_under_way(dump(compiled.asm["cubin"], "-sass")) if has_wgmma else [],
            }


def holds(assembly: str, patterns: tuple[str, ...]) -> bool:
    """Return whether every pattern occurs."""
    return all(re.search(pattern, assembly) for pattern in patterns)


def says_serialized(log: str) -> bool:
    """Return whether ptxas says that it made matrix instructions wait for one another, which nothing else shows."""
    return "wgmma.mma_async instructions are serialized" in log


def ptxas_log(ptx: str) -> str:
    """Return what ptxas says about code for sm_90; Triton itself does not keep it."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def local_bytes(asm: dict[str, Any]) -> int:
    """Return the bytes that each thread keeps in local memory instead of registers; spilled registers are there."""
    if "cubin" not in asm:
        return int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", asm["amdgcn"])[1])
    report = dump(asm["cubin"], "-res-usage")
    return sum(int(number) for number in re.findall(r"\b(?:STACK|LOCAL):(\d+)", report))


def dump(cubin: bytes, option: str) -> str:
    """Return what cuobjdump says about machine code."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(cuobjdump), option, file.name], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    json.dump(list(compile_all(sys.argv[1])), sys.stdout, indent=1)
