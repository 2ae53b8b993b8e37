"""The spatial shift of S2-MLP and S2-MLPv2."""

from mixer_kernels.ops.spatial_shift.op import SpatialShiftFunction, spatial_shift, spatial_shift_
from mixer_kernels.ops.spatial_shift.reference import SHIFT_1, SHIFT_2

__all__ = ["SHIFT_1", "SHIFT_2", "SpatialShiftFunction", "spatial_shift", "spatial_shift_"]
