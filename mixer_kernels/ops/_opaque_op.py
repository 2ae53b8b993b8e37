"""Functions that tracing must not enter: behind PyTorch's dispatcher, those that launch Triton kernels above all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_while_tracing(function: Function) -> Function:
    """Make Dynamo call a function while it traces, and take what it returns for a constant.

    As ``torch.compiler.assume_constant_result``, which imports Dynamo: that takes longer than all else here.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def opaque_op(
    name: str, fake: Callable[..., Any], mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function the op ``mixer_kernels::<name>``.

    The same as ``torch.library.custom_op`` without what that prepares for in Python at every call, and what takes about
    as long as launching a kernel: a backward, which these ops leave to autograd Functions, and results that alias.

    Args:
        name: the op's.
        fake: takes the same arguments and returns tensors without values.
        mutates: names of arguments that the function writes to.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        qualified = f"mixer_kernels::{name}"
        schema = torch.library.infer_schema(function, mutates_args=mutates)
        torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
        # Where Dynamo gives up a frame, it goes on with the functions that the frame calls, this one too.
        torch.library.impl(qualified, ("cpu", "cuda"), _disable_dynamo(function))
        torch.library.register_fake(qualified, fake)
        overload: Callable[..., Any] = getattr(torch.ops.mixer_kernels, name).default
        return overload

    return decorate
