"""The published models by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from mixer_kernels import nn as fused_layers
from mixer_kernels import reference
from mixer_kernels.models.conv_mixer import ConvMixer
from mixer_kernels.models.mlp_mixer import MlpMixer
from mixer_kernels.models.resmlp import ResMLP
from mixer_kernels.models.s2mlp import S2MLPv2

_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # arXiv 2105.01601, Table 1
    "mixer_s32_224": (MlpMixer, {"patch_size": 32, "num_blocks": 8, "embed_dim": 512}),
    "mixer_s16_224": (MlpMixer, {"patch_size": 16, "num_blocks": 8, "embed_dim": 512}),
    "mixer_b32_224": (MlpMixer, {"patch_size": 32, "num_blocks": 12, "embed_dim": 768}),
    "mixer_b16_224": (MlpMixer, {"patch_size": 16, "num_blocks": 12, "embed_dim": 768}),
    "mixer_l32_224": (MlpMixer, {"patch_size": 32, "num_blocks": 24, "embed_dim": 1024}),
    "mixer_l16_224": (MlpMixer, {"patch_size": 16, "num_blocks": 24, "embed_dim": 1024}),
    "mixer_h14_224": (MlpMixer, {"patch_size": 14, "num_blocks": 32, "embed_dim": 1280}),
    # arXiv 2105.03404; the deeper the model, the smaller its LayerScale starts
    "resmlp_12_224": (ResMLP, {"num_blocks": 12, "embed_dim": 384, "init_values": 1e-4}),
    "resmlp_24_224": (ResMLP, {"num_blocks": 24, "embed_dim": 384, "init_values": 1e-5}),
    "resmlp_36_224": (ResMLP, {"num_blocks": 36, "embed_dim": 384, "init_values": 1e-6}),
    "resmlp_big_24_224": (ResMLP, {"patch_size": 8, "num_blocks": 24, "embed_dim": 768, "init_values": 1e-6}),
    # arXiv 2108.01072; its 25M and 55M parameters come out with a split attention of C / 4
    "s2mlpv2_small_7_224": (S2MLPv2, {"embed_dims": (192, 384), "depths": (4, 14), "attention_ratio": 0.25}),
    "s2mlpv2_medium_7_224": (S2MLPv2, {"embed_dims": (256, 512), "depths": (7, 17), "attention_ratio": 0.25}),
    # arXiv 2201.09792, Table 1
    "convmixer_1536_20": (ConvMixer, {"dim": 1536, "depth": 20, "kernel_size": 9, "patch_size": 7}),
    "convmixer_768_32": (ConvMixer, {"dim": 768, "depth": 32, "kernel_size": 7, "patch_size": 7, "activation": "relu"}),
    "convmixer_1024_20_ks9_p14": (ConvMixer, {"dim": 1024, "depth": 20, "kernel_size": 9, "patch_size": 14}),
}


def list_models() -> list[str]:
    """Return the names that :func:`create_model` takes."""
    return list(_MODELS)


def create_model(name: str, *, backend: str | None = None, **kwargs: Any) -> nn.Module:
    """Build a published model with fresh weights.

    Names, argument names and state_dict keys are timm's for every model that timm has, so its checkpoints load with
    ``load_state_dict``.

    Args:
        name: one of :func:`list_models`.
        backend: "reference" builds from plain-PyTorch layers, the eager baseline; anything else builds from the fused
            layers, which take it as their ``backend``.
        **kwargs: ``num_classes``, ``img_size``, ``in_chans``, ``device``, ``dtype``, and whatever of the architecture
            differs from the published one: the arguments of :class:`MlpMixer`, :class:`ResMLP`, :class:`S2MLPv2` or
            :class:`ConvMixer`.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: there is no model of that name.
    """
    if name not in _MODELS:
        raise ValueError(f"create_model: name must be one of {', '.join(_MODELS)}, got {name!r}")
    model_class, architecture = _MODELS[name]
    layers = reference if backend == "reference" else fused_layers
    return model_class(layers, backend=backend, **{**architecture, **kwargs})
