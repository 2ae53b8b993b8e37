"""The few argument checks and their wording: ``<op>: <argument> must <rule>, got <value>``."""

from __future__ import annotations

from typing import Any

import torch

FLOATING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a tensor of a floating dtype that the kernels know."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(f"{op}: {name} must have dtype float32, float16, bfloat16 or float64, got {value.dtype}")


def check_dims(op: str, name: str, value: torch.Tensor, dims: str) -> None:
    """Raise ValueError unless ``value`` has as many dimensions as ``dims``, such as "(B, H, W, C)", names."""
    count = dims.count(",") + 1
    if value.dim() != count:
        raise ValueError(f"{op}: {name} must have {count} dimensions {dims}, got shape {tuple(value.shape)}")


def check_writable(op: str, name: str, value: torch.Tensor) -> None:
    """Raise RuntimeError if writing ``value`` in place is an error for autograd or writes an element twice.

    PyTorch itself says so only after the kernel has run; here the input stays untouched.
    """
    if needs_grad(value) and not torch.compiler.is_compiling():
        base = value._base
        if value.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
            raise RuntimeError(f"{op}: {name} must not be a leaf that requires grad, nor a view of one, got one")
        # A DEFAULT creation meta is autograd's word for a view that may be written.
        meta = torch._C._autograd._get_creation_meta(value) if value._is_view() else None
        if meta not in (None, torch._C._autograd.CreationMeta.DEFAULT):
            raise RuntimeError(
                f"{op}: {name} must not be a view that autograd cannot track, such as an output of chunk or split, "
                "got one"
            )
    if _may_overlap(value):
        raise RuntimeError(
            f"{op}: {name} must not overlap itself in memory, "
            f"got shape {tuple(value.shape)} and strides {value.stride()}"
        )


def needs_grad(*values: torch.Tensor) -> bool:
    """Return whether autograd records what is done to a tensor; where it does not, its Function is only overhead."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in values)


def _may_overlap(value: torch.Tensor) -> bool:
    if value.is_contiguous():
        return False
    steps = [(stride, size) for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    if torch.compiler.is_compiling():
        # Symbolic strides cannot be sorted; an expanded dimension shows all the same.
        return any(stride == 0 for stride, _ in steps)
    # From the smallest stride up, each dimension has to step over everything the ones before it reach.
    reach = 0
    for stride, size in sorted(steps):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
