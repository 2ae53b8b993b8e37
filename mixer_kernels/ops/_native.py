"""Loads the compiled extension once; says why it could not."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from mixer_kernels.ops._opaque_op import constant_while_tracing


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
_cuda_archs: str = extension.build_info()["cuda_archs"] if extension is not None else ""


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Say what the op ``mixer_kernels::<name>`` of the extension returns, without the values.

    Raises:
        ImportError: the extension has no such op.
    """
    if extension is None:
        return
    if not hasattr(torch.ops.mixer_kernels, name):
        raise ImportError(
            f"mixer_kernels: the compiled extension has no op {name!r}, for it is older than the rest of the package; "
            "build it again (`pip install -e .`)"
        )
    torch.library.register_fake(f"mixer_kernels::{name}", fake)


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
        if not _cuda_archs:
            return "the extension was built without CUDA (nvcc and a CUDA build of torch are needed when it is built)"
        if not _has_code_for(device):
            return f"the extension was built for {_cuda_archs}, not for this GPU (set TORCH_CUDA_ARCH_LIST and rebuild)"
        return None
    return f"there are no native kernels for device {device.type!r}"


# torch.compile cannot trace what it asks; the answer is the same for the whole process.
@constant_while_tracing
def _has_code_for(device: torch.device) -> bool:
    # Fake tensors may be on a device that is not there.
    return not torch.cuda.is_available() or runs_on(_cuda_archs, *torch.cuda.get_device_capability(device))


@functools.cache
def runs_on(archs: str, major: int, minor: int) -> bool:
    """Return whether code that was compiled for ``archs``, as in TORCH_CUDA_ARCH_LIST, runs on a compute capability."""
    for arch in re.split(r"[; ]+", archs):
        match = re.fullmatch(r"(\d+)\.(\d)(a|f)?(\+PTX)?", arch)
        if match is None:
            # A name such as Hopper: nobody knows here what torch took it for.
            return True
        least, suffix, has_ptx = (int(match[1]), int(match[2])), match[3], match[4] is not None
        if suffix == "a":
            runs = (major, minor) == least
        else:
            runs = (major == least[0] or (has_ptx and suffix is None)) and (major, minor) >= least
        if runs:
            return True
    return False
