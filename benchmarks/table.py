"""Results as rows of text: for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEADINGS = (
    "what",
    "shape",
    "dtype",
    "pass",
    "ours, ms",
    "with",
    "best of PyTorch, ms",
    "which",
    "speedup",
    "rate",
    "of ceiling",
)
PASSES = {
    "fwd": "forward",
    "fwd_": "forward, in place",
    "bwd": "backward",
    "bwd_": "backward, in place",
    "fwd+bwd": "forward + backward",
    "dweight": "gradient of the weight",
}
DASH = "-"


def rows(groups: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return one row of cells for every group of a result file."""
    return [_row(group) for group in groups]


def as_text(groups: Sequence[dict[str, Any]]) -> str:
    """Return an aligned table for a terminal."""
    cells = [list(HEADINGS), *rows(groups)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(groups: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [list(HEADINGS), *rows(groups)]]
    return "\n".join([lines[0], "|" + " --- |" * len(HEADINGS), *lines[1:]])


def details(groups: Sequence[dict[str, Any]]) -> str:
    """Return the time and peak memory of every contender, group by group; on a GPU also the time to launch it."""
    lines = []
    for group in groups:
        lines.append(label(group))
        for record in group["contenders"]:
            if "median_ms" in record:
                lower, upper = record["quartiles_ms"]
                launch = f"{record['launch_ms']:9.4g} ms to launch" if "launch_ms" in record else ""
                lines.append(
                    f"  {record['name']:<40}{record['median_ms']:9.4g} ms  ({lower:.4g} to {upper:.4g})"
                    f"{record['peak_bytes'] / 2**20:10.1f} MiB{launch}"
                )
    return "\n".join(lines)


def complaints(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every contender that was not timed, or is less accurate than ours may be."""
    return [
        f"{label(group)}: {contender['name']} {contender['status']}: {contender['reason']}"
        for group in groups
        for contender in group["contenders"]
        if contender["status"] != "ok"
    ]


def untimed(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Return, for each baseline that was not timed somewhere, where and why."""
    places: dict[str, list[str]] = {}
    for group in groups:
        for record in group["contenders"]:
            if record["role"] == "pytorch" and record["status"] in ("wrong", "failed"):
                places.setdefault(f"{record['name']} ({record['status']})", []).append(label(group))
    return [f"{name}: {'; '.join(where)}" for name, where in places.items()]


def label(group: dict[str, Any]) -> str:
    """Return a group in one line."""
    return f"{group['subject']} {shape(group)} {group['dtype']}, {PASSES[group['pass']]}"


def shape(group: dict[str, Any]) -> str:
    """Return the shape as a tuple; a model's as its batch."""
    return f"batch {group['shape'][0]}" if group["kind"] == "model" else str(tuple(group["shape"]))


def contender(group: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Return the record of a contender; empty where there is none."""
    return next((record for record in group["contenders"] if record["name"] == name), {})


def _row(group: dict[str, Any]) -> list[str]:
    ours, best = contender(group, group["ours"]), contender(group, group["best_pytorch"])
    if "images_per_second" in ours:
        rate = f"{ours['images_per_second']:.1f} images/s"
    elif "tflops" in ours:
        rate = f"{ours['tflops']:.3f} TFLOP/s"
    elif "gbps" in ours:
        rate = f"{ours['gbps']:.1f} GB/s"
    else:
        rate = DASH
    return [
        group["subject"],
        shape(group),
        group["dtype"],
        PASSES[group["pass"]],
        _number(ours.get("median_ms"), "{:.3g}"),
        group["ours"] or DASH,
        _number(best.get("median_ms"), "{:.3g}"),
        group["best_pytorch"] or DASH,
        _number(group["speedup"], "{:.2f}x"),
        rate,
        _number(ours.get("percent_of_ceiling"), "{:.0f} %"),
    ]


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else form.format(value)
