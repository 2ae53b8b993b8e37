"""One rule for accuracy, the same for every op: at most twice PyTorch's own error in the same dtype."""

from __future__ import annotations

import torch

# The rule compares two errors against float64; below this share of the result's scale both are rounding noise of the
# last operation, and their ratio says nothing.
NOISE_FLOOR = {
    torch.float64: 1e-15,
    torch.float32: 6e-8,  # half a unit in the last place
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}

# The root of the mean square of the error may be FACTOR times PyTorch's. The largest error, in which a single wrong
# element shows, is one draw from the tail of a distribution and varies more: it may be MAX_ROOM times that.
FACTOR = 2.0
MAX_ROOM = 2.0


def assert_as_accurate(actual: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that the error of ``actual`` is at most FACTOR times that of PyTorch in the same dtype.

    Args:
        actual: our result.
        pytorch: PyTorch's result on the same inputs in the same dtype.
        exact: the result in float64.
    """
    assert actual.dtype == pytorch.dtype
    assert actual.shape == pytorch.shape == exact.shape
    if actual.numel() == 0:
        return
    for name, size, room in (("rms", _rms, 1.0), ("largest", _largest, MAX_ROOM)):
        error = size(actual.double() - exact)
        allowed = room * FACTOR * size(pytorch.double() - exact)
        floor = NOISE_FLOOR[actual.dtype] * size(exact)
        # Written so that NaN is wrong.
        assert error <= max(allowed, floor), f"{name} error {error:.3e}, allowed {max(allowed, floor):.3e}"


def _rms(value: torch.Tensor) -> float:
    return value.square().mean().sqrt().item()


def _largest(value: torch.Tensor) -> float:
    return value.abs().max().item()
