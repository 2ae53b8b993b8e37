"""The activations between two products: their names, their codes in the kernels, and their plain PyTorch form."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# As in csrc/common/activation.h. "gelu" is the exact form with erf.
ACTIVATION_CODES: dict[str | None, int] = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}


def activation_code(op: str, activation: str | None) -> int:
    """Return the code of an activation; ValueError if the name is none of :data:`ACTIVATION_CODES`."""
    if (activation is not None and not isinstance(activation, str)) or activation not in ACTIVATION_CODES:
        raise ValueError(f"{op}: activation must be None, 'relu', 'gelu' or 'gelu_tanh', got {activation!r}")
    return ACTIVATION_CODES[activation]


def apply_activation(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """Return ``act(x)``."""
    if activation is None:
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
