"""Whether Triton kernels can run on a device."""

from __future__ import annotations

import importlib.util
import os

import torch

_INSTALLED = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Return whether Triton runs its kernels in the interpreter, on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(device: torch.device) -> str | None:
    """Return None if Triton kernels run on this device, else the reason."""
    if not _INSTALLED:
        return "triton is not installed"
    if device.type == "cuda":
        return None
    if device.type == "cpu" and interpreting():
        return None
    return f"triton kernels need a GPU (or TRITON_INTERPRET=1, to test), got device {device.type!r}"


def target() -> str:
    """Return the chip that kernels are compiled for: "sm_90", "gfx942"; of the current device, without one sm_90."""
    if interpreting():
        return "sm_90"
    from triton.runtime import driver

    current = driver.active.get_current_target()
    return f"sm_{current.arch}" if current.backend == "cuda" else str(current.arch)
