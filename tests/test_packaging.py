"""What setup.py decides on machines that lack something: a working install or one clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")


def run_setup(tmp_path: Path, prelude: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py up to the point where compilers would start."""
    script = (
        "import runpy, sys, setuptools\n"
        "found = lambda options: options.get('ext_modules', ())\n"
        "setuptools.setup = lambda **options: print('extensions:', [e.name for e in found(options)],\n"
        "                                           'macros:', [e.define_macros for e in found(options)])\n"
        f"{prelude}\n"
        "sys.argv = ['setup.py', 'build_ext']\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')\n"
    )
    unset = ("CUDA_HOME", "CXX", "MIXER_KERNELS_CUDA", "TORCH_CUDA_ARCH_LIST")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_torch_the_package_installs_and_says_why(tmp_path):
    result = run_setup(tmp_path, "sys.modules['torch'] = None")
    assert result.returncode == 0, result.stderr
    assert "extensions: []" in result.stdout
    assert "mixer_kernels: installing without native kernels: torch is not installed" in result.stderr


def test_without_a_compiler_the_package_installs_and_says_why(tmp_path):
    result = run_setup(tmp_path, "import shutil; shutil.which = lambda name: None")
    assert result.returncode == 0, result.stderr
    assert "extensions: []" in result.stdout
    assert "installing without native kernels: no C++ compiler was found" in result.stderr


def test_without_nvcc_the_cpu_extension_is_built(tmp_path):
    hidden = "import shutil; which = shutil.which; shutil.which = lambda name: None if name == 'nvcc' else which(name)"
    result = run_setup(tmp_path, f"import torch; torch.version.cuda = '13.0'; {hidden}")
    assert result.returncode == 0, result.stderr
    assert "extensions: ['mixer_kernels._C']" in result.stdout
    assert "building without CUDA kernels: nvcc was not found" in result.stderr


def test_cuda_asked_for_and_impossible_is_an_error(tmp_path):
    result = run_setup(tmp_path, "import torch; torch.version.cuda = None", MIXER_KERNELS_CUDA="1")
    assert result.returncode != 0
    assert "MIXER_KERNELS_CUDA=1, but torch" in result.stderr
    assert "is not a CUDA build" in result.stderr


def test_an_unknown_choice_is_an_error(tmp_path):
    result = run_setup(tmp_path, MIXER_KERNELS_CUDA="yes")
    assert result.returncode != 0
    assert "MIXER_KERNELS_CUDA must be auto, 0 or 1, got 'yes'" in result.stderr


@pytest.mark.parametrize(("known", "archs"), [("80 90 100 120", "8.0;9.0a;10.0"), ("75 80 90", "8.0;9.0a")])
def test_the_default_architectures_are_those_that_the_toolkit_knows(tmp_path, known, archs):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n" + "".join(f"echo compute_{arch}\n" for arch in known.split()))
    nvcc.chmod(0o755)
    # CUDAExtension wants a whole toolkit.
    prelude = (
        "import torch; torch.version.cuda = '12.6'\n"
        "from torch.utils import cpp_extension; cpp_extension.CUDAExtension = cpp_extension.CppExtension"
    )
    result = run_setup(tmp_path, prelude, CUDA_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert f"""('MIXER_KERNELS_CUDA_ARCHS', '"{archs}"')""" in result.stdout


def test_nvcc_behind_a_wrapper_names_its_own_toolkit(tmp_path):
    toolkit = tmp_path / "toolkit" / "bin"
    toolkit.mkdir(parents=True)
    (toolkit / "nvcc").touch()
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}/..' >&2\n")
    wrapper.chmod(0o755)
    # What is asked for is where the toolkit is, not a build with it: stop before torch looks into it.
    prelude = (
        "import os, torch, atexit; torch.version.cuda = '13.0'\n"
        "atexit.register(lambda: print('toolkit:', os.environ.get('CUDA_HOME')))"
    )
    result = run_setup(tmp_path, prelude, PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    assert f"toolkit: {tmp_path / 'toolkit'}" in result.stdout
