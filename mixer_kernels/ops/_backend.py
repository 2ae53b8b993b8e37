"""Choosing a backend: argument > ``use_backend()`` context > automatic order. Names no op."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from mixer_kernels.ops import _native, _triton

logger = logging.getLogger("mixer_kernels")

NATIVE = "native"
TRITON = "triton"
REFERENCE = "reference"
BACKENDS = (NATIVE, TRITON, REFERENCE)

# A plain global, because torch.compile guards on it and recompiles on a change. It cannot trace ContextVar.get, and
# does not guard on the attributes of a thread-local.
_requested: str | None = None

# Those of all contexts that are entered, in this order; the last one counts.
_requests: list[str | None] = []


def check_backend(caller: str, backend: str | None) -> None:
    """Raise ValueError unless ``backend`` is None or one of :data:`BACKENDS`."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"{caller}: backend must be one of {BACKENDS} or None, got {backend!r}")


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Ask for a backend in every op called inside the ``with`` block.

    A ``backend=`` argument wins over the context; None restores the automatic choice. As with the argument, an op
    that cannot run on the named backend raises instead of falling back. The request holds for every thread of the
    process.

    Args:
        name: "native", "triton", "reference" or None.

    Raises:
        ValueError: the name is not a backend.
    """
    check_backend("use_backend", name)
    global _requested
    _requests.append(name)
    _requested = name
    try:
        yield
    finally:
        # The last of its name: another thread may have entered a context since, which goes on.
        del _requests[len(_requests) - 1 - _requests[::-1].index(name)]
        _requested = _requests[-1] if _requests else None


def available_backends(device: torch.device | str | None = None) -> tuple[str, ...]:
    """Return the backends that can run on a device, fastest first.

    Args:
        device: the device to ask about; by default "cuda" if PyTorch sees a GPU, else "cpu".

    Returns:
        A tuple of names out of "native", "triton" and "reference"; the last is always there.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reasons = {NATIVE: _native.why_not(where), TRITON: _triton.why_not(where), REFERENCE: None}
    return tuple(name for name in BACKENDS if reasons[name] is None)


def requested(op: str, backend: str | None) -> str | None:
    """Return the backend that is asked for, by the caller or else by the context, if one is."""
    if backend is None:
        return _requested
    check_backend(op, backend)
    return backend


def cannot_run(op: str, name: str, reason: str) -> RuntimeError:
    """Return the error for a backend that was asked for and cannot run."""
    return RuntimeError(f"{op}: backend {name!r} cannot run this call: {reason}")


def choose(op: str, backend: str | None, order: Sequence[str], implementations: Mapping[str, Any], *args: Any) -> str:
    """Return the name of the implementation that runs this call.

    Args:
        op: the op's name, for messages.
        backend: the caller's explicit request, or None.
        order: names in the automatic order of this device; the reference stands behind them and takes everything.
        implementations: name -> module with ``why_not(*args) -> str | None``, for all backends but the reference.
        *args: what ``why_not`` looks at.

    Raises:
        ValueError: the request is not a backend.
        RuntimeError: the requested backend cannot take these arguments.
    """
    name = requested(op, backend)
    if name == REFERENCE:
        return REFERENCE
    if name is not None:
        reason = implementations[name].why_not(*args)
        if reason is not None:
            raise cannot_run(op, name, reason)
        return name
    for name in order:
        reason = implementations[name].why_not(*args)
        if reason is None:
            return name
        if not torch.compiler.is_compiling():
            logger.debug("%s: skipping %s: %s", op, name, reason)
    return REFERENCE


def reasons(implementations: Mapping[str, Any], device: torch.device) -> dict[str, str | None]:
    """Return, for each backend, None if it runs an op on the device, else the reason."""
    why_not = {name: implementation.why_not(device) for name, implementation in implementations.items()}
    return why_not | {REFERENCE: None}
