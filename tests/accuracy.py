"""An op against its reference: outputs and gradients, in any layout, held to the rule of tolerances.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tolerances import assert_as_accurate

Tensors = Sequence[torch.Tensor | None]
Function = Callable[..., torch.Tensor]
Arrange = Callable[[torch.Tensor], torch.Tensor]

# Name -> how to turn a contiguous (B, S, C) tensor into one of the same values.
LAYOUTS: dict[str, Arrange] = {
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch_last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "slice": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
    "every_other": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
    "misaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
}

# The same for a (B, H, W, C) tensor.
MAP_LAYOUTS: dict[str, Arrange] = {
    "channels_first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "width_first": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    **{name: LAYOUTS[name] for name in ("slice", "every_other", "misaligned")},
}


def as_it_is(x: torch.Tensor) -> torch.Tensor:
    """Leave a tensor in its layout."""
    return x


def in_float64(inputs: Tensors) -> Tensors:
    """Return the inputs in float64."""
    return [None if value is None else value.double() for value in inputs]


def with_gradients(
    function: Function, inputs: Tensors, dy: torch.Tensor | None = None, arrange: Arrange = as_it_is
) -> list[torch.Tensor]:
    """Return the output and the gradients of all inputs that take part."""
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in inputs]
    y = function(arrange(leaves[0]), *leaves[1:])
    y.backward(torch.ones((), dtype=y.dtype, device=y.device).expand(y.shape) if dy is None else dy.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


def assert_accurate(
    ours: Function,
    reference: Function,
    make_inputs: Callable[[], Tensors],
    arrange: Arrange = as_it_is,
    *,
    few: int = 32,
    update: bool = False,
) -> None:
    """Hold the output and every gradient to the rule, pooled until none has only a few elements.

    Args:
        ours: what is tested.
        reference: takes the same inputs.
        make_inputs: returns fresh inputs.
        arrange: gives ``ours`` its first input and the output's gradient in another layout.
        few: the ratio of two errors of fewer elements is luck.
        update: hold what the op adds to its first input to the rule as well: where that is little, it cannot be seen
            in the output.
    """
    pooled: list[list[torch.Tensor]] = [[], [], []]
    while not pooled[0] or min(value.numel() for value in pooled[0]) < few:
        inputs = make_inputs()
        dy = torch.randn_like(reference(*inputs))
        results = (
            with_gradients(ours, inputs, arrange(dy), arrange),
            with_gradients(reference, inputs, dy),
            with_gradients(reference, in_float64(inputs), dy),
        )
        assert all(value.is_contiguous() for value in results[0])
        for pool, result in zip(pooled, results, strict=True):
            if update:
                result.insert(1, (result[0].double() - inputs[0].double()).to(result[0].dtype))
            pool[:] = [
                torch.cat([before, value.flatten()])
                for before, value in zip(pool or [value.new_empty(0) for value in result], result, strict=True)
            ]
    for actual, pytorch, exact in zip(*pooled, strict=True):
        assert_as_accurate(actual, pytorch, exact)
