"""Result files: where they lie, what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "results"

# Runs of anybody's machine land here, outside version control; what is published lies directly under ROOT.
LOCAL = ROOT / "local"

SCHEMA = 1
KEYS = {
    "schema",
    "preset",
    "device",
    "versions",
    "date",
    "load_average",
    "conditions",
    "ceilings",
    "unavailable",
    "groups",
}

CONDITIONS = (
    "Medians of interleaved rounds in random order, fresh random data, each result checked against float64 before "
    "anything is timed. Ops: on a CPU one tensor used again and again; on a GPU inputs rotated beyond its L2 cache. "
    "On a GPU its own time counts: calls are queued while it sleeps. Peak memory: of PyTorch's allocator during a call."
)


def save(results: dict[str, Any], folder: Path) -> Path:
    """Write results to <folder>/<device>/<preset>.json and return the path."""
    path = folder / str(results["device"]["slug"]) / f"{results['preset']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: it is not one of this version.
    """
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or results.get("schema") != SCHEMA or KEYS - results.keys():
        raise ValueError(f"{path} is not a result file of schema {SCHEMA}")
    return results


def published(root: Path = ROOT) -> list[tuple[Path, dict[str, Any]]]:
    """Return one result file for every published device: the full preset's where there is one."""
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir() and path.name != LOCAL.name):
        files = [folder / f"{preset}.json" for preset in ("full", "quick")]
        found += [(path, load(path)) for path in files if path.exists()][:1]
    return found
