"""Fused layers put into existing models, and weights fitted to another image size."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mixer_kernels
from mixer_kernels import nn as fused_layers
from mixer_kernels import reference
from mixer_kernels.convert import resize_token_mixing, s2mlpv2_from_jittor_mlp
from mixer_kernels.convert.sources import class_name
from mixer_kernels.models import create_model

FAMILIES = {
    "mixer_s16_224": {"img_size": 64, "num_blocks": 2, "embed_dim": 12},
    "resmlp_12_224": {"img_size": 64, "num_blocks": 2, "embed_dim": 12},
    "s2mlpv2_small_7_224": {"img_size": 56, "depths": (1, 2), "embed_dims": (8, 12)},
    "convmixer_768_32": {"img_size": 56, "depth": 2, "dim": 12},
}
BLOCKS = {"mixer": "MixerBlock", "resmlp": "ResMLPBlock", "convmixer": "ConvMixerLayer", "s2mlpv2": "S2Block"}


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Draw everything anew: what starts as the identity would hide a mistake."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if value.dim() < 2 else value.normal_(std=0.2)
    return model


def plain_model(name: str, **kwargs: Any) -> nn.Module:
    arguments = {"num_classes": 3, "backend": "reference", "dtype": torch.float64}
    return randomise(create_model(name, **{**arguments, **FAMILIES[name], **kwargs}))


def timm_model(name: str, **kwargs: Any) -> nn.Module:
    pytest.importorskip("timm")
    from timm.models import convmixer, mlp_mixer

    arguments = {"num_classes": 3, **FAMILIES[name], **kwargs}
    if name.startswith("convmixer"):
        del arguments["img_size"]
        return randomise(convmixer.ConvMixer(kernel_size=7, patch_size=7, **arguments).double())
    if name.startswith("resmlp"):
        arguments |= {"mlp_ratio": 4, "block_layer": mlp_mixer.ResBlock, "norm_layer": mlp_mixer.Affine}
    return randomise(mlp_mixer.MlpMixer(**arguments).double())


def image(name: str) -> torch.Tensor:
    size = FAMILIES[name]["img_size"]
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reasons(module: nn.Module) -> list[str | None]:
    return [entry.reason for entry in module.report]


SOURCES = [(plain_model, name) for name in FAMILIES] + [
    (timm_model, name) for name in FAMILIES if not name.startswith("s2mlp")
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("source", "name"), SOURCES)
def test_accelerate_keeps_everything_but_the_layers(source: Callable, name: str, training: bool) -> None:
    model = source(name).train(training)
    next(model.parameters()).requires_grad_(False)
    state, parameters = model.state_dict(), dict(model.named_parameters())
    frozen = copy.deepcopy(model)
    x = image(name)
    expected = frozen(x)

    accelerated = mixer_kernels.accelerate(model, backend="native")
    assert accelerated is model
    torch.testing.assert_close(model(x), expected)
    assert all(module.training is training for module in model.modules())
    assert list(model.state_dict()) == list(state)
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == {
        key: value.data_ptr() for key, value in state.items()
    }

    fused = getattr(fused_layers, BLOCKS[name.split("_")[0]])
    blocks = [module for module in model.modules() if type(module) is fused]
    assert len(blocks) == 3 if name.startswith("s2") else 2
    assert all(block.backend == "native" for block in blocks)
    assert set(reasons(model)) <= {None, "no fused layer yet"}
    assert [model.get_submodule(entry.name) for entry in model.report if entry.new == class_name(fused)] == blocks

    types = [type(module) for module in model.modules()]
    mixer_kernels.accelerate(model)
    assert [type(module) for module in model.modules()] == types
    assert "already fused" in reasons(model)
    assert set(reasons(model)) <= {"already fused", "no fused layer yet"}


@pytest.mark.parametrize(("source", "name"), SOURCES)
def test_accelerated_models_train_alike(source: Callable, name: str) -> None:
    model, x = source(name), image(name)
    optimizers, losses = [], []
    for copied in (copy.deepcopy(model), mixer_kernels.accelerate(model)):
        # The optimizer of the accelerated model belongs to its parameters from before.
        optimizers.append(torch.optim.SGD(copied.parameters(), lr=1e-3, momentum=0.9))
        for _ in range(3):
            loss = copied(x).square().mean()
            optimizers[-1].zero_grad()
            loss.backward()
            optimizers[-1].step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)


def test_without_a_fused_layer_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "MixerBlock", reference.MixerBlock)
    model = mixer_kernels.accelerate(plain_model("mixer_s16_224"))
    assert reasons(model) == ["no fused layer yet"] * 2
    assert str(model.report).splitlines() == [
        "replaced 0 of 2 layers",
        "     layer     was                                           is",
        "2 x  blocks.*  mixer_kernels.reference.mlp_mixer.MixerBlock  left: no fused layer yet",
    ]


def test_report_of_what_there_is() -> None:
    model = mixer_kernels.accelerate(nn.ModuleDict({"shift": reference.SpatialShift(), "other": nn.Linear(2, 2)}))
    (entry,) = model.report
    assert entry.name == "shift"
    assert entry.old == "mixer_kernels.reference.s2mlp.SpatialShift"
    assert entry.new == "mixer_kernels.nn.s2mlp.SpatialShift"
    assert entry.reason is None
    assert str(mixer_kernels.accelerate(nn.Linear(2, 2)).report) == "replaced 0 of 0 layers"


def test_the_model_may_be_a_layer_itself() -> None:
    layer = mixer_kernels.accelerate(reference.S2Block(8))
    assert type(layer) is fused_layers.S2Block
    assert type(layer.attention) is fused_layers.S2Attention
    assert "(the model)" in str(layer.report)
    block = timm_model("mixer_s16_224").blocks[0].eval()
    x = torch.randn(2, 16, 12, dtype=torch.float64)
    new = mixer_kernels.accelerate(block)
    assert type(new) is fused_layers.MixerBlock
    assert new.report[0].new == class_name(fused_layers.MixerBlock)
    torch.testing.assert_close(new(x), block(x))


def test_a_layer_that_a_model_holds_twice_stays_one() -> None:
    block = timm_model("mixer_s16_224").blocks[0]
    model = mixer_kernels.accelerate(nn.ModuleList([block, nn.Sequential(block)]))
    assert type(model[0]) is fused_layers.MixerBlock
    assert model[1][0] is model[0]
    assert len(model.report) == 1


def test_the_report_counts_a_split_attention_once() -> None:
    model = mixer_kernels.accelerate(plain_model("s2mlpv2_small_7_224"))
    names = [entry.name.split(".")[-1] for entry in model.report]
    assert names.count("attention") == 3
    assert "split_attention" not in names
    assert "split_attention" not in str(mixer_kernels.accelerate(model).report)
    # By itself it takes branches that are shifted already.
    assert reasons(mixer_kernels.accelerate(reference.SplitAttention(8))) == ["no fused layer yet"]


class Subclass(reference.S2Attention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def with_hook(part: Callable[[Any], nn.Module], register: str = "register_forward_hook") -> Callable[[Any], Any]:
    def change(layer: Any) -> Any:
        getattr(part(layer), register)(lambda *_: None)
        return layer

    return change


def with_part(path: str, part: Callable[[Any], nn.Module]) -> Callable[[Any], Any]:
    def change(layer: Any) -> Any:
        parent, _, name = path.rpartition(".")
        setattr(layer.get_submodule(parent), name, part(layer))
        return layer

    return change


def patched(layer: Any) -> Any:
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: Subclass(8), "a subclass"),
        (patched, "another forward"),
        (with_hook(lambda layer: layer), "hooks,"),
        (with_hook(lambda layer: layer.mlp1), "hooks on mlp1,"),
        (with_hook(lambda layer: layer.mlp1, "register_full_backward_hook"), "hooks on mlp1,"),
        (with_part("mlp1", lambda _: Subclass(8)), "mlp1 is a "),
        (with_part("split_attention.act", lambda _: nn.ReLU()), "activation split_attention.act is a ReLU"),
        (with_part("split_attention.act", lambda _: nn.GELU("tanh")), "activation split_attention.act is a GELU"),
        (with_part("split_attention.mlp1", lambda _: nn.Linear(8, 8)), "split_attention.mlp1 has a bias"),
        (with_hook(lambda layer: layer.split_attention), "hooks on split_attention,"),
        (with_part("mlp1", lambda layer: parametrizations.orthogonal(layer.mlp1)), "mlp1.*Parametrized"),
    ],
)
def test_reference_layers_that_are_left(change: Callable[[Any], Any], reason: str) -> None:
    layer = change(reference.S2Attention(8))
    cls = type(layer)
    assert mixer_kernels.accelerate(layer) is layer
    assert type(layer) is cls
    assert layer.report[0].new is None
    assert re.match(reason, layer.report[0].reason)


REFERENCE_LAYERS = {
    "TokenMixing": lambda: reference.TokenMixing(12, 10),
    "MixerBlock": lambda: reference.MixerBlock(12, 10),
    "AffineTokenLinear": lambda: reference.AffineTokenLinear(12, 10),
    "ResMLPBlock": lambda: reference.ResMLPBlock(12, 10),
}


@pytest.mark.parametrize(
    ("name", "path", "part", "reason"),
    [
        ("TokenMixing", "act", nn.SiLU(), "activation act is a SiLU"),
        ("TokenMixing", "norm", nn.LayerNorm((10, 12), elementwise_affine=False), "norm is over more"),
        ("TokenMixing", "fc2", nn.Sequential(nn.Linear(6, 10), nn.Tanh()), "fc2 is a torch.nn.modules.container."),
        ("MixerBlock", "mlp_tokens.act", nn.ReLU(), "activation mlp_tokens.act is a ReLU"),
        ("MixerBlock", "mlp_tokens.act", nn.GELU("tanh"), "activation mlp_tokens.act is a GELU"),
        ("MixerBlock", "mlp_tokens.act", nn.Sequential(nn.ReLU(), nn.Dropout()), "activation mlp_tokens.act is a Seq"),
        ("MixerBlock", "mlp_tokens", nn.Linear(10, 10), "mlp_tokens is a torch.nn.modules.linear.Linear"),
        ("MixerBlock", "norm1", nn.RMSNorm(12), "norm1 is a torch.nn.modules.normalization.RMSNorm"),
        ("MixerBlock", "norm1", nn.Identity(), "norm1 is a torch.nn.modules.linear.Identity"),
        ("AffineTokenLinear", "norm", nn.Identity(), "norm is a torch.nn.modules.linear.Identity"),
        ("ResMLPBlock", "norm1", nn.LayerNorm(12), "norm1 is a torch.nn.modules.normalization.LayerNorm"),
        ("ResMLPBlock", "linear_tokens", nn.Sequential(nn.Linear(10, 10)), "linear_tokens is a torch.nn.modules.cont"),
        # These halves are called as they are.
        ("MixerBlock", "mlp_channels.act", nn.SiLU(), None),
        ("ResMLPBlock", "norm2", nn.LayerNorm(12), None),
    ],
)  # fmt: skip
def test_reference_layers_with_other_parts(name: str, path: str, part: nn.Module, reason: str | None) -> None:
    layer = randomise(with_part(path, lambda _: part)(REFERENCE_LAYERS[name]())).eval()
    x = torch.randn(2, 10, 12)
    expected = layer(x)
    assert mixer_kernels.accelerate(layer) is layer
    assert type(layer) is getattr(reference if reason else fused_layers, name)
    torch.testing.assert_close(layer(x), expected)
    assert (layer.report[0].reason or "").startswith(reason or "")
    assert (layer.report[0].reason is None) == (reason is None)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mixer", with_part("mlp_tokens.drop1", lambda _: nn.Dropout(0.1)), "drop1 drops with probability 0.1"),
        ("mixer", with_part("mlp_tokens.norm", lambda _: nn.LayerNorm(6)), "mlp_tokens.norm is a "),
        ("mixer", with_part("mlp_tokens.act", lambda _: nn.SiLU()), "activation mlp_tokens.act is a "),
        ("mixer", with_part("mlp_channels.act", lambda _: nn.ReLU()), "two activations, gelu and relu"),
        ("mixer", with_part("mlp_tokens", lambda _: nn.Identity()), "mlp_tokens is a "),
        ("mixer", with_part("mlp_channels.fc2", lambda _: nn.Bilinear(2, 2, 2)), "mlp_channels.fc2 is a "),
        ("mixer", with_part("norm1", lambda _: nn.RMSNorm(12)), "norm1 is a "),
        ("mixer", with_part("extra", lambda _: nn.Linear(2, 2)), "extra is a "),
        ("mixer", with_hook(lambda block: block.norm1), "hooks on norm1"),
        ("resmlp", with_part("mlp_channels.drop2", lambda _: nn.Dropout(0.5)), "drops with probability 0.5"),
        ("resmlp", with_part("linear_tokens", lambda _: nn.Identity()), "linear_tokens is a "),
        ("resmlp", with_part("norm1", lambda _: nn.LayerNorm(12)), "norm1 is a "),
        ("convmixer", with_part("0.fn.0", lambda _: nn.Conv2d(12, 12, 7, padding="same")), "has groups 1, not 12"),
        ("convmixer", with_part("0.fn.0", lambda _: nn.Conv2d(12, 12, 7, groups=12)), "0.fn.0 has padding"),
        ("convmixer", with_part("2", lambda _: nn.GELU()), "two activations, gelu and relu"),
        ("convmixer", with_part("3", lambda _: nn.Identity()), "3 is a "),
    ],
)  # fmt: skip
def test_timm_layers_that_are_left(name: str, change: Callable[[Any], Any], reason: str) -> None:
    family = next(family for family in FAMILIES if family.startswith(name))
    activation = {"act_layer": nn.ReLU} if name == "convmixer" else {}
    block = change(timm_model(family, **activation).blocks[0])
    assert mixer_kernels.accelerate(block) is block
    assert reason in block.report[0].reason


def test_stochastic_depth_and_other_layers_of_timm_are_left() -> None:
    model = mixer_kernels.accelerate(timm_model("mixer_s16_224", drop_path_rate=0.1).eval())
    assert reasons(model) == ["drop_path drops with probability 0.1"] * 2
    from timm.layers import GluMlp

    model = mixer_kernels.accelerate(timm_model("mixer_s16_224", mlp_layer=GluMlp))
    assert reasons(model) == ["mlp_tokens is a timm.layers.mlp.GluMlp"] * 2


def test_every_width_of_a_timm_block_survives_its_ratio() -> None:
    for hidden in (1, 2, 3, 49, 98):  # 1 / 49 * 49 < 1
        block = timm_model("mixer_s16_224", embed_dim=49, mlp_ratio=((hidden + 0.5) / 49, 1)).blocks[0]
        new = mixer_kernels.accelerate(block)
        assert new.mlp_tokens.fc1.out_features == hidden
        assert type(new) is fused_layers.MixerBlock


def test_fused_layers_differ_in_their_forward_only() -> None:
    """What accelerate relies on when it turns a reference layer into a fused one where it is."""
    for name in fused_layers.__all__:
        fused, plain = getattr(fused_layers, name), getattr(reference, name)
        assert issubclass(fused, plain)
        assert fused.__init__ is plain.__init__


def test_accelerate_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch\.nn\.Module, got list"):
        mixer_kernels.accelerate([])
    with pytest.raises(ValueError, match="accelerate: backend must be one of"):
        mixer_kernels.accelerate(nn.Identity(), backend="fast")


def token_mixing_layers() -> dict[str, tuple[Callable[..., nn.Module], dict[str, torch.Tensor]]]:
    """Return builders of the blocks whose channel mixing adds nothing, and the state of one for 2 x 3 tokens."""
    states = {}
    for make in (reference.MixerBlock, reference.ResMLPBlock):
        block = randomise(make(4, 6, dtype=torch.float64))
        nn.init.zeros_(block.mlp_channels.fc2.weight)
        nn.init.zeros_(block.mlp_channels.fc2.bias)
        states[make.__name__] = (make, block.state_dict())
    return states


def load(make: Callable[..., nn.Module], seq_len: int, state: dict[str, torch.Tensor]) -> nn.Module:
    ratio = {}
    if make is reference.MixerBlock:
        ratio = {"mlp_ratio": (state["mlp_tokens.fc1.weight"].shape[0] / 4, 4)}
    block = make(4, seq_len, **ratio, dtype=torch.float64)
    block.load_state_dict(state)
    return block


@pytest.mark.parametrize("name", ["MixerBlock", "ResMLPBlock"])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 1), (1, 2)])
def test_block_diagonal_mixes_every_part_of_the_image_as_before(name: str, rows: int, columns: int) -> None:
    make, state = token_mixing_layers()[name]
    old = load(make, 6, state)
    resized = resize_token_mixing(state, (2 * rows, 3 * columns), old_grid=(2, 3))
    new = load(make, 6 * rows * columns, resized)
    x = torch.randn(5, 2 * rows, 3 * columns, 4, dtype=torch.float64)
    expected = torch.empty_like(x)
    for row in range(rows):
        for column in range(columns):
            part = (slice(None), slice(2 * row, 2 * row + 2), slice(3 * column, 3 * column + 3))
            expected[part] = old(x[part].flatten(1, 2)).unflatten(1, (2, 3))
    torch.testing.assert_close(new(x.flatten(1, 2)).view_as(x), expected)


@pytest.mark.parametrize("name", ["MixerBlock", "ResMLPBlock"])
@pytest.mark.parametrize("new_grid", [(3, 4), (2, 2), (1, 7), (4, 6), (2, 3)])
def test_bilinear_is_the_old_layer_on_the_resampled_map(name: str, new_grid: tuple[int, int]) -> None:
    make, state = token_mixing_layers()[name]
    old = load(make, 6, state)
    new = load(
        make, new_grid[0] * new_grid[1], resize_token_mixing(state, new_grid, old_grid=(2, 3), method="bilinear")
    )

    def resample(tokens: torch.Tensor, source: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
        maps = tokens.mT.unflatten(-1, source)
        return nn.functional.interpolate(maps, target, mode="bilinear", antialias=True).flatten(-2).mT

    x = torch.randn(5, new_grid[0] * new_grid[1], 4, dtype=torch.float64)
    # LayerNorm, or the affine map, comes first; the residual stays at the new resolution.
    small = resample(old.norm1(x), new_grid, (2, 3)).mT
    mixed = old.mlp_tokens(small).mT if name == "MixerBlock" else old.ls1 * old.linear_tokens(small).mT
    torch.testing.assert_close(new(x), x + resample(mixed, (2, 3), new_grid))
    if new_grid == (2, 3):
        torch.testing.assert_close(new.state_dict(), old.state_dict())


@pytest.mark.parametrize("name", ["mixer_s16_224", "resmlp_12_224"])
def test_whole_models_take_another_image_size(name: str) -> None:
    small = plain_model(name)
    state = {key: value.clone() for key, value in small.state_dict().items()}
    large = plain_model(name, img_size=96)
    large.load_state_dict(resize_token_mixing(small.state_dict(), (6, 6)))
    ratio = {"mlp_ratio": (2.0, 4.0)} if name.startswith("mixer") else {}
    larger = plain_model(name, img_size=128, **ratio)
    larger.load_state_dict(resize_token_mixing(small.state_dict(), (8, 8)))
    x = image(name)
    # Four copies of an image mix as one did, and the mean over tokens is the same.
    torch.testing.assert_close(larger(x.repeat(1, 1, 2, 2)), small(x))
    # A constant image gives a map that is all but constant in every size; resampling keeps that.
    constant = torch.ones(1, 3, 96, 96, dtype=torch.float64)
    assert large(constant).isfinite().all()
    torch.testing.assert_close(small.state_dict(), state, rtol=0, atol=0)


def test_resize_keeps_dtype_and_shares_the_rest() -> None:
    state = plain_model("mixer_s16_224").to(torch.bfloat16).state_dict()
    resized = resize_token_mixing(state, (5, 3))
    assert list(resized) == list(state)
    assert {value.dtype for value in resized.values()} == {torch.bfloat16}
    changed = {key for key in state if resized[key].data_ptr() != state[key].data_ptr()}
    assert changed == {key for key in state if "mlp_tokens" in key}


def test_resize_bad_arguments() -> None:
    state = plain_model("resmlp_12_224").state_dict()
    with pytest.raises(ValueError, match="method must be one of"):
        resize_token_mixing(state, (8, 8), method="bicubic")
    with pytest.raises(ValueError, match=r"new_grid must be a multiple of \(4, 4\), got \(6, 6\)"):
        resize_token_mixing(state, (6, 6), method="block_diagonal")
    with pytest.raises(ValueError, match=r"old_grid must have 16 tokens, got \(3, 5\)"):
        resize_token_mixing(state, (6, 6), old_grid=(3, 5))
    with pytest.raises(ValueError, match="state_dict must have keys"):
        resize_token_mixing(nn.Linear(2, 2).state_dict(), (2, 2))
    with pytest.raises(ValueError, match="must not have a class-MLP head"):
        resize_token_mixing(plain_model("resmlp_12_224", global_pool="class_mlp").state_dict(), (8, 8))
    gated = {"mlp_tokens.fc1.weight": torch.zeros(8, 4), "mlp_tokens.fc2.weight": torch.zeros(4, 4)}
    with pytest.raises(ValueError, match="must feed fc2 as it is, got widths 8 and 4"):
        resize_token_mixing(gated, (4, 4))


class PreNormResidual(nn.Module):
    """As in the collection: its names are those of the checkpoints."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fn(self.norm(x))


class Permuted(nn.Module):
    """Blocks over (B, H, W, C) in a map (B, C, H, W)."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class JittorS2MLPv2(nn.Module):
    """S2-MLPv2 with the names of the Jittor-MLP collection, and the true shift."""

    def __init__(self, depths: tuple[int, ...], embed_dims: tuple[int, ...]) -> None:
        super().__init__()

        def block(dim: int) -> nn.Module:
            mlp = nn.Sequential(
                nn.Linear(dim, 3 * dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(3 * dim, dim), nn.Dropout(0.0)
            )
            return nn.Sequential(PreNormResidual(dim, reference.S2Attention(dim)), PreNormResidual(dim, mlp))

        sizes = zip((3, *embed_dims), embed_dims, (7, 2), depths, strict=False)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, dim, patch, patch), Permuted(*(block(dim) for _ in range(depth))))
                for before, dim, patch, depth in sizes
            )
        )
        self.mlp_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Linear(embed_dims[-1], 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp_head[1](self.mlp_head[0](self.stages(x)).flatten(1))


def test_checkpoints_of_the_jittor_collection_convert_exactly() -> None:
    sizes = FAMILIES["s2mlpv2_small_7_224"]
    theirs = randomise(JittorS2MLPv2(sizes["depths"], sizes["embed_dims"]).double())
    state = theirs.state_dict()
    assert {key.split(".fn.")[1] for key in state if ".0.fn." in key} == {
        *(f"{name}.{kind}" for name in ("mlp1", "mlp2") for kind in ("weight", "bias")),
        *(f"split_attention.{name}.weight" for name in ("mlp1", "mlp2")),
    }
    converted = s2mlpv2_from_jittor_mlp(state)
    assert {value.data_ptr() for value in converted.values()} == {value.data_ptr() for value in state.values()}
    x = image("s2mlpv2_small_7_224")
    for backend in ("reference", None):
        ours = plain_model("s2mlpv2_small_7_224", attention_ratio=1.0, backend=backend)
        ours.load_state_dict(converted)
        torch.testing.assert_close(ours(x), theirs(x))
    for key in ("stages.0.1.model.0.0.fn.mlp3.weight", "head.weight", "module.mlp_head.1.bias"):
        with pytest.raises(ValueError, match=rf"s2mlpv2_from_jittor_mlp: .*, got '{key}'"):
            s2mlpv2_from_jittor_mlp({key: x})
