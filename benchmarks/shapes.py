"""The one table of published shapes: what is measured, on which device type, in which preset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

QUICK, FULL = "quick", "full"
PRESETS = (QUICK, FULL)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# Underscore: in place. A model has no in-place pass and no backward without its forward.
FWD, FWD_INPLACE, BWD, BWD_INPLACE, FWD_BWD = "fwd", "fwd_", "bwd", "bwd_", "fwd+bwd"
# The part of a backward that gives the gradient of the weight.
DWEIGHT = "dweight"

CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class OpShape:
    """One shape of an op.

    Attributes:
        op: the op's name.
        shape: of its input, and behind it the hidden width of an op that has one.
        origin: where the shape comes from.
        quick_on: device types whose quick preset holds it.
        full_on: device types whose full preset holds it.
        quick_dtypes: dtypes in the quick preset.
        full_dtypes: dtypes in the full preset.
        quick_passes: passes in the quick preset.
        full_passes: passes in the full preset.
    """

    op: str
    shape: tuple[int, ...]
    origin: str
    quick_on: tuple[str, ...] = ()
    full_on: tuple[str, ...] = (CPU, CUDA)
    quick_dtypes: tuple[torch.dtype, ...] = (FP32, BF16)
    full_dtypes: tuple[torch.dtype, ...] = (FP32, BF16, FP16)
    quick_passes: tuple[str, ...] = (FWD, FWD_INPLACE, BWD, BWD_INPLACE)
    full_passes: tuple[str, ...] = (FWD, FWD_INPLACE, BWD, BWD_INPLACE, FWD_BWD)


@dataclass(frozen=True)
class ModelShape:
    """One batch of images through a published model.

    Attributes:
        model: the name that ``create_model`` takes.
        batch: images.
        device: the device type.
        image: pixels along both sides.
        dtypes: of weights and images.
        passes: fwd, fwd+bwd or both.
        quick_dtypes: dtypes in the quick preset; none keeps the model out of it. Only forward runs there.
    """

    model: str
    batch: int
    device: str
    image: int = 224
    dtypes: tuple[torch.dtype, ...] = (FP32, BF16)
    passes: tuple[str, ...] = (FWD,)
    quick_dtypes: tuple[torch.dtype, ...] = ()


_MIXING = {"quick_passes": (FWD,), "full_passes": (FWD, FWD_BWD)}
_MIXING_TRAINED = {"quick_passes": (FWD, FWD_BWD), "full_passes": (FWD, FWD_BWD)}
# float16 is left out on a CPU: PyTorch's own kernels may not return.
_CONVOLUTION = {"quick_passes": (FWD,), "full_passes": (FWD, FWD_BWD), "full_dtypes": (FP32, BF16)}
_LARGE_KERNEL = {"quick_passes": (FWD,), "full_passes": (FWD,), "full_dtypes": (FP32, BF16)}
_TRAINED = {"quick_passes": (FWD, FWD_BWD), "full_passes": (FWD, FWD_BWD), "full_dtypes": (FP32, BF16)}
# A GPU's quick preset is what the speed of this library is judged by there.
_GPU = {"quick_on": (CUDA,), "full_on": (CUDA,), "quick_dtypes": (BF16,)}
_GPU_CONVOLUTION = {
    **_GPU,
    "quick_dtypes": (FP32, BF16, FP16),
    "quick_passes": (FWD, DWEIGHT),
    "full_passes": (FWD, DWEIGHT, FWD_BWD),
}

OP_SHAPES = (
    OpShape("spatial_shift", (8, 32, 32, 192), "S2-MLPv2 Small, stage 1", quick_on=(CPU,)),
    OpShape("spatial_shift", (32, 32, 32, 384), "twice its width, beyond the caches"),
    OpShape("spatial_shift", (64, 32, 32, 384), "the same, for a GPU", **_GPU),
    OpShape("spatial_shift", (1, 32, 32, 192), "S2-MLPv2 Small, stage 1, one image"),
    OpShape("spatial_shift", (8, 16, 16, 384), "S2-MLPv2 Small, stage 2"),
    OpShape("spatial_shift", (8, 32, 32, 256), "S2-MLPv2 Medium, stage 1"),
    OpShape("spatial_shift", (8, 16, 16, 512), "S2-MLPv2 Medium, stage 2"),
    OpShape("token_mixing", (8, 196, 768, 384), "Mixer-B/16", (CPU,), (CPU,), **_MIXING_TRAINED),
    OpShape("token_mixing", (8, 196, 1024, 512), "Mixer-L/16", (), (CPU,), **_MIXING_TRAINED),
    OpShape("token_mixing", (32, 49, 512, 256), "Mixer-S/32", (CPU,), (CPU,), **_MIXING),
    OpShape("token_mixing", (1, 196, 768, 384), "Mixer-B/16, one image", (CPU,), **_MIXING),
    OpShape("token_mixing", (1, 49, 512, 256), "Mixer-S/32, one image", **_MIXING),
    OpShape("token_mixing", (256, 196, 768, 384), "Mixer-B/16", **_GPU, **_MIXING_TRAINED),
    OpShape("token_mixing", (256, 196, 1024, 512), "Mixer-L/16", **_GPU, **_MIXING_TRAINED),
    OpShape("token_mixing", (256, 49, 512, 256), "Mixer-S/32", (), (CUDA,), **_MIXING),
    OpShape("affine_token_linear", (32, 196, 384), "ResMLP-S", (CPU,), (CPU,), **_MIXING_TRAINED),
    OpShape("affine_token_linear", (1, 196, 384), "ResMLP-S, one image", (CPU,), **_MIXING),
    OpShape("affine_token_linear", (8, 784, 768), "ResMLP-B/8", (), (CPU,), **_MIXING),
    OpShape("affine_token_linear", (256, 196, 384), "ResMLP-S", **_GPU, **_MIXING_TRAINED),
    OpShape("affine_token_linear", (64, 784, 768), "ResMLP-B/8", (), (CUDA,), **_MIXING),
    OpShape("split_attention", (8, 32, 32, 576, 48), "S2-MLPv2 Small, stage 1", (CPU,), **_MIXING_TRAINED),
    OpShape("split_attention", (8, 16, 16, 1152, 96), "S2-MLPv2 Small, stage 2", **_MIXING_TRAINED),
    OpShape("split_attention", (1, 16, 16, 1152, 96), "S2-MLPv2 Small, stage 2, one image", **_MIXING),
    OpShape("split_attention", (64, 32, 32, 576, 48), "S2-MLPv2 Small, stage 1", **_GPU, **_MIXING_TRAINED),
    OpShape("split_attention", (256, 32, 32, 576, 48), "S2-MLPv2 Small, stage 1", (), (CUDA,), **_MIXING_TRAINED),
    OpShape("split_attention", (256, 16, 16, 1152, 96), "S2-MLPv2 Small, stage 2", (), (CUDA,), **_MIXING_TRAINED),
    OpShape("depthwise_conv2d", (4, 768, 32, 32, 9), "ConvMixer, K=9", (CPU,), (CPU,), **_CONVOLUTION),
    OpShape("depthwise_conv2d", (4, 768, 32, 32, 31), "ConvMixer's map, K=31", (CPU,), (CPU,), **_LARGE_KERNEL),
    OpShape("depthwise_conv2d", (4, 768, 32, 32, 7), "ConvMixer-768/32", (CPU,), (CPU,), **_CONVOLUTION),
    OpShape("depthwise_conv2d", (1, 768, 32, 32, 9), "ConvMixer, K=9, one image", (), (CPU,), **_CONVOLUTION),
    OpShape("depthwise_conv2d_batch_norm", (4, 768, 32, 32, 9), "ConvMixer, K=9", (CPU,), (CPU,), **_TRAINED),
    OpShape(
        "depthwise_conv2d_batch_norm", (1, 768, 32, 32, 9), "ConvMixer, K=9, one image", (), (CPU,), **_CONVOLUTION
    ),
    OpShape("depthwise_conv2d", (64, 1536, 32, 32, 9), "ConvMixer-1536/20", **_GPU_CONVOLUTION),
    OpShape("depthwise_conv2d", (64, 1536, 32, 32, 31), "its map, K=31", **_GPU_CONVOLUTION),
    OpShape("depthwise_conv2d", (1, 1536, 32, 32, 31), "its map, K=31, one image", (), (CUDA,), full_passes=(FWD,)),
    OpShape("depthwise_conv2d_batch_norm", (64, 1536, 32, 32, 9), "ConvMixer-1536/20", **_GPU, **_TRAINED),
)

# A model joins the run with the first fused layer that it is built from.
_MODELS = (
    *("s2mlpv2_small_7_224", "s2mlpv2_medium_7_224"),
    *("mixer_s32_224", "mixer_s16_224", "mixer_b32_224", "mixer_b16_224", "mixer_l16_224"),
    *("resmlp_12_224", "resmlp_24_224", "resmlp_36_224", "resmlp_big_24_224"),
    *("convmixer_1536_20", "convmixer_768_32", "convmixer_1024_20_ks9_p14"),
)
# Quick also where torch.compile has compiled nothing before, which takes longer than the timing.
_QUICK_MODELS = ("mixer_s32_224",)

MODEL_SHAPES = (
    *(ModelShape(name, 1, CPU) for name in _MODELS),
    *(
        ModelShape(name, 8, CPU, passes=(FWD, FWD_BWD), quick_dtypes=(FP32, BF16) if name in _QUICK_MODELS else ())
        for name in _MODELS
    ),
    *(ModelShape(name, 1, CUDA, dtypes=(BF16,)) for name in _MODELS),
    *(
        ModelShape(name, 256, CUDA, passes=(FWD, FWD_BWD), quick_dtypes=(BF16,) if name in _QUICK_MODELS else ())
        for name in _MODELS
    ),
)


def op_cases(op: str, device: str, preset: str) -> Iterator[tuple[tuple[int, ...], torch.dtype, str]]:
    """Yield the shape, dtype and pass of everything that a preset measures of an op."""
    for entry in OP_SHAPES:
        if entry.op != op or device not in (entry.quick_on if preset == QUICK else entry.full_on):
            continue
        for dtype in entry.quick_dtypes if preset == QUICK else entry.full_dtypes:
            for which in entry.quick_passes if preset == QUICK else entry.full_passes:
                yield entry.shape, dtype, which


def model_cases(device: str, preset: str) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, str]]:
    """Yield the model, the shape of its input, the dtype and the pass of everything that a preset measures."""
    for entry in MODEL_SHAPES:
        if entry.device != device:
            continue
        for dtype in entry.quick_dtypes if preset == QUICK else entry.dtypes:
            for which in (FWD,) if preset == QUICK else entry.passes:
                yield entry.model, (entry.batch, 3, entry.image, entry.image), dtype, which
