"""Triton where it is installed; elsewhere stand-ins, under which a kernel is a plain function that nobody calls."""

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:
    tl = None

    def jit(function: Any = None, **_: Any) -> Any:
        """Leave a function alone; `why_not` of its room gives the reason."""
        return function if function is not None else jit


__all__ = ["jit", "tl"]
