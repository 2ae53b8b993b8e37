"""Existing models and checkpoints made to fit: fused layers, folding for inference, another number of tokens."""

from mixer_kernels.convert.folding import fuse
from mixer_kernels.convert.jittor_mlp import s2mlpv2_from_jittor_mlp
from mixer_kernels.convert.replacing import Entry, Report, accelerate
from mixer_kernels.convert.token_grid import resize_token_mixing

__all__ = ["Entry", "Report", "accelerate", "fuse", "resize_token_mixing", "s2mlpv2_from_jittor_mlp"]
