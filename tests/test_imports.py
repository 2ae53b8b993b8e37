"""Holds the direction of imports and includes: the arrows of the layout point one way, and rooms never meet.

And what importing the package does not import.
"""

from __future__ import annotations

import ast
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "mixer_kernels"

# An import may only go to a lower layer, or stay within its own part of the package.
LAYERS = (
    ("ops/_*",),
    ("ops/<op>",),
    ("reference", "functional", "autograd"),
    ("nn",),
    ("convert", "models"),
    ("__main__",),
)
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}

TORCH_HEADER = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def import_violations(root: Path) -> list[str]:
    """Return every import of the package under ``root`` that goes against the arrows, as "importer -> imported"."""
    modules = {_module_name(path, root): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    return [
        f"{importer} -> {imported}"
        for importer, path in modules.items()
        for imported in _imports(importer, path, modules)
        if not _may_import(importer, imported)
    ]


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(importer: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, anywhere in it."""
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # `from package import name` imports a module if there is one of that name; folders need no __init__.
            names = [full if _exists(full := f"{base}.{alias.name}", modules) else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == PACKAGE)


def _exists(name: str, modules: dict[str, Path]) -> bool:
    return any(module == name or module.startswith(name + ".") for module in modules)


def _part(module: str) -> str | None:
    """Return the part of LAYERS that a module is of; None for the package itself, which shows everything."""
    _, *names = module.split(".")
    if not names:
        return None
    if names[0] == "ops" and len(names) > 1:
        return "ops/_*" if names[1].startswith("_") else "ops/<op>"
    return names[0]


def _may_import(importer: str, imported: str) -> bool:
    source, target = _part(importer), _part(imported)
    if source is None or target == "_version":
        return True
    if source not in LEVELS or target not in LEVELS:
        return False
    if source == "ops/<op>" and target == "ops/<op>":
        return importer.split(".")[2] == imported.split(".")[2]
    if source == "reference" and target != "reference":
        # The reference modules are the oracle: of an op they may take its plain equation only.
        return target == "ops/<op>" and imported.split(".")[3:4] == ["reference"]
    return source == target or LEVELS[target] < LEVELS[source]


def include_violations(csrc: Path) -> list[str]:
    """Return every include of the C++ tree that breaks a rule, as "file -> header".

    ``csrc/<room>/`` includes its own folder and ``common/``; ``<op>.h`` and ``*_kernels.cuh`` reach no torch header,
    through no other header either.
    """
    files = {path.relative_to(csrc).as_posix(): path for path in sorted(csrc.rglob("*")) if path.is_file()}
    includes = {name: INCLUDE.findall(path.read_text(encoding="utf-8")) for name, path in files.items()}
    found = []
    for name in includes:
        room, _, file = name.rpartition("/")
        if not room:
            continue
        for header in includes[name]:
            other = _resolve(name, header, files).partition("/")[0]
            if (csrc / other).is_dir() and other not in (room, "common"):
                found.append(f"{name} -> {header}")
        if file == f"{room}.h" or file.endswith("_kernels.cuh"):
            found += [f"{name} -> {header}" for header in _reached(name, includes, files) if TORCH_HEADER.match(header)]
    return found


def _resolve(name: str, header: str, files: dict[str, Path]) -> str:
    """Return a header's path in the tree: beside the file that includes it, or from the root; as written if neither."""
    beside = posixpath.normpath(f"{posixpath.dirname(name)}/{header}")
    return beside if beside in files else header


def _reached(name: str, includes: dict[str, list[str]], files: dict[str, Path]) -> set[str]:
    """Return every header that a file includes, itself or through others."""
    reached: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        new = {_resolve(current, header, files) for header in includes.get(current, [])} - reached
        reached |= new
        pending += new
    return reached


def test_python_imports_point_one_way() -> None:
    assert import_violations(ROOT) == []


def test_cpp_includes_point_one_way() -> None:
    assert include_violations(ROOT / "csrc") == []


@pytest.mark.parametrize(
    ("path", "line", "imported"),
    [
        ("ops/_checks.py", "from mixer_kernels.ops.shift import op", "ops.shift.op"),
        ("ops/shift/op.py", "import mixer_kernels.ops.mix.reference", "ops.mix.reference"),
        ("ops/shift/op.py", "from ..mix import reference", "ops.mix.reference"),
        ("ops/shift/op.py", "from mixer_kernels import functional", "functional"),
        ("ops/shift/op.py", "def f():\n    from mixer_kernels.nn import layer", "nn.layer"),
        ("ops/shift/op.py", "import mixer_kernels", None),
        ("functional.py", "from mixer_kernels import nn", "nn"),
        ("functional.py", "from mixer_kernels import autograd", "autograd"),
        ("reference/shift.py", "from mixer_kernels.ops.shift.op import shift", "ops.shift.op"),
        ("reference/shift.py", "from mixer_kernels.ops import _checks", "ops._checks"),
        ("reference/shift.py", "from mixer_kernels import functional as MF", "functional"),
        ("nn/layer.py", "from .. import models", "models"),
        ("models/net.py", "from mixer_kernels.convert import fuse", "convert.fuse"),
        ("utils.py", "from mixer_kernels import nn", "nn"),
    ],
)
def test_planted_import_is_found(tmp_path: Path, path: str, line: str, imported: str | None) -> None:
    tree = {
        "__init__.py": "from mixer_kernels import functional, nn",
        "__main__.py": "from mixer_kernels import convert, models\nfrom mixer_kernels.ops import _checks",
        "_version.py": "",
        "ops/_checks.py": "import torch\nfrom mixer_kernels.ops import _native",
        "ops/_native.py": "",
        "ops/shift/__init__.py": "from mixer_kernels.ops.shift.op import shift",
        "ops/shift/op.py": "from mixer_kernels.ops import _checks\nfrom . import reference",
        "ops/shift/reference.py": "",
        "ops/mix/reference.py": "",
        "functional.py": "from mixer_kernels.ops.shift import shift",
        "autograd.py": "",
        "reference/__init__.py": "from .shift import Shift",
        "reference/shift.py": "from mixer_kernels.ops.shift.reference import shift",
        "nn/layer.py": "from mixer_kernels import functional as MF, reference",
        "models/net.py": "from mixer_kernels import nn\nfrom mixer_kernels.reference.shift import Shift",
        "convert/fuse.py": "from mixer_kernels.nn import layer\nfrom mixer_kernels._version import __version__",
    }
    _write(tmp_path / PACKAGE, tree)
    assert import_violations(tmp_path) == []
    _write(tmp_path / PACKAGE, {path: f"{tree.get(path, '')}\n{line}\n"})
    importer = ".".join([PACKAGE, *Path(path).with_suffix("").parts])
    assert import_violations(tmp_path) == [f"{importer} -> {'.'.join(filter(None, [PACKAGE, imported]))}"]


@pytest.mark.parametrize(
    ("path", "header", "found"),
    [
        ("shift/shift_cpu.cpp", '"mix/mix.h"', "mix/mix.h"),
        ("shift/shift_cpu.cpp", '"../mix/mix.h"', "../mix/mix.h"),
        ("common/vector.h", '"mix/mix.h"', "mix/mix.h"),
        ("shift/shift.h", "<torch/library.h>", "torch/library.h"),
        ("shift/shift_kernels.cuh", "<c10/util/Half.h>", "c10/util/Half.h"),
        ("shift/shift_kernels.cuh", '"common/dispatch.h"', "ATen/Dispatch.h"),
    ],
)
def test_planted_include_is_found(tmp_path: Path, path: str, header: str, found: str) -> None:
    tree = {
        "library.cpp": '#include <torch/library.h>\n#include "shift/shift.h"',
        "common/dispatch.h": "#include <ATen/Dispatch.h>",
        "common/vector.h": "#include <cstdint>",
        "mix/mix.h": "",
        "shift/shift.h": "#include <cstdint>",
        "shift/shift_kernels.cuh": '#include "shift.h"\n#include "common/vector.h"',
        "shift/shift_cpu.cpp": '#include <torch/library.h>\n#include "common/dispatch.h"\n#include "shift/shift.h"',
    }
    _write(tmp_path, tree)
    assert include_violations(tmp_path) == []
    _write(tmp_path, {path: f"{tree[path]}\n#include {header}\n"})
    # A header's fault is that of each file it reaches, too.
    assert f"{path} -> {found}" in include_violations(tmp_path)


def _write(root: Path, tree: dict[str, str]) -> None:
    for name, text in tree.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def test_importing_leaves_the_compiler_alone() -> None:
    # Dynamo takes longer to import than all else here.
    script = "import sys, mixer_kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
