"""Whole models against timm, against a loop implementation of S2-MLPv2, and against the published sizes."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mixer_kernels import nn as fused_layers
from mixer_kernels import reference
from mixer_kernels.models import create_model, list_models

# name: (parameters with a head of 1000 classes, millions that the paper prints, whether the paper counts the head).
# MLP-Mixer: arXiv 2105.01601, Table 1; ResMLP: arXiv 2105.03404, with B24 at patches of 8 from the authors' model zoo;
# S2-MLPv2: arXiv 2108.01072, comparison on ImageNet; ConvMixer: arXiv 2201.09792, Table 1. The exact numbers are
# timm's wherever timm has the model.
PARAMETERS = {
    "mixer_s32_224": (19_104_624, 19, False),
    "mixer_s16_224": (18_528_264, 18, False),
    "mixer_b32_224": (60_293_428, 60, False),
    "mixer_b16_224": (59_880_472, 59, False),
    "mixer_l32_224": (206_939_264, 206, False),
    "mixer_l16_224": (208_196_168, 207, False),
    "mixer_h14_224": (432_350_952, 431, False),
    "resmlp_12_224": (15_350_872, 15.4, True),
    "resmlp_24_224": (30_020_680, 30.0, True),
    "resmlp_36_224": (44_690_488, 44.7, True),
    "resmlp_big_24_224": (129_138_280, 129.1, True),
    "s2mlpv2_small_7_224": (25_112_680, 25, True),
    "s2mlpv2_medium_7_224": (55_268_840, 55, True),
    "convmixer_1536_20": (51_625_960, 51.6, True),
    "convmixer_768_32": (21_110_248, 21.1, True),
    "convmixer_1024_20_ks9_p14": (24_383_464, 24.4, True),
}

TIMM_NAMES = [name for name in PARAMETERS if not name.startswith("s2mlpv2")]

# Small models of every family: keyword arguments, and the sides of an image.
TINY: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "mixer_s16_224": ({"img_size": (32, 48), "num_blocks": 2, "embed_dim": 12}, (32, 48)),
    "resmlp_12_224": ({"img_size": (32, 48), "num_blocks": 2, "embed_dim": 12}, (32, 48)),
    "s2mlpv2_small_7_224": ({"img_size": (56, 42), "depths": (1, 2), "embed_dims": (10, 14)}, (56, 42)),
    "convmixer_768_32": ({"img_size": (28, 35), "depth": 2, "dim": 12}, (28, 35)),
}


def count(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Draw everything anew: identities and zeros at initialisation would let different computations look equal."""
    for parameter in model.parameters():
        if parameter.dim() < 2 or parameter.shape[:2] == (1, 1):
            parameter.uniform_(-0.5, 1.5)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    for name, buffer in model.named_buffers():
        buffer.zero_() if name.endswith("num_batches_tracked") else buffer.uniform_(0.5, 1.5)
    return model


def create_tiny(name: str, **kwargs: Any) -> nn.Module:
    """Return a small randomised model of the family, float64, in eval mode."""
    torch.manual_seed(0)
    arguments = {"num_classes": 5, "in_chans": 2, "backend": "reference", "dtype": torch.float64}
    return randomise(create_model(name, **{**arguments, **TINY[name][0], **kwargs})).eval()


def make_image(name: str, batch: int = 2) -> torch.Tensor:
    """Return random images for the small model."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, *TINY[name][1], dtype=torch.float64, generator=generator)


def create_timm(name: str) -> nn.Module:
    """Return timm's model without memory for its weights; Mixer-H/14, which its registry lacks, from its class."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        if name == "mixer_h14_224":
            return timm.models.mlp_mixer.MlpMixer(patch_size=14, num_blocks=32, embed_dim=1280)
        return timm.create_model(name)


def test_list_models() -> None:
    assert list_models() == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name: str) -> None:
    parameters, millions, with_head = PARAMETERS[name]
    model = create_model(name, device="meta")
    assert count(model) == parameters
    printed = count(model) if with_head else count(model) - count(model.head)
    # Within the last digit: papers cut as often as they round.
    assert abs(printed / 1e6 - millions) < (1 if isinstance(millions, int) else 0.1)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_state_dict_is_timms(name: str) -> None:
    theirs = create_timm(name).state_dict()
    ours = create_model(name, device="meta").state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_outputs_equal_timms(name: str) -> None:
    theirs = create_timm(name).double()
    # The published widths at two blocks: depth repeats the block, which costs time and tests nothing more.
    theirs.blocks = theirs.blocks[:2]
    torch.manual_seed(0)
    randomise(theirs.to_empty(device="cpu")).eval()
    depth = {"depth" if name.startswith("convmixer") else "num_blocks": 2}
    ours = create_model(name, backend="reference", dtype=torch.float64, **depth).eval()
    ours.load_state_dict(theirs.state_dict())
    # ConvMixer takes any size, and PyTorch's float64 depthwise convolution is slow.
    side = 112 if name.startswith("convmixer") else 224
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mixer_s16_224", "resmlp_12_224", "convmixer_768_32"])
def test_training_equals_timms(name: str) -> None:
    """Gradients and batch statistics, in training mode."""
    pytest.importorskip("timm")
    from timm.models import convmixer, mlp_mixer

    ours = create_tiny(name).train()
    common = {"num_classes": 5, "in_chans": 2}
    if name.startswith("convmixer"):
        theirs = convmixer.ConvMixer(12, 2, kernel_size=7, patch_size=7, act_layer=nn.ReLU, **common)
    else:
        resmlp = {"mlp_ratio": 4, "block_layer": mlp_mixer.ResBlock, "norm_layer": mlp_mixer.Affine}
        theirs = mlp_mixer.MlpMixer(**TINY[name][0], **common, **(resmlp if name.startswith("resmlp") else {}))
    theirs.double().train().load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model(make_image(name)).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-10, atol=1e-10)


def gelu(value: float) -> float:
    """Return GELU of a number."""
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def linear(layer: nn.Module, vector: list[float]) -> list[float]:
    """Apply weight and bias to a list of numbers."""
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
    return [
        sum(w * v for w, v in zip(row, vector, strict=True)) + b
        for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def normalise(norm: nn.LayerNorm, vector: list[float]) -> list[float]:
    """LayerNorm of a list of numbers."""
    mean = sum(vector) / len(vector)
    variance = sum((v - mean) ** 2 for v in vector) / len(vector)
    scale = 1 / math.sqrt(variance + norm.eps)
    weight, bias = norm.weight.tolist(), norm.bias.tolist()
    return [(v - mean) * scale * w + b for v, w, b in zip(vector, weight, bias, strict=True)]


Map = dict[tuple[int, int], list[float]]


def merge_patches(conv: nn.Conv2d, pixels: Map, height: int, width: int) -> Map:
    """Embed each patch from its pixels."""
    size, weight, bias = conv.kernel_size[0], conv.weight.tolist(), conv.bias.tolist()
    return {
        (h, w): [
            bias[o]
            + sum(
                weight[o][c][i][j] * pixels[h * size + i, w * size + j][c]
                for c in range(conv.in_channels)
                for i in range(size)
                for j in range(size)
            )
            for o in range(conv.out_channels)
        ]
        for h in range(height // size)
        for w in range(width // size)
    }


def shift(pixels: Map, moves: list[tuple[int, int]]) -> Map:
    """Move quarter i of the channels by ``moves[i]``; what has no source stays."""
    channels = len(next(iter(pixels.values())))
    quarter = [sum(c >= i * channels // 4 for i in (1, 2, 3)) for c in range(channels)]
    return {
        (h, w): [pixels.get((h - moves[q][0], w - moves[q][1]), own)[c] for c, q in enumerate(quarter)]
        for (h, w), own in pixels.items()
    }


def attend(attention: nn.Module, pixels: Map) -> Map:
    """Expand, shift twice, weigh the three branches, project."""
    down, up, right, left = (1, 0), (-1, 0), (0, 1), (0, -1)
    expanded = {at: linear(attention.mlp1, vector) for at, vector in pixels.items()}
    channels = len(next(iter(pixels.values())))
    parts = [{at: v[k * channels : (k + 1) * channels] for at, v in expanded.items()} for k in range(3)]
    branches = [shift(parts[0], [down, up, right, left]), shift(parts[1], [right, left, down, up]), parts[2]]
    total = [sum(vector[c] for branch in branches for vector in branch.values()) for c in range(channels)]
    fuse = attention.split_attention
    logits = linear(fuse.mlp2, [gelu(v) for v in linear(fuse.mlp1, total)])
    fused: Map = {at: [0.0] * channels for at in pixels}
    for c in range(channels):
        exponents = [math.exp(logits[k * channels + c]) for k in range(3)]
        for at in pixels:
            fused[at][c] = sum(exponents[k] / sum(exponents) * branches[k][at][c] for k in range(3))
    return {at: linear(attention.mlp2, vector) for at, vector in fused.items()}


def s2mlpv2_by_loops(model: nn.Module, image: torch.Tensor) -> list[float]:
    """Run S2-MLPv2 on one image, (C, H, W), number by number."""
    _, height, width = image.shape
    pixels: Map = {(h, w): image[:, h, w].tolist() for h in range(height) for w in range(width)}
    for stage in model.stages:
        pixels = merge_patches(stage.proj, pixels, height, width)
        height, width = height // stage.proj.kernel_size[0], width // stage.proj.kernel_size[0]
        for block in stage.blocks:
            mixed = attend(block.attention, {at: normalise(block.norm1, vector) for at, vector in pixels.items()})
            for at, vector in pixels.items():
                z = [a + b for a, b in zip(vector, mixed[at], strict=True)]
                hidden = [gelu(v) for v in linear(block.mlp_channels.fc1, normalise(block.norm2, z))]
                pixels[at] = [a + b for a, b in zip(z, linear(block.mlp_channels.fc2, hidden), strict=True)]
    channels = len(next(iter(pixels.values())))
    return linear(model.head, [sum(v[c] for v in pixels.values()) / len(pixels) for c in range(channels)])


@pytest.mark.parametrize("attention_ratio", [0.25, 1.0])
def test_s2mlpv2_equals_loops(attention_ratio: float) -> None:
    model = create_tiny("s2mlpv2_small_7_224", attention_ratio=attention_ratio)
    images = make_image("s2mlpv2_small_7_224")
    expected = torch.tensor([s2mlpv2_by_loops(model, image) for image in images], dtype=torch.float64)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


def test_s2mlpv2_state_dict() -> None:
    keys = {key.rsplit(".", 1)[0] for key in create_model("s2mlpv2_small_7_224", device="meta").state_dict()}
    block = {"norm1", "attention.mlp1", "attention.mlp2", "norm2", "mlp_channels.fc1", "mlp_channels.fc2"}
    block |= {"attention.split_attention.mlp1", "attention.split_attention.mlp2"}
    blocks = {
        f"stages.{s}.blocks.{i}.{part}" for s, depth in enumerate((4, 14)) for i in range(depth) for part in block
    }
    assert keys == blocks | {"stages.0.proj", "stages.1.proj", "head"}


def test_class_mlp() -> None:
    model = create_tiny("resmlp_12_224", global_pool="class_mlp")
    x = make_image("resmlp_12_224")
    tokens = model.blocks(model.stem(x))
    c = model.class_mlp.cls_token[0].expand(2, -1)  # [B, C]
    for block in model.class_mlp.blocks:
        weight, bias = block.linear_tokens.weight[0], block.linear_tokens.bias
        alpha, beta = block.norm1.alpha[0, 0], block.norm1.beta[0, 0]
        mixed = weight[0] * c + torch.einsum("s,bsc->bc", weight[1:], tokens)
        c = c + block.ls1 * (alpha * mixed + beta * weight.sum() + bias)
        hidden = nn.functional.gelu(block.mlp_channels.fc1(block.norm2.alpha[0, 0] * c + block.norm2.beta[0, 0]))
        c = c + block.ls2 * block.mlp_channels.fc2(hidden)
    logits = model.head(model.norm.alpha[0, 0] * c + model.norm.beta[0, 0])
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)


def test_class_mlp_parameter_count() -> None:
    # arXiv 2105.03404, ablation of the pooling: 17.7M against 15.4M with the mean.
    model = create_model("resmlp_12_224", global_pool="class_mlp", device="meta")
    assert count(model) == 17_719_396
    plain = create_model("resmlp_12_224", device="meta")
    added = set(model.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(model.state_dict())
    assert all(key.startswith("class_mlp.") for key in added)


@pytest.mark.parametrize("name", TINY)
def test_state_dict_round_trip_between_backends(name: str) -> None:
    model = create_tiny(name)
    other = create_tiny(name, backend=None)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(make_image(name)), model(make_image(name)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("requested", ["reference", "native", None])
@pytest.mark.parametrize("name", TINY)
def test_layers_come_from_the_right_package(name: str, requested: str | None) -> None:
    layers: ModuleType = reference if requested == "reference" else fused_layers
    model = create_tiny(name, backend=requested)
    block = model.stages[0].blocks[0] if name.startswith("s2mlpv2") else model.blocks[0]
    class_names = {"mixer": "MixerBlock", "resmlp": "ResMLPBlock", "s2mlpv2": "S2Block", "convmixer": "ConvMixerLayer"}
    assert type(block) is getattr(layers, class_names[name.split("_")[0]])
    assert block.backend == requested


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_parameter(name: str) -> None:
    kwargs = {"global_pool": "class_mlp"} if name.startswith("resmlp") else {}
    model = create_tiny(name, **kwargs)
    model(make_image(name)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_device_and_dtype(name: str) -> None:
    model = create_model(name, device="meta", dtype=torch.bfloat16, **TINY[name][0])
    for tensor in model.state_dict().values():
        assert tensor.device.type == "meta"
        assert tensor.dtype in (torch.bfloat16, torch.int64)
    low = create_tiny(name, dtype=torch.bfloat16)
    y = low(make_image(name).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize("name", TINY)
def test_head_and_batch(name: str) -> None:
    model = create_tiny(name)
    assert (model.num_classes, model.in_chans, model.img_size) == (5, 2, TINY[name][1])
    assert model(make_image(name, 0)).shape == (0, 5)
    features = create_tiny(name, num_classes=0)
    assert isinstance(features.head, nn.Identity)
    width = model.head.in_features
    assert features(make_image(name)).shape == (2, width)


@pytest.mark.parametrize("name", ["s2mlpv2_small_7_224", "convmixer_768_32"])
def test_pixel_models_take_any_size(name: str) -> None:
    assert create_tiny(name)(torch.randn(1, 2, 70, 28, dtype=torch.float64)).shape == (1, 5)


def test_parts_of_a_stem() -> None:
    stem, x = create_tiny("convmixer_768_32").stem, make_image("convmixer_768_32")
    assert torch.equal(stem[1:](stem[:1](x)), stem(x))


def test_initial_output_of_a_zero_head() -> None:
    model = create_model("mixer_s16_224", **TINY["mixer_s16_224"][0])
    assert model.training
    assert torch.count_nonzero(model(torch.randn(1, 3, 32, 48))) == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mixer_x", {}, "create_model: name must be one of mixer_s32_224, mixer_s16_224, "),
        ("mixer_s16_224", {"img_size": 100}, "PatchEmbed: img_size must be a positive multiple of 16, got 100"),
        ("resmlp_12_224", {"img_size": (0, 16)}, "PatchEmbed: img_size must be a positive multiple of 16, got (0, 16)"),
        ("resmlp_12_224", {"global_pool": "max"}, "ResMLP: global_pool must be 'avg' or 'class_mlp', got 'max'"),
        ("s2mlpv2_small_7_224", {"img_size": 49}, "S2MLPv2: img_size must be a positive multiple of 14, got 49"),
        ("s2mlpv2_small_7_224", {"depths": (1,)}, "S2MLPv2: patch_sizes, embed_dims and depths must have the same"),
        ("convmixer_768_32", {"img_size": 32}, "ConvMixer: img_size must be a positive multiple of 7, got 32"),
        ("convmixer_768_32", {"activation": "silu"}, "activation: name must be None, 'relu', 'gelu' or 'gelu_tanh'"),
    ],
)
def test_bad_arguments(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        create_model(name, device="meta", **kwargs)
    assert str(error.value).startswith(message)


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="depthh"):
        create_model("convmixer_768_32", depthh=2)


@pytest.mark.parametrize("asked_for", ["reference", None])
@pytest.mark.parametrize("name", TINY)
def test_symbolic_tracing(name: str, asked_for: str | None) -> None:
    model, images = create_tiny(name, backend=asked_for), make_image(name)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 2, 48, 32), (2, 32, 48), (1, 2, 16, 16)])
def test_image_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="PatchEmbed: x must have shape") as error:
        create_tiny("mixer_s16_224")(torch.zeros(shape, dtype=torch.float64))
    assert str(error.value) == f"PatchEmbed: x must have shape (B, 2, 32, 48), got shape {shape}"
