"""The autograd Functions of the public ops."""

from mixer_kernels.ops.spatial_shift import SpatialShiftFunction

__all__ = ["SpatialShiftFunction"]
