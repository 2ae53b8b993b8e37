"""Every way to install, each into an environment of its own that sees the torch of this one.

Run by ``make package-check``; it needs a package index for pip's isolated builds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USE = (
    "import mixer_kernels, torch, mixer_kernels.functional as MF\n"
    "assert 'native' in mixer_kernels.available_backends('cpu'), mixer_kernels.available_backends('cpu')\n"
    "MF.spatial_shift(torch.randn(1, 3, 3, 4), backend='native')\n"
    "print('installed at', mixer_kernels.__file__)\n"
)


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command and show what it printed only if it failed."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}")
    print(result.stdout.splitlines()[-1] if result.stdout.strip() else "")


def fresh_environment(folder: Path) -> Path:
    """Create an environment that has the packages of this one, but not mixer_kernels; return its python."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "mixer_kernels" not in package.name:
            (site / package.name).symlink_to(package)
    return folder / "bin" / "python"


def main() -> None:
    """Build an sdist, a wheel from it, and install both ways."""
    # Optimising takes longer than all else, and this is about installing.
    os.environ["CXXFLAGS"] = "-O0"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--sdist", "--outdir", work / "dist", ROOT, cwd=work)
        (sdist,) = (work / "dist").glob("*.tar.gz")

        print("from the sdist, in an isolated build:")
        python = fresh_environment(work / "isolated")
        run(python, "-m", "pip", "install", "--no-deps", sdist, cwd=work)
        run(python, "-c", USE, cwd=work)

        print("as a wheel, without build isolation:")
        python = fresh_environment(work / "plain")
        run(python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", work / "wheel", sdist, cwd=work)
        (wheel,) = (work / "wheel").glob("*.whl")
        run(python, "-m", "pip", "install", "--no-deps", wheel, cwd=work)
        run(python, "-c", USE, cwd=work)


if __name__ == "__main__":
    main()
