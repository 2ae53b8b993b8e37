"""Compiles and runs the programs of tests/emulator: CUDA kernels on the host, under AddressSanitizer and UBSan."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ROOT / "tests" / "emulator"
CACHE = ROOT / "build" / "emulator"
FLAGS = [
    # Programs compile in less than half of the time that -O1 takes, and run hardly longer.
    *("-std=c++17", "-Og", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]

# As csrc/common/element_type.h numbers them; bfloat16 travels as its bits.
ELEMENT_TYPES = {
    "float32": (0, np.float32),
    "float64": (1, np.float64),
    "float16": (2, np.float16),
    "bfloat16": (3, np.uint16),
}


def compiler() -> str | None:
    """GCC, whose sanitizers are shared libraries: in the program itself, their thread-local state would be poisoned."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        path = shutil.which(name) if name else None
        if (
            path
            and "Free Software Foundation" in subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        ):
            return path
    return None


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # AddressSanitizer's own memory may collide with randomised addresses on new kernels. Leaks are nobody's concern.
    fixed = ["setarch", "-R"]
    if shutil.which("setarch") is None or subprocess.run([*fixed, "true"], capture_output=True).returncode != 0:
        fixed = []
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([*fixed, program, *arguments], capture_output=True, text=True, env=environment)


def compile_program(name: str) -> Path:
    """Compile one program, once for each state of its sources."""
    cxx = compiler()
    source = str(EMULATOR / f"{name}.cpp")
    command = [cxx, *FLAGS, f"-I{ROOT / 'csrc'}", f"-I{EMULATOR}", source]
    version = subprocess.run([cxx, "--version"], capture_output=True, check=True).stdout
    # The preprocessed source: a change elsewhere compiles nothing anew.
    text = subprocess.run([*command, "-E", "-P"], capture_output=True, check=True).stdout
    key = hashlib.sha256(version + " ".join(FLAGS).encode() + text)
    program = CACHE / f"{name}-{key.hexdigest()[:16]}"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}-*"):
            old.unlink(missing_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.replace(program)
    return program


class Programs(dict[str, Path]):
    """The compiled programs by name; a program is compiled when a test first asks for it."""

    def __missing__(self, name: str) -> Path:
        self[name] = compile_program(name)
        return self[name]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The programs; skips where the machine cannot compile or run them."""
    cxx = compiler()
    if cxx is None:
        pytest.skip("the emulator needs GCC, and none was found")
    trial = tmp_path_factory.mktemp("emulator") / "trial"
    source = "#include <ucontext.h>\n#include <sanitizer/asan_interface.h>\nint main() { return 0; }"
    build = subprocess.run(
        [cxx, *FLAGS, "-x", "c++", "-", "-o", str(trial)], input=source, text=True, capture_output=True
    )
    if build.returncode != 0 or run(trial).returncode != 0:
        pytest.skip(
            f"the emulator needs AddressSanitizer and UBSan, and {cxx} cannot link and run them (libasan, libubsan)"
        )
    return Programs()
