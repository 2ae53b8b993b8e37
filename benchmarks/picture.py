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
    from matplotlib.patches import Patch

    groups = [group for group in results["groups"] if group["speedup"] is not None]
    rows, ticks = _layout(groups)
    height = 2.0 + 0.27 * (max(rows.values()) + 1)
    figure = Figure(figsize=(10, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    dtypes = list(dict.fromkeys(group["dtype"] for group in groups))
    panels = [figure.add_axes((0, 0, 1, 1), label=dtype) for dtype in dtypes]
    for axes, dtype in zip(panels, dtypes, strict=True):
        _draw_bars(axes, [group for group in groups if group["dtype"] == dtype], rows)
        axes.set_title(dtype, fontsize=9, color=INK)
        axes.set_yticks([])
        axes.set_ylim(max(rows.values()) + 0.8, -0.8)
        axes.set_xlim(_limits(groups))
    panels[0].set_yticks([row for row, _ in ticks], [text for _, text in ticks], fontsize=8, color=INK)
    # As much room on the left as the longest label takes.
    left = 0.03 + max(label.get_window_extent().width for label in panels[0].get_yticklabels()) / figure.bbox.width
    width = (0.97 - left) / len(panels)
    for column, axes in enumerate(panels):
        axes.set_position((left + column * width, 0.9 / height, width - 0.02, 1 - 1.9 / height))
    passes = list(dict.fromkeys(group["pass"] for group in groups))
    figure.legend(
        handles=[Patch(color=COLOURS[which]) for which in passes],
        labels=[table.PASSES[which] for which in passes],
        loc="upper right",
        bbox_to_anchor=(0.97, 1 - 0.45 / height),
        ncols=5,
        fontsize=8,
        frameon=False,
        handlelength=1,
    )
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


def _layout(groups: list[dict[str, Any]]) -> tuple[dict[tuple[str, str], float], list[tuple[float, str]]]:
    """Return the row of each shape and pass, passes of one shape together, and the labels of these clusters."""
    clusters: dict[str, list[str]] = {}
    for group in groups:
        passes = clusters.setdefault(_cluster(group), [])
        if group["pass"] not in passes:
            passes.append(group["pass"])
    rows: dict[tuple[str, str], float] = {}
    ticks = []
    top = 0.0
    for text, passes in clusters.items():
        for which in passes:
            rows[text, which] = top
            top += 1
        ticks.append((top - (len(passes) + 1) / 2, text))
        top += 0.6
    return rows, ticks


def _draw_bars(axes: Any, groups: list[dict[str, Any]], rows: dict[tuple[str, str], float]) -> None:
    """From 1x, to the right where we are faster and to the left where PyTorch is."""
    for group in groups:
        row, speedup = rows[_cluster(group), group["pass"]], group["speedup"]
        axes.barh(row, speedup - 1, left=1, height=0.78, color=COLOURS[group["pass"]], zorder=2)
        axes.annotate(
            f"{speedup:.1f}x",
            (max(speedup, 1), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.axvline(1, color=INK, linewidth=1, zorder=3)
    axes.grid(axis="x", color=GRID, zorder=0)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _limits(groups: list[dict[str, Any]]) -> tuple[float, float]:
    speedups = [group["speedup"] for group in groups]
    return min([0.7, *(value / 1.2 for value in speedups)]), max([2.0, *speedups]) * 1.8


def _cluster(group: dict[str, Any]) -> str:
    return f"{group['subject']}  {table.shape(group)}"


def _baselines(groups: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(
        contender["name"]
        for group in groups
        for contender in group["contenders"]
        if contender["role"] == "pytorch" and "median_ms" in contender
    )
    return "; ".join(names) or "PyTorch"
