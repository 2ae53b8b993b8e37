"""The spatial shift in plain PyTorch: the definition, the oracle of the tests and the eager baseline."""

from mixer_kernels.ops._shift import SHIFT_1, SHIFT_2, spatial_shift

__all__ = ["SHIFT_1", "SHIFT_2", "spatial_shift"]
