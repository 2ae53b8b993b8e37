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

FACTOR = 2.0


def assert_as_accurate(actual: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that the largest error of ``actual`` is at most FACTOR times that of PyTorch in the same dtype.

    Args:
        actual: our result.
        pytorch: PyTorch's result on the same inputs in the same dtype.
        exact: the result in float64.
    """
    assert actual.dtype == pytorch.dtype
    assert actual.shape == pytorch.shape == exact.shape
    if actual.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()
    allowed = FACTOR * (pytorch.double() - exact).abs().max().item()
    floor = NOISE_FLOOR[actual.dtype] * exact.abs().max().item()
    assert error <= max(allowed, floor), f"error {error:.3e}, allowed {max(allowed, floor):.3e}"
