"""Fused layers in place of plain ones, around the same parameters."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

from mixer_kernels.convert.sources import NotReplaceableError, build, class_name, find_source
from mixer_kernels.nn import S2Attention
from mixer_kernels.ops import _backend


@dataclass(frozen=True)
class Entry:
    """What became of one layer.

    Attributes:
        name: its name in the model, "" for the model itself.
        old: qualified name of its class before.
        new: qualified name of its class now; None if it was left.
        reason: why it was left; None if it was replaced.
    """

    name: str
    old: str
    new: str | None = None
    reason: str | None = None


class Report(list[Entry]):
    """What became of every layer that could have a fused form, in the order of the model; prints as a table."""

    def __str__(self) -> str:
        rows: Counter[tuple[str, ...]] = Counter()
        for entry in self:
            # One row for the same layer of every block.
            place = re.sub(r"\b\d+\b", "*", entry.name) or "(the model)"
            rows[place, entry.old, entry.new or f"left: {entry.reason}"] += 1
        replaced = sum(entry.new is not None for entry in self)
        table = [("", "layer", "was", "is"), *((f"{count} x", *row) for row, count in rows.items())]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([f"replaced {replaced} of {len(self)} layers", *(line.rstrip() for line in lines if self)])


def accelerate(model: nn.Module, *, backend: str | None = None) -> nn.Module:
    """Replace every layer of a model that has a fused form, in place, around the same parameters.

    It knows the layers of :mod:`mixer_kernels.reference` and timm's MLP-Mixer, ResMLP and ConvMixer. Parameters stay
    the same objects, so an optimizer stays valid, and state_dict keys stay what they are. A layer whose fused form
    would compute anything else (dropout, stochastic depth, another activation or norm, a subclass or wrapper of a
    part), is observed by hooks, or has no fused form yet is left. Apply it before ``torch.compile``, DDP and FSDP; a
    second call changes nothing.

    Args:
        model: a model, or one such layer.
        backend: passed to every new layer: "native", "triton", "reference" or None, the fastest that can run.

    Returns:
        The model; if it is itself a layer of timm's that was replaced, the new layer. Its attribute ``report``, a
        :class:`Report`, says what was replaced and what was left, and why.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the backend is none of these.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    _backend.check_backend("accelerate", backend)
    report = Report()
    model = _visit(model, "", backend, report, {})
    model.report = report  # type: ignore[assignment]
    return model


def _visit(
    module: nn.Module, name: str, backend: str | None, report: Report, done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Replace ``module`` or what is in it; return what stands in its place now."""
    if module in done:
        # A layer that the model holds twice.
        return done[module]
    done[module] = new = _replace(module, name, backend, report)
    # A fused attention takes the weights of its split attention, and never calls it.
    if new is module and not isinstance(new, S2Attention):
        for key, child in list(module._modules.items()):
            if child is not None:
                module._modules[key] = _visit(child, f"{name}.{key}".removeprefix("."), backend, report, done)
    return new


def _replace(module: nn.Module, name: str, backend: str | None, report: Report) -> nn.Module:
    """Return the fused layer of ``module``, or ``module``; report either if it is a layer of this library's kind."""
    source = find_source(module)
    if source is None:
        return module
    old = class_name(module)
    try:
        new = build(source, module, backend)
    except NotReplaceableError as error:
        report.append(Entry(name, old, reason=str(error)))
        return module
    report.append(Entry(name, old, new=class_name(new)))
    return new
