"""Loads the compiled extension once; says why it could not."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def _load() -> tuple[ModuleType | None, str | None]:
    # The import registers every op of csrc/ with PyTorch's dispatcher.
    try:
        return importlib.import_module("mixer_kernels._C"), None
    except ModuleNotFoundError as error:
        if error.name != "mixer_kernels._C":
            raise
        return None, "the compiled extension is not built (a C++ compiler is needed: `pip install -e .` builds it)"
    except ImportError as error:
        return None, f"the compiled extension does not load with torch {torch.__version__}: {error}"


extension, _error = _load()
_has_cuda = extension is not None and bool(extension.build_info()["cuda_archs"])


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if native kernels run on this device, else the reason.

    Args:
        device: where they are to run.
        dtype: that of the call, given by ops that have no CUDA kernels for float64.
    """
    if extension is None:
        return _error
    if device.type == "cpu":
        return None
    if device.type == "cuda" and dtype == torch.float64:
        return "there are no native CUDA kernels of this op for float64"
    if device.type == "cuda":
        if _has_cuda:
            return None
        return "the extension was built without CUDA (nvcc and a CUDA build of torch are needed when it is built)"
    return f"there are no native kernels for device {device.type!r}"
