"""The speedups of a result file as a bar chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import table

COLOURS = {
    "fwd": "#2f6db3",
    "fwd_": "#7fb0de",
    "bwd": "#c4622d",
    "bwd_": "#eaa87e",
    "fwd+bwd": "#5b8c5a",
    "dweight": "#8e6bb0",
}
INK, GRID = "#2b2b2b", "#dddddd"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the speedup of every group over the best of PyTorch and save it as PNG.

    Args:
        results: what a result file holds; at least one group has a speedup.
        path: where to save it.
    """
    # Figure without pyplot: no display and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [group for group in results["groups"] if group["speedup"] is not None]
    speedups = [group["speedup"] for group in groups]
    positions, ticks = _layout(groups)
    height = 2.0 + 0.27 * (positions[-1] + 1)
    figure = Figure(figsize=(10, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    # From 1x, to the right where we are faster and to the left where PyTorch is.
    bars = axes.barh(
        positions,
        [value - 1 for value in speedups],
        left=1,
        height=0.78,
        color=[COLOURS[group["pass"]] for group in groups],
        zorder=2,
    )
    for position, value in zip(positions, speedups, strict=True):
        axes.annotate(
            f"{value:.1f}x",
            (max(value, 1), position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks([position for position, _ in ticks], [text for _, text in ticks], fontsize=8, color=INK)
    axes.set_ylim(positions[-1] + 0.8, -0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min([0.5, *(value / 1.2 for value in speedups)]), max([2.0, *speedups]) * 1.35)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.axvline(1, color=INK, linewidth=1, zorder=3)
    axes.grid(axis="x", color=GRID, zorder=0)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.legend(
        handles=[
            bars[next(index for index, group in enumerate(groups) if group["pass"] == which)]
            for which in dict.fromkeys(group["pass"] for group in groups)
        ],
        labels=[table.PASSES[which] for which in dict.fromkeys(group["pass"] for group in groups)],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=5,
        fontsize=8,
        frameon=False,
        handlelength=1,
    )
    # As much room on the left as the longest label takes.
    labels = [label.get_window_extent().width for label in axes.get_yticklabels()]
    left = 0.03 + max(labels) / figure.bbox.width
    axes.set_position((left, 0.9 / height, 0.95 - left, 1 - 1.75 / height))
    figure.text(0.02, 1 - 0.32 / height, "Speed against the best of PyTorch", fontsize=13, weight="bold", color=INK)
    figure.text(
        0.02,
        0.16 / height,
        f"1x: the fastest of {_baselines(groups)}\n{caption(results)}",
        fontsize=7.5,
        color=INK,
        linespacing=1.5,
    )
    figure.savefig(path)


def caption(results: dict[str, Any]) -> str:
    """Return device, versions and date in one line."""
    device, versions = results["device"], results["versions"]
    where = device["name"]
    if device["type"] == "cpu":
        where += f", {device['threads']} threads"
        where += f", {device['isa']}" if device["isa"] else ""
    return f"{where}; mixer_kernels {versions['mixer_kernels']}, torch {versions['torch']}; {results['date']}"


def _layout(groups: list[dict[str, Any]]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where each bar stands, passes of one shape and dtype together, and the labels of these clusters."""
    clusters: dict[str, list[float]] = {}
    positions: list[float] = []
    for group in groups:
        text = f"{group['subject']}  {table.shape(group)}  {group['dtype']}"
        step = 1.0 if text in clusters else 1.6
        positions.append(positions[-1] + step if positions else 0.0)
        clusters.setdefault(text, []).append(positions[-1])
    return positions, [(sum(where) / len(where), text) for text, where in clusters.items()]


def _baselines(groups: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(
        contender["name"]
        for group in groups
        for contender in group["contenders"]
        if contender["role"] == "pytorch" and contender["status"] == "ok"
    )
    return "; ".join(names) or "PyTorch"
