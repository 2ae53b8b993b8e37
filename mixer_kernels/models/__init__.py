"""Whole models of the four papers, named as timm names them."""

from mixer_kernels.models.conv_mixer import ConvMixer
from mixer_kernels.models.mlp_mixer import MlpMixer
from mixer_kernels.models.registry import create_model, list_models
from mixer_kernels.models.resmlp import ResMLP
from mixer_kernels.models.s2mlp import S2MLPv2

__all__ = ["ConvMixer", "MlpMixer", "ResMLP", "S2MLPv2", "create_model", "list_models"]
