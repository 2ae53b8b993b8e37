"""The machine in words, and its ceilings: how fast it copies and multiplies, measured in the same run."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

import mixer_kernels
from benchmarks import timing
from mixer_kernels.ops import _native

# Beyond every cache.
COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
CEILING_SECONDS = 1.0
# A matmul this long is large enough.
LONG_MATMUL_SECONDS = 0.1

# Of the rate of float32: a dtype below it has no fast products in PyTorch here, and a call takes seconds.
SLOW_SHARE = 0.05
BUSY_SHARE = 0.3


@dataclass(frozen=True)
class Ceilings:
    """Rates of this machine: a large copy (bytes read plus bytes written), and a large square matmul of each dtype."""

    copy_gbps: float
    matmul_tflops: dict[str, float]


def device_name(device: torch.device) -> str:
    """Return the model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    name = _cpu_name(cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else ""
    return name or platform.processor() or platform.machine()


def _cpu_name(cpuinfo: str) -> str:
    found = dict(re.findall(r"^(model name|cpu family)\s*:\s*(.+)$", cpuinfo, re.MULTILINE))
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*|\s+(?=\s)", "", found.get("model name", "")).strip()
    # A virtual machine may call CPUs of several generations by one name, without a number.
    return name if re.search(r"\d", name) or "cpu family" not in found else f"{name} family {found['cpu family']}"


def slug(device: torch.device) -> str:
    """Return the name of this device's folder under results/."""
    name = device_name(device)
    if device.type == "cpu":
        name = f"{name} {_build_info().get('cpu_isa', '')} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _build_info() -> dict[str, Any]:
    return _native.extension.build_info() if _native.extension else {}


def describe(device: torch.device) -> dict[str, Any]:
    """Return device, versions and date, as every result file states them."""
    info = _build_info()
    described: dict[str, Any] = {"type": device.type, "name": device_name(device), "slug": slug(device)}
    if device.type == "cpu":
        described |= {"threads": torch.get_num_threads(), "isa": info.get("cpu_isa")}
    else:
        described |= {"cuda_archs": info.get("cuda_archs"), "capability": torch.cuda.get_device_capability(device)}
    versions = {
        "mixer_kernels": mixer_kernels.__version__,
        "torch": torch.__version__,
        "triton": metadata.version("triton") if util.find_spec("triton") else None,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "compiler": info.get("compiler"),
    }
    return {
        "device": described,
        "versions": versions,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "load_average": os.getloadavg()[0],
    }


def is_busy(load_average: float) -> bool:
    """Return whether other programs keep so much of this machine that timings are noise."""
    return load_average > BUSY_SHARE * (os.cpu_count() or 1)


def measure_ceilings(device: torch.device, dtypes: Iterable[torch.dtype]) -> Ceilings:
    """Measure a large copy, and a matmul of each dtype."""
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copy = timing.measure({"copy": lambda: target.copy_(source)}, device, CEILING_SECONDS)["copy"].median
    matmul = {str(dtype).removeprefix("torch."): _matmul_tflops(device, dtype) for dtype in dtypes}
    return Ceilings(2 * COPY_BYTES[device.type] / copy * 1e-9, matmul)


def slow_dtypes(ceilings: Ceilings) -> set[str]:
    """Return the dtypes that PyTorch multiplies so slowly here that a call takes seconds."""
    rates = ceilings.matmul_tflops
    return {dtype for dtype, rate in rates.items() if rate < SLOW_SHARE * rates.get("float32", 0.0)}


def _matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    largest = MATMUL_SIZE[device.type]
    size = min(largest, 256)
    while True:
        # Random data: zeros draw less power, and a GPU runs faster on them.
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        call = functools.partial(torch.mm, a, b)
        call()
        seconds = timing.measure({"matmul": call}, device, 0.0)["matmul"].median
        if size == largest or seconds > LONG_MATMUL_SECONDS:
            break
        size *= 2
    result = timing.measure({"matmul": call}, device, CEILING_SECONDS)["matmul"]
    return 2 * size**3 / result.median * 1e-12
