"""The public ops."""

from mixer_kernels.ops.spatial_shift import SHIFT_1, SHIFT_2, spatial_shift, spatial_shift_

__all__ = ["SHIFT_1", "SHIFT_2", "spatial_shift", "spatial_shift_"]
