"""Every shipped Triton configuration compiles for every target: nothing spilled, shared memory within the chip's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent
OPS = sorted(path.parent.name for path in ROOT.glob("mixer_kernels/ops/*/triton_impl.py"))
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

# In a few kernels for sizes that are not whole vectors, the assembler of older releases keeps up to four numbers of a
# thread in memory.
ALLOWED_LOCAL_BYTES = 16 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 0


def compile_for(target: str) -> list[dict[str, Any]]:
    """Run compile_triton.py for a target and return what it printed."""
    # The interpreter replaces kernels when they are defined, so compiling takes a process without it.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "tests" / "compile_triton.py"), target]
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    if child.returncode != 0:
        raise RuntimeError(f"compilation for {target} failed:\n{child.stderr[-4000:]}")
    return json.loads(child.stdout)


def problems(case: dict[str, Any]) -> list[str]:
    """Return what is wrong with a compiled case, in words."""
    found = [f"holds no {feature} instructions" for feature in case["missing"]]
    if case["local_bytes"] > ALLOWED_LOCAL_BYTES:
        found.append(f"spills: {case['local_bytes']} bytes of local memory a thread")
    if case["shared_bytes"] > case["shared_limit"]:
        found.append(f"takes {case['shared_bytes']} bytes of shared memory, of {case['shared_limit']}")
    if case["serialized"]:
        found.append("has matrix instructions that wait for one another")
    found += [f"has {what}" for what in case["touched"]]
    return [f"{case['case']} {problem}" for problem in found]


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[str, Future[list[dict[str, Any]]]]]:
    """Compile for all targets, two at a time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {target: pool.submit(compile_for, target) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills(target: str, compiled: dict[str, Future[list[dict[str, Any]]]]) -> None:
    cases = compiled[target].result()
    assert sorted({case["case"].partition(":")[0] for case in cases}) == OPS
    assert [problem for case in cases for problem in problems(case)] == []


def test_problems_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {
        "case": "op: c",
        "local_bytes": 0,
        "shared_bytes": 1024,
        "shared_limit": 1024,
        "missing": [],
        "serialized": False,
        "touched": [],
    }
    assert problems(case) == []
    assert problems({**case, "local_bytes": 24}) == ["op: c spills: 24 bytes of local memory a thread"]
    monkeypatch.setattr(sys.modules[__name__], "ALLOWED_LOCAL_BYTES", 0)
    assert problems({**case, "local_bytes": 8}) == ["op: c spills: 8 bytes of local memory a thread"]
    assert problems({**case, "shared_bytes": 1025}) == ["op: c takes 1025 bytes of shared memory, of 1024"]
    assert problems({**case, "missing": ["matrix"]}) == ["op: c holds no matrix instructions"]
    assert problems({**case, "touched": ["MOV before HGMMA is done"]}) == ["op: c has MOV before HGMMA is done"]
    assert problems({**case, "serialized": True}) == ["op: c has matrix instructions that wait for one another"]


def test_serialized_products_are_found() -> None:
    from compile_triton import ptxas_log, says_serialized

    product = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1, %f2, %f3}, %d0, %d0, p, 1, 1, 0, 0;"

    zeros = " ".join(f"mov.f32 %f{i}, 0f00000000;" for i in range(4))
    stores = " ".join(f"st.global.f32 [%d0 + {4 * i}], %f{i};" for i in range(4))

    def two_products(between: str) -> str:
        return f"""
            .version 8.0
            .target sm_90a
            .address_size 64
            .visible .entry kernel(.param .u64 out) {{
              .reg .f32 %f<4>;
              .reg .b64 %d<1>;
              .reg .pred p;
              setp.ne.b32 p, 0, 1;
              ld.param.u64 %d0, [out];
              {zeros}
              wgmma.fence.sync.aligned;
              {product}
              {between}
              {product}
              wgmma.commit_group.sync.aligned;
              wgmma.wait_group.sync.aligned 0;
              {stores}
              ret;
            }}
        """

    assert not says_serialized(ptxas_log(two_products("")))
    # An accumulator that something else defines before the product is there.
    assert says_serialized(ptxas_log(two_products("mov.f32 %f0, 0f3f800000;")))
