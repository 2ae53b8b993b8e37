"""torch.compile as a contender."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def modes(device: torch.device, which: str) -> dict[str, str | None]:
    """Return contender name -> torch.compile's mode.

    A CUDA graph saves launches, which wins on small inputs, and copies its inputs, which loses on large ones: on a GPU
    a forward runs with and without.
    """
    if device.type != "cuda":
        return {"torch.compile": None}
    without_graph: dict[str, str | None] = {"torch.compile": "max-autotune-no-cudagraphs"}
    return without_graph | ({"torch.compile, CUDA graph": "max-autotune"} if which in ("fwd", "fwd_") else {})


def compile_function(function: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    """Return the function compiled for exactly the shapes that it meets."""
    _allow_many_shapes()
    return torch.compile(function, dynamic=False, mode=mode)


def compile_model(model: nn.Module, mode: str | None, by_block: bool) -> nn.Module:
    """Compile a model in place, as one graph or block by block.

    Blocks of one stage share their code, so that a model of 18 blocks takes the time of 2. The price is one call from
    Python a block, and no fusion across their borders.
    """
    _allow_many_shapes()
    blocks = [block for name, module in model.named_modules() if name.endswith("blocks") for block in module.children()]
    for module in blocks if by_block and blocks else [model]:
        module.compile(dynamic=False, mode=mode)
    return model


def _allow_many_shapes() -> None:
    import torch._dynamo
    import torch._functorch.config

    # The default limit of 8 variants a function silently runs the ninth shape in eager mode.
    torch._dynamo.config.recompile_limit = 512
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    # A backward that is timed alone runs many times over one graph.
    torch._functorch.config.donated_buffer = False
