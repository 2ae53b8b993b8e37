"""Builds the extension `mixer_kernels._C` from csrc/: CPU kernels always, CUDA kernels where nvcc and a CUDA torch are.

Environment:
    MIXER_KERNELS_CUDA    auto (default): CUDA kernels if nvcc and a CUDA build of torch are there; 0: never;
                          1: an error if they cannot be built.
    TORCH_CUDA_ARCH_LIST  as in PyTorch; by default 8.0, 9.0a, 10.0, those that the toolkit knows.
    CUDA_HOME             the toolkit; by default the one that the nvcc on PATH belongs to.
    CXXFLAGS              flags of the C++ compiler, behind ours.
    MAX_JOBS              how many compilers run at once.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
DEFAULT_CUDA_ARCHS = ("8.0", "9.0a", "10.0")
# -fopenmp is a compile flag only: at::parallel_for is a template, serial without it; linking the runtime as well would
# bring in a second thread pool beside torch's own.
# gcc warns of vectors wider than the build's own target in every function that is compiled for another one (psabi), and
# of the undefined operand inside its own AVX-512 intrinsics (maybe-uninitialized).
CXX_FLAGS = ["-O3", "-fopenmp", "-fvisibility=hidden", "-g0", "-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized"]
# The architectures of a file side by side: the largest file else takes as long as all others.
NVCC_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-Xptxas=-warn-spills,-warn-lmem-usage", "--threads=3"]


def note(message: str) -> None:
    print(f"mixer_kernels: {message}", file=sys.stderr, flush=True)


def find_cuda_home() -> str | None:
    """The toolkit's folder. nvcc on PATH may be a wrapper script, so nvcc itself is asked where it lives."""
    if home := os.environ.get("CUDA_HOME"):
        return home
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dryrun = subprocess.run([nvcc, "--dryrun", "_.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE)
    return str(Path(top.group(1).strip()).resolve()) if top else None


def why_no_cuda(torch) -> str | None:
    """Resolve the toolkit; the reason why CUDA kernels cannot be built, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    home = find_cuda_home()
    if home is None or not Path(home, "bin", "nvcc").exists():
        return "nvcc was not found (put it on PATH or set CUDA_HOME)"
    # torch.utils.cpp_extension reads it when it is imported.
    os.environ["CUDA_HOME"] = home
    return None


def wants_cuda(torch) -> bool:
    choice = os.environ.get("MIXER_KERNELS_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"mixer_kernels: MIXER_KERNELS_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return False
    reason = why_no_cuda(torch)
    if reason is None:
        return True
    if choice == "1":
        sys.exit(f"mixer_kernels: MIXER_KERNELS_CUDA=1, but {reason}")
    note(f"building without CUDA kernels: {reason}")
    return False


def default_cuda_archs() -> str:
    """Those that this toolkit compiles for: before CUDA 12.8 it has no 10.0."""
    nvcc = str(Path(os.environ["CUDA_HOME"], "bin", "nvcc"))
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return ";".join(arch for arch in DEFAULT_CUDA_ARCHS if f"compute_{re.sub('[.a]', '', arch)}" in known)


def extension_options() -> dict:
    """The arguments of `setup` that build the extension; none, with one sentence why, where that is not possible."""
    try:
        import pybind11
        import torch
    except ImportError as error:
        return give_up(f"{error.name} is not installed")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        return give_up(f"no C++ compiler was found (looked for {compiler!r}; on Debian: apt install g++)")

    cuda = wants_cuda(torch)
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    sources = [path for path in sorted(ROOT.glob("csrc/**/*.cpp")) if cuda or not path.stem.endswith("_cuda")]
    macros: list[tuple[str, str]] = []
    if cuda:
        sources += sorted(ROOT.glob("csrc/**/*.cu"))
        archs = os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or default_cuda_archs()
        macros.append(("MIXER_KERNELS_CUDA_ARCHS", f'"{archs}"'))
    extension = (CUDAExtension if cuda else CppExtension)(
        "mixer_kernels._C",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=macros,
        depends=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*h"))],
        extra_compile_args={"cxx": CXX_FLAGS + shlex.split(os.environ.get("CXXFLAGS", "")), "nvcc": NVCC_FLAGS},
    )

    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


def give_up(reason: str) -> dict:
    if os.environ.get("MIXER_KERNELS_CUDA") == "1":
        sys.exit(f"mixer_kernels: the extension cannot be built: {reason}")
    note(f"installing without native kernels: {reason}")
    return {}


# Metadata and requirements are asked for before any compiler is needed.
BUILDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
setup(**(extension_options() if BUILDS & set(sys.argv[1:]) else {}))
