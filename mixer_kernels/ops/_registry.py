"""Finds the ops by their folders; names none."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def load_ops() -> dict[str, ModuleType]:
    """Return the ops: name -> its ``op`` module, with ``why_not(device) -> {backend: reason or None}``."""
    folder = Path(__file__).parent
    names = sorted(room.name for room in pkgutil.iter_modules([str(folder)]) if room.ispkg)
    return {name: importlib.import_module(f"mixer_kernels.ops.{name}.op") for name in names}
