"""The autograd Functions of the public ops."""

from mixer_kernels.ops.affine_token_linear import AffineTokenLinearFunction
from mixer_kernels.ops.spatial_shift import SpatialShiftFunction
from mixer_kernels.ops.token_mixing import LayerNormTokenLinearFunction, TokenMixingFunction

__all__ = ["AffineTokenLinearFunction", "LayerNormTokenLinearFunction", "SpatialShiftFunction", "TokenMixingFunction"]
