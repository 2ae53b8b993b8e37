"""Token-mixing weights for another image size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import torch
from torch.nn.functional import interpolate

METHODS = ("block_diagonal", "bilinear")

_TOKEN_MIXING = re.compile(r"(?:.*\.)?(mlp_tokens\.fc1|mlp_tokens\.fc2|linear_tokens)\.(weight|bias)")


def resize_token_mixing(
    state_dict: Mapping[str, torch.Tensor],
    new_grid: tuple[int, int],
    *,
    old_grid: tuple[int, int] | None = None,
    method: str | None = None,
) -> dict[str, torch.Tensor]:
    """Fit the weights of MLP-Mixer or ResMLP, whose layers are tied to a number of tokens, to another image size.

    The new layer runs the old one on n images of the old size, made from the new one, and puts the results back::

        y = sum over k of up_k mlp(down_k x)

    "block_diagonal" is MLP-Mixer's way to higher resolutions (arXiv 2105.01601, Appendix C): the image is cut into
    KH x KW equal parts, each mixed on its own by a copy of the old layer on the diagonal of the new weights. The hidden
    width of a Mixer's token MLP grows n = KH * KW fold, so the new model takes ``mlp_ratio=(n * 0.5, 4.0)``.

    "bilinear" resamples: down shrinks the map to the old grid (with antialiasing), up brings the result back, n = 1.
    It takes any two grids and keeps the hidden width. Both maps are linear and act on tokens alone, so they fold into
    the weights: W1 down, up W2, up b2 for a Mixer, up W down and up b for ResMLP's linear. Constant maps go through
    unchanged, because the rows of both sum to one.

    Either is where fine-tuning starts from. Weights with a class-MLP head are not supported.

    Args:
        state_dict: of a whole model, with timm's keys; it is not changed.
        new_grid: patches along height and width afterwards.
        old_grid: the same of ``state_dict``; square by default.
        method: "block_diagonal", "bilinear" or None: the former for a multiple of the old grid, else the latter.

    Returns:
        A new dictionary; what does not depend on the grid is shared with ``state_dict``.

    Raises:
        ValueError: the method is unknown or does not take these grids, or the weights are not of the old grid.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"resize_token_mixing: method must be one of {METHODS} or None, got {method!r}")
    resized = dict(state_dict)
    if any(key.startswith("class_mlp.") for key in resized):
        raise ValueError("resize_token_mixing: state_dict must not have a class-MLP head, got keys 'class_mlp.*'")
    keys = {key: match for key in resized if (match := _TOKEN_MIXING.fullmatch(key))}
    if not keys:
        raise ValueError("resize_token_mixing: state_dict must have keys '*.mlp_tokens.*' or '*.linear_tokens.*'")
    for key, match in keys.items():
        if match[1] == "mlp_tokens.fc1" and match[2] == "weight":
            hidden, width = resized[key].shape[0], resized[key.replace("fc1", "fc2")].shape[1]
            if hidden != width:
                raise ValueError(f"resize_token_mixing: {key} must feed fc2 as it is, got widths {hidden} and {width}")
    tokens = next(resized[k].shape[1] for k, m in keys.items() if m[1] != "mlp_tokens.fc2" and m[2] == "weight")
    old_grid = (isqrt(tokens), isqrt(tokens)) if old_grid is None else old_grid
    if old_grid[0] * old_grid[1] != tokens:
        raise ValueError(f"resize_token_mixing: old_grid must have {tokens} tokens, got {old_grid}")
    is_multiple = all(new % old == 0 for new, old in zip(new_grid, old_grid, strict=True))
    if method is None:
        method = "block_diagonal" if is_multiple else "bilinear"
    if method == "block_diagonal" and not is_multiple:
        raise ValueError(f"resize_token_mixing: new_grid must be a multiple of {old_grid}, got {new_grid}")

    down = _cut(old_grid, new_grid) if method == "block_diagonal" else _resample(new_grid, old_grid)
    up = down.mT if method == "block_diagonal" else _resample(old_grid, new_grid)
    for key, match in keys.items():
        value = resized[key]
        resized[key] = _resize(match[1], match[2], value.detach().double().cpu(), down, up).to(value)
    return resized


def _resize(layer: str, kind: str, value: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Fold ``down``, (n, S, S'), and ``up``, (n, S', S), into a weight or bias."""
    if layer == "mlp_tokens.fc1":
        return (value @ down).flatten(0, 1) if kind == "weight" else value.repeat(len(down))
    if kind == "bias":
        return (up @ value).sum(0)
    if layer == "mlp_tokens.fc2":
        return (up @ value).transpose(0, 1).flatten(1)
    return (up @ value @ down).sum(0)


def _cut(old_grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Return the matrices, (n, S, S'), that pick the tokens of each part of the new grid in the old grid's order."""
    (height, width), (new_height, new_width) = old_grid, new_grid
    tokens = torch.arange(new_height * new_width).view(new_height // height, height, new_width // width, width)
    parts = tokens.transpose(1, 2).reshape(-1, height * width)
    return torch.nn.functional.one_hot(parts, new_height * new_width).double()


def _resample(source: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """Return the matrix of bilinear interpolation between grids, (1, tokens of target, tokens of source)."""
    size = source[0] * source[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, 1, *source)
    resampled = interpolate(basis, target, mode="bilinear", align_corners=False, antialias=True)
    return resampled.flatten(1).mT[None]
