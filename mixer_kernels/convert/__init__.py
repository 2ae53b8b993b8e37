"""Existing models and checkpoints made to fit: fused layers, folding for inference, another number of tokens."""

from mixer_kernels.convert.folding import fuse
from mixer_kernels.convert.replacing import Entry, Report, accelerate
from mixer_kernels.convert.token_grid import resize_token_mixing

__all__ = ["Entry", "Report", "accelerate", "fuse", "resize_token_mixing"]
