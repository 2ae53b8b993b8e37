"""Checks a CUDA build of the extension, without a GPU: ops registered, no spills, registers within the limits below.

Run with the Python of an environment where mixer_kernels is installed with its CUDA kernels:

    python tests/check_cuda_build.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from wgmma_registers import touched_under_way

ROOT = Path(__file__).resolve().parent.parent


class Limit(NamedTuple):
    """What a kernel may take: registers a thread, and instructions that some instance must hold."""

    registers: int
    instructions: tuple[str, ...] = ()
    arch: str | None = None  # the only one for which it is more than a name
    waits: int = 0  # for its wgmma; ptxas adds some where it fears for the registers of a product under way


# Products on the tensor cores, in float16, bfloat16 and tf32, fed by asynchronous copies of 16 bytes.
TENSOR_CORES = ("HMMA.16816.F32 ", "HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128")
# Those whose second operand comes to the tensor cores transposed.
TRANSPOSED = (*TENSOR_CORES, "LDSM.16.MT88.4")
FLOAT32 = ("FFMA", "LDS.128", "LDGSTS.E.BYPASS.128")

# By a part of the kernel's symbol, the first that fits. A multiprocessor has 65536 registers.
LIMITS = {
    # 3 blocks of 256 threads: one wave of the published shape, 96 KB in flight; 16-byte accesses both ways.
    "spatial_shift_kernel": Limit(80, ("LDG.E.128", "STG.E.128")),
    # 4 blocks of 256 threads.
    "spatial_shift_pieces_kernel": Limit(64, ("LDG.E.128", "STG.E.128")),
    # 2 blocks of 128 threads, with up to 128 accumulators a thread.
    "token_linear_kernelINS_10TensorTile": Limit(255, (*TRANSPOSED, "STG.E.128")),
    "token_linear_kernelINS_7FmaTile": Limit(255, (*FLOAT32, "STG.E.128")),
    # One block of 256 threads.
    "warpgroup_linear_kernel": Limit(
        255,
        (
            *("HGMMA.64x208x16.F32 ", "HGMMA.64x208x16.F32.BF16", "UBLKCP", "LDGSTS.E.BYPASS.128"),
            *("LDSM.16.MT88.4", "STSM.16.MT88.4", "LDS.128", "STG.E.128"),
        ),
        arch="sm_90a",
        waits=1,
    ),
    # One block of 416 threads: 13 warps, of which one quarter of the processor takes 4.
    "stationary_linear_kernel": Limit(
        128, ("HMMA.16816.F32 ", "HMMA.16816.F32.BF16", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128", "STG.E.128")
    ),
    # One block of 256 threads.
    "warpgroup_mlp_kernel": Limit(
        255,
        (
            *("HGMMA.64x64x16.F32 ", "HGMMA.64x64x16.F32.BF16", "HGMMA.64x208x16.F32 ", "HGMMA.64x208x16.F32.BF16"),
            *("UBLKCP", "LDGSTS.E.BYPASS.128", "LDSM.16.MT88.4", "STSM.16.MT88.4", "LDS.128", "STG.E.128"),
        ),
        arch="sm_90a",
        waits=3,
    ),
    "warpgroup_hidden_kernel": Limit(
        255,
        (
            *("HGMMA.64x64x16.F32 ", "HGMMA.64x64x16.F32.BF16", "UBLKCP", "LDGSTS.E.BYPASS.128"),
            *("LDSM.16.MT88.4", "STSM.16.MT88.4", "LDS.128", "STG.E.128"),
        ),
        arch="sm_90a",
        waits=2,
    ),
    "hidden_backward_kernelINS_10TensorTile": Limit(255, (*TRANSPOSED, "STG.E.128")),
    "hidden_backward_kernelINS_7FmaTile": Limit(255, (*FLOAT32, "STG.E.128")),
    "affine_weight_gradient_kernelINS_10TensorTile": Limit(255, TENSOR_CORES),
    "affine_weight_gradient_kernelINS_7FmaTile": Limit(255, FLOAT32),
    "weight_gradient_kernelINS_10TensorTile": Limit(255, TENSOR_CORES),
    "weight_gradient_kernelINS_7FmaTile": Limit(255, FLOAT32),
    "pack_mlp_kernel": Limit(40),
    # 3 blocks of 256 threads.
    "statistics_kernel": Limit(80, ("LDG.E.128",)),
    "normalise_kernel": Limit(80, ("LDG.E.128", "STG.E.128")),
    # 640 threads of a multiprocessor: 6 blocks of 96 at 768 channels of 16 bits.
    "norm_backward_kernel": Limit(96, ("LDG.E.128", "STG.E.128")),
    # 4 blocks of 128 threads.
    "banded_convolution_kernel": Limit(
        128, ("HMMA.16816.F32 ", "HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDG.E.128", "STG.E.128")
    ),
    # 2 blocks of 256 threads.
    "banded_gradient_kernel": Limit(128, ("HMMA.16816.F32 ", "HMMA.16816.F32.BF16", "LDSM.16.MT88.4", "LDG.E.128")),
    # 2 blocks of 256 threads; 4 of those that read through the caches.
    "sliding_convolution_kernel": Limit(128, ("FFMA", "LDS.128", "LDG.E.128", "STG.E.128")),
    "sliding_gradient_kernel": Limit(128, ("FFMA", "LDS.128", "LDG.E.128")),
    "direct_convolution_kernel": Limit(64, ("STG.E.128",)),
    "direct_gradient_kernel": Limit(64),
    "epilogue_forward_kernel": Limit(40, ("LDG.E.128", "STG.E.128")),
    "epilogue_backward_kernel": Limit(64, ("LDG.E.128", "STG.E.128")),
    "sum_planes_kernel": Limit(64, ("LDG.E.128",)),
    "sum_pixels_kernel": Limit(80, ("LDG.E.128",)),  # 3 blocks
    "combine_moments_kernel": Limit(64),
    # 2 blocks of 256 threads; 3 for the weighted sum, and 4 for the sums of forward.
    "split_sums_kernel": Limit(128, ("LDG.E.128",)),
    "split_combine_kernel": Limit(80, ("LDG.E.128", "STG.E.128")),
    "split_backward_features_kernel": Limit(128, ("LDG.E.128", "STG.E.128")),
    # A block of 512 threads for each image.
    "split_gate_kernel": Limit(128, ("LDG.E.128",)),
    "split_gate_backward_kernel": Limit(128, ("LDG.E.128",)),
    # A few blocks.
    "fold_kernel": Limit(64),
    # Every thread that a multiprocessor takes, or nearly.
    "pack_kernel": Limit(40),
    "sum_terms_kernel": Limit(32),
}


class Kernel(NamedTuple):
    """One kernel's line in the resource report."""

    symbol: str
    registers: int
    stack: int
    local: int

    @property
    def name(self) -> str:
        return next((name for name in LIMITS if name in self.symbol), self.symbol)


def find_cuobjdump() -> str:
    """The toolkit's, else the one that Triton's wheel carries."""
    if path := shutil.which("cuobjdump"):
        return path
    spec = find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    sys.exit("check_cuda_build: cuobjdump was not found (it comes with the CUDA toolkit and with Triton)")


def dump(cuobjdump: str, library: Path, *options: str) -> str:
    return subprocess.run([cuobjdump, *options, str(library)], capture_output=True, text=True, check=True).stdout


def by_arch(text: str) -> dict[str, str]:
    """The report of each architecture's code."""
    parts = re.split(r"^arch = (sm_\w+)$", text, flags=re.MULTILINE)
    reports: dict[str, str] = {}
    for arch, report in zip(parts[1::2], parts[2::2], strict=True):
        reports[arch] = reports.get(arch, "") + report
    return reports


def kernels_of(report: str) -> list[Kernel]:
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    return [
        Kernel(symbol, int(reg), int(stack), int(local)) for symbol, reg, stack, local in re.findall(pattern, report)
    ]


# Whole passes that the CPU takes some channels at a time; a GPU takes them in the passes of the other ops.
CPU_ONLY = {"depthwise_conv2d_batch_norm_fwd", "depthwise_conv2d_batch_norm_bwd"}


def unregistered_ops() -> list[str]:
    """The ops of the table of contents that have no CUDA kernel where they should have one."""
    schemas = (ROOT / "csrc" / "library.cpp").read_text()
    ops = re.findall(r'm\.def\(\s*"(\w+)\(', schemas)
    if not ops:
        return ["csrc/library.cpp declares no op"]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        f"{op} has no CUDA kernel"
        for op in ops
        if op not in CPU_ONLY and not has_kernel(f"mixer_kernels::{op}", "CUDA")
    ]


def wrong_resources(arch: str, kernels: list[Kernel]) -> list[str]:
    problems = [f"{arch}: no {name}" for name in LIMITS if name not in {kernel.name for kernel in kernels}]
    for kernel in kernels:
        if kernel.name not in LIMITS:
            problems.append(f"{arch}: {kernel.symbol} has no line in LIMITS")
        elif kernel.registers > LIMITS[kernel.name].registers:
            problems.append(
                f"{arch}: {kernel.symbol} takes {kernel.registers} registers, not {LIMITS[kernel.name].registers}"
            )
        if kernel.stack or kernel.local:
            problems.append(
                f"{arch}: {kernel.symbol} has {kernel.stack} bytes of stack, {kernel.local} of local memory"
            )
    return problems


def wrong_instructions(arch: str, sass: str) -> list[str]:
    """Instructions that no instance of their kernel holds, and those that no instance may hold."""
    functions = re.split(r"^\s*Function : (\S+)$", sass, flags=re.MULTILINE)
    bodies: dict[str, str] = dict.fromkeys(LIMITS, "")
    problems = []
    for symbol, body in zip(functions[1::2], functions[2::2], strict=True):
        name = next((name for name in LIMITS if name in symbol), None)
        if name is not None:
            bodies[name] += body
        if re.search(r"\b(LDL|STL)\b", body):
            problems.append(f"{arch}: {symbol} reads or writes local memory")
        waits = body.count("WARPGROUP.DEPBAR")
        if name is not None and waits not in (0, LIMITS[name].waits):
            problems.append(f"{arch}: {symbol} waits for products in {waits} places, not {LIMITS[name].waits}")
        problems += [f"{arch}: {symbol}: {what}" for what in touched_under_way(body)]
    for name, limit in LIMITS.items():
        if limit.arch not in (None, arch):
            continue
        problems += [f"{arch}: {name} never uses {code}" for code in limit.instructions if code not in bodies[name]]
    return problems


def main() -> None:
    extension = import_module("mixer_kernels._C")
    library = Path(extension.__file__)
    problems = unregistered_ops()

    cuobjdump = find_cuobjdump()
    with ThreadPoolExecutor(2) as pool:
        resources, sass = pool.map(lambda option: dump(cuobjdump, library, option), ("--dump-resource-usage", "-sass"))
    reports = {arch: kernels_of(report) for arch, report in by_arch(resources).items()}
    if not reports:
        problems.append("the library holds no CUDA code")
    for arch, kernels in reports.items():
        problems += wrong_resources(arch, kernels)
        for name in LIMITS:
            registers = [kernel.registers for kernel in kernels if kernel.name == name]
            print(f"{arch:8} {name:48} {len(registers):3} instances, {min(registers, default=0)} to "
                  f"{max(registers, default=0)} registers")  # fmt: skip
    for arch, code in by_arch(sass).items():
        problems += wrong_instructions(arch, code)

    for problem in problems:
        print(f"check_cuda_build: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print("check_cuda_build: ok")


if __name__ == "__main__":
    main()
