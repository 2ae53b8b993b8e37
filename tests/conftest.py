"""Devices and backends of this machine, as parameters of every op's tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emulated import programs  # noqa: F401  (a fixture)

GPU = torch.cuda.is_available()
if not GPU:
    # Triton reads it when it is imported, so it has to be set before anything imports mixer_kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import mixer_kernels  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    from interpreter import replace_language_once

    replace_language_once()

# benchmarks/ stands beside the package. Last, so that an installed mixer_kernels is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that names ``device`` (and ``backend``) on every kernel backend that this machine has."""
    names = metafunc.fixturenames
    on_gpu = metafunc.definition.get_closest_marker("gpu") is not None
    devices = ["cuda"] if on_gpu else ["cpu", *(["cuda"] if GPU else [])]
    if "backend" in names:
        cases = [
            (device, backend)
            for device in devices
            for backend in mixer_kernels.available_backends(device)
            # The interpreter has tests of its own, on shapes that it can take.
            if backend != "reference" and (device, backend) != ("cpu", "triton")
        ]
        if "device" in names:
            metafunc.parametrize(("device", "backend"), cases)
        else:
            # Such a test has a device of its own: the GPU if it is marked so, else the CPU.
            metafunc.parametrize("backend", sorted({backend for device, backend in cases if device == devices[0]}))
    elif "device" in names:
        metafunc.parametrize("device", devices)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _poison_and_seed() -> Iterator[None]:
    # Deterministic mode fills uninitialised memory with NaN: an output element that no kernel wrote shows.
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once for each instruction set of the native CPU kernels that this CPU has."""
    extension = pytest.importorskip("mixer_kernels._C")
    monkeypatch.setenv("MIXER_KERNELS_ISA", request.param)
    if extension.build_info()["cpu_isa"] != request.param.removesuffix("_emulated"):
        pytest.skip(f"this CPU has no {request.param}")
    return request.param
