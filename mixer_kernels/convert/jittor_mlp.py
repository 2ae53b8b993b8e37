"""Checkpoints in the layout of the Jittor-MLP collection."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# What a key begins with there -> the same here.
_RENAMED = (
    (r"stages\.(\d+)\.0\.", r"stages.\1.proj."),
    (r"stages\.(\d+)\.1\.model\.(\d+)\.0\.norm\.", r"stages.\1.blocks.\2.norm1."),
    (r"stages\.(\d+)\.1\.model\.(\d+)\.0\.fn\.(?=mlp[12]\.|split_attention\.)", r"stages.\1.blocks.\2.attention."),
    (r"stages\.(\d+)\.1\.model\.(\d+)\.1\.norm\.", r"stages.\1.blocks.\2.norm2."),
    (r"stages\.(\d+)\.1\.model\.(\d+)\.1\.fn\.0\.", r"stages.\1.blocks.\2.mlp_channels.fc1."),
    (r"stages\.(\d+)\.1\.model\.(\d+)\.1\.fn\.3\.", r"stages.\1.blocks.\2.mlp_channels.fc2."),
    (r"mlp_head\.1\.", r"head."),
)


def s2mlpv2_from_jittor_mlp(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the parameters of the Jittor-MLP collection's S2-MLPv2, in PyTorch or Jittor, to those of S2MLPv2 here.

    The hidden width of its split attention is C: load the result into a model with ``attention_ratio=1.0``.

    That code shifts in place, between overlapping slices: on a CPU the border smears over the map in two of four
    groups of channels, on a GPU the outcome depends on a race. The layers here shift truly, as the paper does, so a
    checkpoint that was trained with that code sees other features and wants fine-tuning.

    Args:
        state_dict: of a whole model of that collection; it is not changed.

    Returns:
        A new dictionary of the same tensors.

    Raises:
        ValueError: a key is none of that model's.
    """
    return {_renamed(key): value for key, value in state_dict.items()}


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED:
        name, found = re.subn(f"^{pattern}", replacement, key)
        if found:
            return name
    raise ValueError(f"s2mlpv2_from_jittor_mlp: state_dict must have the keys of that model, got {key!r}")
