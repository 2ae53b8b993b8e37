"""The few argument checks and their wording: ``<op>: <argument> must <rule>, got <value>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from mixer_kernels.ops._opaque_op import constant_while_tracing

_FORWARD_MODE = "forward mode"
FLOATING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a tensor of a floating dtype that the kernels know."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(f"{op}: {name} must have dtype float32, float16, bfloat16 or float64, got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {value.layout}")


def check_dims(op: str, name: str, value: torch.Tensor, dims: str) -> None:
    """Raise ValueError unless ``value`` has as many dimensions as ``dims``, such as "(B, H, W, C)", names."""
    count = dims.count(",") + 1
    if value.dim() != count:
        raise ValueError(f"{op}: {name} must have {count} dimensions {dims}, got shape {tuple(value.shape)}")


def check_shape(op: str, name: str, value: torch.Tensor, shape: Sequence[int | str], x: torch.Tensor) -> None:
    """Raise ValueError unless ``value`` has this shape, which goes with x's; a string stands for any size."""
    if value.shape == shape:  # nearly always, and the quickest to see
        return
    fits = value.dim() == len(shape) and all(
        isinstance(size, str) or value.shape[dim] == size for dim, size in enumerate(shape)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "")
        # Which of the two is wrong, only the caller knows.
        shapes = f"got shape {tuple(value.shape)} for x of shape {tuple(x.shape)}"
        raise ValueError(f"{op}: {name} must have shape ({wanted}), {shapes}")


def check_device(op: str, name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    """Raise RuntimeError unless ``value`` is on x's device."""
    if value.device != x.device:
        raise RuntimeError(f"{op}: {name} must be on x's device {x.device}, got {value.device}")


def check_like(op: str, name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    """Raise RuntimeError unless ``value`` is on x's device, TypeError unless it has x's dtype."""
    check_device(op, name, value, x)
    if value.dtype != x.dtype:
        raise TypeError(f"{op}: {name} must have x's dtype {x.dtype}, got {value.dtype}")


def check_operand(op: str, name: str, value: torch.Tensor, shape: Sequence[int | str], x: torch.Tensor) -> torch.Tensor:
    """Check a tensor of this shape, where a string stands for any size; return it in x's dtype.

    Under autocast ``x`` is in the dtype that the op runs in, and ``value`` is cast to it as well.
    """
    # Nearly always, and quick to see: on a small input the checks take as long as the kernel.
    if isinstance(value, torch.Tensor) and value.dtype == x.dtype and value.shape == shape and value.device == x.device:
        return value
    check_tensor(op, name, value)
    check_shape(op, name, value, shape, x)
    if autocasts(value) and autocasts(x):
        value = value.to(x.dtype)
    check_like(op, name, value, x)
    return value


def check_channel_parameter(
    op: str, name: str, value: torch.Tensor | None, x: torch.Tensor, channels: int
) -> torch.Tensor | None:
    """Check a parameter of the channels, in x's dtype or float32; return it as the kernels take it, contiguous.

    Under autocast it may be of another half type, and is float32 then.
    """
    if value is None:
        return None
    check_tensor(op, name, value)
    check_shape(op, name, value, (channels,), x)
    check_device(op, name, value, x)
    if value.dtype not in (x.dtype, torch.float32):
        if autocasts(value):
            return value.float().contiguous()
        raise TypeError(f"{op}: {name} must have x's dtype {x.dtype} or torch.float32, got {value.dtype}")
    return value.contiguous()


def autocast(value: torch.Tensor) -> torch.Tensor:
    """Return ``value`` in the dtype of autocast where it is on; float64 stays, as in PyTorch's own ops."""
    return value.to(torch.get_autocast_dtype(value.device.type)) if autocasts(value) else value


def promote(x: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
    """Return ``x`` in the dtype of its sum with the others and an update of autocast's dtype, where that is on."""
    if not autocasts(x):
        return x
    dtype = torch.get_autocast_dtype(x.device.type)
    for value in (x, *others):
        if isinstance(value, torch.Tensor):
            dtype = torch.promote_types(dtype, value.dtype)
    return x.to(dtype)


def autocasts(value: torch.Tensor) -> bool:
    """Return whether autocast is on where ``value`` is, and of concern for its dtype."""
    # Meta tensors have no autocast; torch.compile of torch 2.11 does not trace the question whether a device has it.
    device = value.device.type
    return device != "meta" and torch.is_autocast_enabled(device) and value.dtype != torch.float64


def check_writable(op: str, name: str, value: torch.Tensor) -> None:
    """Raise RuntimeError if writing ``value`` in place is an error for autograd or writes an element twice.

    PyTorch itself says so only after the kernel has run; here the input stays untouched.
    """
    if value.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
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


def needs_grad(*values: torch.Tensor | None) -> bool:
    """Return whether autograd records what is done to a tensor; where it does not, its Function is only overhead.

    Under forward-mode differentiation it always is: the Function refuses, where the op would drop the tangent.

    Raises:
        RuntimeError: a transform of torch.func would differentiate the op, which has no rules for these.
    """
    transforms = _transforms()
    if transforms:
        _refuse_derivatives(transforms, values)
        if _FORWARD_MODE in transforms:
            return True
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)


def is_inference() -> bool:
    """Return whether nothing is differentiated here, in either direction, whatever requires grad."""
    return not torch.is_grad_enabled() and not is_transformed()


def is_transformed() -> bool:
    """Return whether a transform of torch.func, or forward mode, is under way."""
    return bool(_transforms())


def wanted(gradients: Sequence[torch.Tensor | None], needs: Sequence[bool]) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of the inputs that need one, None for the others."""
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=False))


# torch.compile calls it while it traces, inside of the transforms that it traces, and compiles again where they change.
@constant_while_tracing
def _transforms() -> tuple[str, ...]:
    """Return the transforms of torch.func that are under way, such as "Grad" or "Vmap", and forward mode."""
    stack, level = get_interpreter_stack(), forward_ad._current_level
    if stack is None and level < 0:
        return ()
    names = tuple(interpreter.key().name for interpreter in stack or ())
    return names if level < 0 else (*names, _FORWARD_MODE)


def _refuse_derivatives(transforms: tuple[str, ...], values: Sequence[torch.Tensor | None]) -> None:
    # The op itself would pass for a constant there.
    if torch.compiler.is_compiling():
        # What requires grad outside of the transforms does not show.
        refused = torch.is_grad_enabled() or _FORWARD_MODE in transforms
    else:
        refused = "Jvp" in transforms or (torch.is_grad_enabled() and any(_requires_grad(value) for value in values))
    if refused:
        raise RuntimeError(
            "mixer_kernels: derivatives by torch.func (grad, vjp, jvp, or through vmap) and compiled forward mode "
            "need backend='reference'; vmap alone works under torch.no_grad()"
        )


def _requires_grad(value: torch.Tensor | None) -> bool:
    """Return whether a tensor requires grad on any level of transforms."""
    while value is not None and is_functorch_wrapped_tensor(value):
        if value.requires_grad:
            return True
        value = get_unwrapped(value)
    return value is not None and value.requires_grad


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
