"""Exact folding for inference: the same outputs, fewer layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mixer_kernels
from mixer_kernels import nn as fused_layers
from mixer_kernels import reference
from mixer_kernels.models.resmlp import ResMLP

SIZES = {"img_size": 32, "patch_size": 8, "num_blocks": 3, "embed_dim": 24, "num_classes": 7}


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter a value that shows, and stop training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, mean=float("alpha" in name), std=0.3)
    return model.double().eval()


def build(layers=reference, **options) -> nn.Module:
    torch.manual_seed(0)
    return randomise(ResMLP(layers, **(SIZES | options)))


def is_scale_or_offset(module: nn.Module) -> bool:
    return type(module).__name__ == "Affine"


def largest_difference(model: nn.Module, folded: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(x) - folded(x)).abs().max().item()


@pytest.mark.parametrize("layers", [reference, fused_layers], ids=["reference", "fused"])
@pytest.mark.parametrize("pool", ["avg", "class_mlp"])
def test_a_model_computes_the_same_without_an_affine(layers, pool):
    model = build(layers, global_pool=pool)
    folded = mixer_kernels.fuse(copy.deepcopy(model))
    assert any(map(is_scale_or_offset, model.modules()))
    assert not any(map(is_scale_or_offset, folded.modules()))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert largest_difference(model, folded, x) < 1e-12


@pytest.mark.parametrize("name", ["AffineTokenLinear", "ResMLPBlock"])
@pytest.mark.parametrize("layers", [reference, fused_layers], ids=["reference", "fused"])
def test_a_layer_by_itself(layers, name):
    layer = randomise(getattr(layers, name)(24, 9))
    folded = mixer_kernels.fuse(copy.deepcopy(layer))
    assert folded is not layer
    assert largest_difference(layer, folded, torch.randn(2, 9, 24, dtype=torch.float64)) < 1e-12


def test_timm_models():
    timm_mixer = pytest.importorskip("timm.models.mlp_mixer")
    model = randomise(
        timm_mixer.MlpMixer(
            **SIZES,
            mlp_ratio=4,
            block_layer=timm_mixer.ResBlock,
            norm_layer=timm_mixer.Affine,
            drop_path_rate=0.1,
        )
    )
    folded = mixer_kernels.fuse(copy.deepcopy(model))
    assert not any(map(is_scale_or_offset, folded.modules()))
    assert largest_difference(model, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-12


def test_an_accelerated_model():
    model = build()
    folded = mixer_kernels.fuse(mixer_kernels.accelerate(copy.deepcopy(model), backend="reference"))
    assert {m.backend for m in folded.modules() if type(m).__name__ == "FoldedTokenLinear"} == {"reference"}
    assert largest_difference(model, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-12


def test_a_second_call_changes_nothing():
    once = mixer_kernels.fuse(build(global_pool="class_mlp"))
    before = {name: value.clone() for name, value in once.state_dict().items()}
    modules = list(once.modules())
    twice = mixer_kernels.fuse(once)
    assert twice is once
    assert list(twice.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in twice.state_dict().items())


def test_the_original_parameters_are_not_changed():
    model = build()
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    mixer_kernels.fuse(model)
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))


@pytest.mark.parametrize("part", ["", "blocks.1.norm2"])
def test_training_mode_is_refused(part):
    model = build()
    model.get_submodule(part).train()
    state = set(model.state_dict())
    with pytest.raises(RuntimeError, match=r"fuse: model must be in evaluation mode .*training mode"):
        mixer_kernels.fuse(model)
    assert set(model.state_dict()) == state


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match=r"fuse: model must be a torch.nn.Module, got str"):
        mixer_kernels.fuse("resmlp")


def test_without_a_head_the_last_affine_stays():
    model = build(num_classes=0)
    folded = mixer_kernels.fuse(copy.deepcopy(model))
    assert sum(map(is_scale_or_offset, folded.modules())) == 1
    assert largest_difference(model, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-12


def test_layers_that_cannot_be_folded_stay():
    class Other(reference.ResMLPBlock):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    observed = randomise(reference.ResMLPBlock(24, 9))
    observed.norm2.register_forward_hook(lambda module, inputs, output: None)
    model = nn.Sequential(randomise(Other(24, 9)), observed, nn.LayerNorm(24).eval()).eval()
    assert list(mixer_kernels.fuse(model)) == list(model)
    assert isinstance(model[0], Other)
    assert isinstance(model[1], reference.ResMLPBlock)


class Wrapper(nn.Module):
    """Another forward around a part, whose parameters it shows, as adapters are put into models."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.base_layer = part

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_layer, name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + x.mean()


def subclassed(part: nn.Module) -> nn.Module:
    cls = type(part)
    part.__class__ = type("Subclass", (cls,), {"forward": lambda self, x: cls.forward(self, x) + x.mean()})
    return part


def hooked(part: nn.Module) -> nn.Module:
    part.register_forward_hook(lambda module, inputs, output: output + inputs[0].mean())
    return part


@pytest.mark.parametrize("change", [Wrapper, subclassed, hooked])
@pytest.mark.parametrize("layers", [reference, fused_layers], ids=["reference", "fused"])
@pytest.mark.parametrize(
    "path",
    [
        "blocks.1.norm1",
        "blocks.1.linear_tokens",
        "blocks.1.norm2",
        "blocks.1.mlp_channels",
        "blocks.1.mlp_channels.fc1",
        "blocks.1.mlp_channels.fc2",
        "class_mlp.0.blocks.0.norm1",
        "class_mlp.0.blocks.0.linear_tokens",
        "class_mlp.0.blocks.0.norm2",
        "class_mlp.0.blocks.0.mlp_channels",
        "norm",
        "head",
        "class_mlp.1.norm",
        "class_mlp.1.linear",
    ],
)
def test_what_holds_another_part_stays(path, layers, change):
    model = build(layers, global_pool="class_mlp")
    model.class_mlp = nn.Sequential(model.class_mlp, randomise(layers.AffineTokenLinear(24, 1)))
    part = change(model.get_submodule(path))
    model.set_submodule(path, part)
    model.eval()
    folded = mixer_kernels.fuse(copy.deepcopy(model))
    assert type(folded.get_submodule(path)) is type(part)
    # The others do not.
    assert type(folded.blocks[0]).__name__ == "FoldedResMLPBlock"
    assert largest_difference(model, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("drop_path", nn.Tanh()),
        ("mlp_channels.drop2", nn.Tanh()),
        ("head_drop", nn.Tanh()),
    ],
)
def test_other_layers_in_the_way_of_a_factor_in_timm_models(path, part):
    timm_mixer = pytest.importorskip("timm.models.mlp_mixer")
    model = randomise(
        timm_mixer.MlpMixer(**SIZES, mlp_ratio=4, block_layer=timm_mixer.ResBlock, norm_layer=timm_mixer.Affine)
    )
    owner = model if path == "head_drop" else model.blocks[1]
    owner.set_submodule(path, part.eval())
    folded = mixer_kernels.fuse(copy.deepcopy(model))
    assert largest_difference(model, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("layers", [reference, fused_layers], ids=["reference", "fused"])
@pytest.mark.parametrize(
    "path", ["blocks.1.linear_tokens", "blocks.1.mlp_channels.fc1", "class_mlp.blocks.0.linear_tokens", "head"]
)
def test_parametrized_weights_are_folded(path, layers):
    model = build(layers, global_pool="class_mlp")
    parametrizations.weight_norm(model.get_submodule(path))
    model = randomise(model)
    folded = mixer_kernels.fuse(copy.deepcopy(model))
    assert not any(map(is_scale_or_offset, folded.modules()))
    assert largest_difference(model, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("name", ["mixer_s32_224", "convmixer_768_32"])
def test_other_models_stay_as_they_are(name):
    with torch.device("meta"):
        model = mixer_kernels.models.create_model(name).eval()
    modules = list(model.modules())
    assert list(mixer_kernels.fuse(model).modules()) == modules


def test_a_layer_held_twice_is_folded_once():
    block = randomise(reference.ResMLPBlock(24, 9))
    model = mixer_kernels.fuse(nn.Sequential(block, block).eval())
    assert model[0] is model[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_small_layer_scale_in_half_precision(dtype):
    exact = reference.ResMLPBlock(24, 9, init_values=1e-6).eval()
    with torch.no_grad():
        exact.norm2.alpha.normal_(1, 0.2)
        exact.norm2.beta.normal_(0, 0.2)
    plain = copy.deepcopy(exact).to(dtype)
    folded = mixer_kernels.fuse(copy.deepcopy(plain))
    # Beside a residual of zero, the update is all there is to see.
    x = torch.randn(2, 9, 24).to(dtype)
    block = exact.to(dtype).double()
    z = folded.tokens(x)
    truth = block.ls2 * block.mlp_channels(block.norm2(z.double()))
    update = folded.mlp_channels(z).double()
    if folded.layer_scale is not None:
        update = update * folded.layer_scale.double()
    assert (update - truth).norm() <= 0.02 * truth.norm()
