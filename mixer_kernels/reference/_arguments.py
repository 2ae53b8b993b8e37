"""What several reference modules ask of their constructor arguments."""

from __future__ import annotations

from torch import nn

# Those of the fused layers; the reference knows nothing of kernels.
BACKENDS = ("native", "triton", "reference")


def check_sizes(owner: str, **sizes: int) -> None:
    """Raise ValueError unless every size is a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{owner}: {name} must be a positive integer, got {size!r}")


def checked_backend(owner: str, backend: str | None) -> str | None:
    """Return the backend; raise ValueError if it is neither one nor None."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"{owner}: backend must be one of {BACKENDS} or None, got {backend!r}")
    return backend


def make_activation(name: str | None) -> nn.Module:
    """Return the module of an activation's name.

    Args:
        name: None (identity), "relu", "gelu" (with erf) or "gelu_tanh".

    Raises:
        ValueError: the name is none of these.
    """
    if name is None:
        return nn.Identity()
    if name == "relu":
        return nn.ReLU()
    if name == "gelu":
        return nn.GELU()
    if name == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    raise ValueError(f"activation: name must be None, 'relu', 'gelu' or 'gelu_tanh', got {name!r}")
