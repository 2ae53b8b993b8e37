"""The token mixing of MLP-Mixer."""

from mixer_kernels.ops.token_mixing.op import (
    LayerNormTokenLinearFunction,
    TokenMixingFunction,
    layer_norm_token_linear,
    token_mixing,
)

__all__ = ["LayerNormTokenLinearFunction", "TokenMixingFunction", "layer_norm_token_linear", "token_mixing"]
