"""The affine-folded linear over the tokens of ResMLP."""

from mixer_kernels.ops.affine_token_linear.op import AffineTokenLinearFunction, affine_token_linear

__all__ = ["AffineTokenLinearFunction", "affine_token_linear"]
