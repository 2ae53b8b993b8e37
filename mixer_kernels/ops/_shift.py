"""The spatial shift in plain PyTorch, which the references of two ops take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SHIFT_1 = ("+h", "-h", "+w", "-w")
SHIFT_2 = ("+w", "-w", "+h", "-h")


def spatial_shift(x: torch.Tensor, directions: Sequence[str] = SHIFT_1) -> torch.Tensor:
    """Move each group of channels one pixel along its direction (S2-MLP, arXiv 2106.07477, Section 3.2).

    With n directions, group i holds the channels [iC/n, (i+1)C/n), bounds rounded down. For "+h", y[h] = x[h - 1] and
    the border keeps its own value, y[0] = x[0]; "-h", "+w" and "-w" likewise.

    Args:
        x: feature map, (B, H, W, C).
        directions: non-empty, each of "+h", "-h", "+w", "-w".

    Returns:
        A new tensor, (B, H, W, C).

    Raises:
        ValueError: a direction is none of the four.
    """
    y = x.clone()
    channels, groups = x.shape[-1], len(directions)
    for i, direction in enumerate(directions):
        group = slice(i * channels // groups, (i + 1) * channels // groups)
        # Read from x, never from y: source and target overlap, and an in-place copy would smear the border.
        if direction == "+h":
            y[:, 1:, :, group] = x[:, :-1, :, group]
        elif direction == "-h":
            y[:, :-1, :, group] = x[:, 1:, :, group]
        elif direction == "+w":
            y[:, :, 1:, group] = x[:, :, :-1, group]
        elif direction == "-w":
            y[:, :, :-1, group] = x[:, :, 1:, group]
        else:
            raise ValueError(f"spatial_shift: directions must be of '+h', '-h', '+w', '-w', got {direction!r}")
    return y
