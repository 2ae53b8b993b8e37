"""What is compared: a group of contenders that do the same work on the same inputs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

Call = Callable[[], Any]

OURS, PYTORCH, CEILING = "ours", "pytorch", "ceiling"

# The inputs that a GPU's calls walk through are at least this many times its L2 cache.
CACHE_MULTIPLE = 4


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a group.

    Attributes:
        name: as shown in tables.
        role: ours, pytorch (a baseline), or ceiling (copies as many bytes; the fastest of them is what 100 % means).
        prepare: takes the group's inputs and returns the call to time; builds models and graphs, none of it timed.
        compiled: torch.compile made part of its code, whose sums may lose digits that eager PyTorch keeps.
    """

    name: str
    role: str
    prepare: Callable[..., Call]
    compiled: bool = False


@dataclass(frozen=True)
class Group:
    """Contenders that line up: one op or model, shape, dtype and pass.

    Attributes:
        subject: the op or model.
        kind: "op" or "model".
        shape: of the input.
        dtype: of the input and the weights.
        which: the pass.
        device: where it runs.
        contenders: the ways to do it; one of them is named "eager".
        make_inputs: returns fresh random inputs; autograd and in-place passes are prepared for in it.
        exact: takes inputs and returns the result in float64.
        in_place: the calls overwrite the first input.
        moved: bytes that the work has to read and write, or None where no such count is meaningful.
        moved_formula: how ``moved`` counts.
        flops: floating-point operations in matrix products and convolutions, or None.
    """

    subject: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    which: str
    device: torch.device
    contenders: tuple[Contender, ...]
    make_inputs: Callable[[], tuple[torch.Tensor, ...]]
    exact: Callable[..., Any]
    in_place: bool = False
    moved: int | None = None
    moved_formula: str = ""
    flops: int | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """The group in one line."""
        return f"{self.subject} {'x'.join(map(str, self.shape))} {self.dtype_name} {self.which}"

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """The autograd mode of every contender: inference for a forward alone."""
        return torch.inference_mode() if self.which in ("fwd", "fwd_") else contextlib.nullcontext()


class Arena:
    """A group's inputs, shared by its contenders, and the contenders' calls bound to them."""

    def __init__(self, group: Group) -> None:
        self.group = group
        first = group.make_inputs()
        self.inputs = [first, *(group.make_inputs() for _ in range(_copies(group, first) - 1))]
        self._pristine = [inputs[0].detach().clone() for inputs in self.inputs] if group.in_place else []

    def refresh(self) -> None:
        """Undo what in-place calls did to the inputs."""
        for inputs, pristine in zip(self.inputs, self._pristine, strict=False):
            inputs[0].copy_(pristine)

    def bind(self, contender: Contender) -> Call:
        """Return a call that takes the next of the inputs every time, beginning with the first."""
        with self.group.mode():
            calls = itertools.cycle([contender.prepare(*inputs) for inputs in self.inputs])
        return lambda: next(calls)()


def _copies(group: Group, inputs: Sequence[torch.Tensor]) -> int:
    # On a CPU the layer before has just written the input, and one tensor is used again and again. A GPU's L2 would
    # hold a whole input where a network's other layers evict it. A model evicts its own.
    if group.device.type != "cuda" or group.kind == "model":
        return 1
    size = sum(value.numel() * value.element_size() for value in inputs)
    return max(1, -(-CACHE_MULTIPLE * torch.cuda.get_device_properties(group.device).L2_cache_size // size))


def kernels(op: ModuleType, device: torch.device) -> list[str]:
    """Return the kernel backends that run an op on a device; Triton's interpreter on a CPU is for tests."""
    return [
        name
        for name, reason in op.why_not(device).items()
        if reason is None and name in op.IMPLEMENTATIONS and (name, device.type) != ("triton", "cpu")
    ]


def tensors(result: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a result, which is one or a sequence of them."""
    if isinstance(result, torch.Tensor):
        yield result
    else:
        yield from result
