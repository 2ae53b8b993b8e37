"""The plain-PyTorch layers against formulas written here in another way, and against timm's blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixer_kernels import reference

ACTIVATIONS = {
    None: lambda x: x,
    "relu": torch.relu,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
}

# Small instances of every class, and the state_dict keys that drop-in layers and checkpoints rely on.
CASES = {
    "TokenMixing": (lambda **kw: reference.TokenMixing(6, 5, **kw), "norm. fc1. fc2."),
    "ChannelMixing": (lambda **kw: reference.ChannelMixing(6, **kw), "norm. fc1. fc2."),
    "MixerBlock": (
        lambda **kw: reference.MixerBlock(6, 5, **kw),
        "norm1. mlp_tokens.fc1. mlp_tokens.fc2. norm2. mlp_channels.fc1. mlp_channels.fc2.",
    ),
    "Affine": (lambda **kw: reference.Affine(6, **kw), "alpha beta"),
    "AffineTokenLinear": (lambda **kw: reference.AffineTokenLinear(6, 5, **kw), "norm.alpha norm.beta linear. ls"),
    "ResMLPBlock": (
        lambda **kw: reference.ResMLPBlock(6, 5, **kw),
        "norm1.alpha norm1.beta linear_tokens. norm2.alpha norm2.beta mlp_channels.fc1. mlp_channels.fc2. ls1 ls2",
    ),
    "SpatialShift": (lambda **kw: reference.SpatialShift(**kw), ""),
    "SplitAttention": (lambda **kw: reference.SplitAttention(6, **kw), "mlp1.weight mlp2.weight"),
    "S2Attention": (
        lambda **kw: reference.S2Attention(6, **kw),
        "mlp1. mlp2. split_attention.mlp1.weight split_attention.mlp2.weight",
    ),
    "S2Block": (
        lambda **kw: reference.S2Block(6, **kw),
        "norm1. attention.mlp1. attention.mlp2. attention.split_attention.mlp1.weight "
        "attention.split_attention.mlp2.weight norm2. mlp_channels.fc1. mlp_channels.fc2.",
    ),
    "DepthwiseConv2d": (lambda **kw: reference.DepthwiseConv2d(6, 3, **kw), "weight bias"),
    "ConvMixerLayer": (lambda **kw: reference.ConvMixerLayer(6, 3, **kw), "0.fn.0. 0.fn.2.bn 1. 3.bn"),
}
INPUTS = {
    **dict.fromkeys(("TokenMixing", "ChannelMixing", "MixerBlock", "Affine", "AffineTokenLinear"), (2, 5, 6)),
    **dict.fromkeys(("SpatialShift", "S2Attention", "S2Block"), (2, 3, 4, 6)),
    **dict.fromkeys(("DepthwiseConv2d", "ConvMixerLayer"), (2, 6, 5, 4)),
    "ResMLPBlock": (2, 5, 6),
    "SplitAttention": (2, 3, 3, 4, 6),
}


def expand_keys(short: str) -> set[str]:
    """Return full parameter names: a trailing dot stands for weight and bias, "bn" for a BatchNorm's five."""
    keys = set()
    for key in short.split():
        if key.endswith(".bn"):
            names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            keys |= {key[:-2] + name for name in names}
        elif key.endswith("."):
            keys |= {key + "weight", key + "bias"}
        else:
            keys.add(key)
    return keys


def randomise(module: nn.Module) -> nn.Module:
    """Draw every parameter and buffer anew, so that identities at initialisation hide nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return module


def build(name: str) -> nn.Module:
    """Return a randomised float64 instance of the class."""
    torch.manual_seed(0)
    return randomise(CASES[name][0](dtype=torch.float64))


def make_input(name: str) -> torch.Tensor:
    """Return a float64 input of the class."""
    return torch.randn(INPUTS[name], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert equality up to float64 rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Normalise over the last dimension by the definition."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def shift_by_loops(x: torch.Tensor, directions: tuple[str, ...]) -> torch.Tensor:
    """Shift pixel by pixel."""
    _, height, width, channels = x.shape
    y = torch.empty_like(x)
    for c in range(channels):
        group = next(i for i in range(len(directions)) if c < (i + 1) * channels // len(directions))
        direction = directions[group]
        step = 1 if direction[0] == "+" else -1
        for h in range(height):
            for w in range(width):
                source_h, source_w = (h - step, w) if direction[1] == "h" else (h, w - step)
                inside = 0 <= source_h < height and 0 <= source_w < width
                y[:, h, w, c] = x[:, source_h, source_w, c] if inside else x[:, h, w, c]
    return y


@pytest.mark.parametrize("name", CASES)
def test_state_dict_keys_and_round_trip(name: str) -> None:
    make, keys = CASES[name]
    module = build(name).eval()
    assert set(module.state_dict()) == expand_keys(keys)
    other = make(dtype=torch.float64).eval()
    other.load_state_dict(module.state_dict())
    x = make_input(name)
    assert torch.equal(module(x), other(x))


@pytest.mark.parametrize("name", CASES)
def test_constructor_keywords(name: str) -> None:
    make, _ = CASES[name]
    assert make().backend is None
    assert make(backend="native").backend == "native"
    assert isinstance(make(), getattr(reference, name))
    for tensor in make(device="meta", dtype=torch.bfloat16).state_dict().values():
        assert tensor.device.type == "meta"
        assert tensor.dtype in (torch.bfloat16, torch.int64)
    assert all(parameter.isfinite().all() for parameter in make(dtype=torch.float16).parameters())


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    module, x = build(name), make_input(name).requires_grad_()
    if name == "ConvMixerLayer":
        # In training mode a bias before BatchNorm has a gradient of exactly zero, which tells nothing.
        module.eval()
    names = [key for key, _ in module.named_parameters()]

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", [name for name in CASES if name != "SplitAttention"])
def test_empty_batch(name: str) -> None:
    x = make_input(name)[:0]
    assert build(name).eval()(x).shape == x.shape


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_token_mixing(activation: str | None) -> None:
    m = randomise(reference.TokenMixing(6, 5, 7, eps=1e-3, activation=activation, dtype=torch.float64))
    x = make_input("TokenMixing")
    hidden = ACTIVATIONS[activation](
        torch.einsum("ds,bsc->bdc", m.fc1.weight, layer_norm(x, m.norm)) + m.fc1.bias[:, None]
    )
    close(m(x), x + torch.einsum("sd,bdc->bsc", m.fc2.weight, hidden) + m.fc2.bias[:, None])


def test_token_mixing_widths() -> None:
    assert reference.TokenMixing(6, 5).fc1.weight.shape == (3, 5)
    assert reference.TokenMixing(6, 5, 1).fc2.weight.shape == (5, 1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_channel_mixing(activation: str | None) -> None:
    m = randomise(reference.ChannelMixing(6, 7, eps=1e-3, activation=activation, dtype=torch.float64))
    x = make_input("ChannelMixing")
    hidden = ACTIVATIONS[activation](torch.einsum("dc,bsc->bsd", m.fc1.weight, layer_norm(x, m.norm)) + m.fc1.bias)
    close(m(x), x + torch.einsum("cd,bsd->bsc", m.fc2.weight, hidden) + m.fc2.bias)


def test_mixer_block_is_both_halves() -> None:
    block, x = build("MixerBlock"), make_input("MixerBlock")
    tokens = reference.TokenMixing(6, 5, dtype=torch.float64)
    channels = reference.ChannelMixing(6, dtype=torch.float64)
    for half, norm, mlp in ((tokens, block.norm1, block.mlp_tokens), (channels, block.norm2, block.mlp_channels)):
        half.load_state_dict({f"norm.{k}": v for k, v in norm.state_dict().items()} | dict(mlp.state_dict()))
    assert torch.equal(block(x), channels(tokens(x)))


def test_mixer_block_widths() -> None:
    both = reference.MixerBlock(6, 5, 2)
    assert both.mlp_tokens.fc1.out_features == both.mlp_channels.fc1.out_features == 12
    each = reference.MixerBlock(6, 5, [0.5, 3])
    assert (each.mlp_tokens.fc1.out_features, each.mlp_channels.fc1.out_features) == (3, 18)


def test_affine_starts_as_identity() -> None:
    x = torch.randn(2, 5, 6)
    assert torch.equal(reference.Affine(6)(x), x)


def test_affine_token_linear_folds_into_the_epilogue() -> None:
    m, x = build("AffineTokenLinear"), make_input("AffineTokenLinear")
    alpha, beta = m.norm.alpha[0, 0], m.norm.beta[0, 0]
    offset = m.linear.weight.sum(1)[:, None] * beta + m.linear.bias[:, None]  # [S, C]
    close(m(x), x + m.ls * alpha * torch.einsum("st,btc->bsc", m.linear.weight, x) + m.ls * offset)


def test_layer_scale_starts_at_init_values() -> None:
    assert torch.equal(reference.AffineTokenLinear(6, 5, init_values=0.5).ls, torch.full((6,), 0.5))
    block = reference.ResMLPBlock(6, 5, init_values=1e-6)
    assert torch.equal(block.ls1, torch.full((6,), 1e-6))
    assert torch.equal(block.ls2, torch.full((6,), 1e-6))
    assert torch.equal(reference.ResMLPBlock(6, 5).ls1, torch.full((6,), 1e-4))


def test_resmlp_block() -> None:
    block, x = build("ResMLPBlock"), make_input("ResMLPBlock")
    first = reference.AffineTokenLinear(6, 5, dtype=torch.float64)
    first.norm.load_state_dict(block.norm1.state_dict())
    first.linear.load_state_dict(block.linear_tokens.state_dict())
    first.ls.data = block.ls1.data
    z = first(x)
    fc1, fc2 = block.mlp_channels.fc1, block.mlp_channels.fc2
    # Aff, LayerScale and the two linears fold at weight level.
    hidden = z @ (fc1.weight * block.norm2.alpha[0]).T + fc1.bias + fc1.weight @ block.norm2.beta[0, 0]
    y = ACTIVATIONS["gelu"](hidden) @ (block.ls2[:, None] * fc2.weight).T + block.ls2 * fc2.bias
    close(block(x), z + y)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (1, 4, 3, 30), (2, 1, 5, 3), (1, 5, 1, 7), (1, 1, 1, 4), (0, 3, 3, 4)])
@pytest.mark.parametrize(
    "directions", [("+h", "-h", "+w", "-w"), ("+w", "-w", "+h", "-h"), ("-w",), ("+h", "+h", "-w")]
)
def test_spatial_shift(shape: tuple[int, ...], directions: tuple[str, ...]) -> None:
    x = torch.randn(shape)
    before = x.clone()
    assert torch.equal(reference.SpatialShift(directions)(x), shift_by_loops(x, directions))
    assert torch.equal(x, before)


def test_split_attention() -> None:
    m, x = build("SplitAttention"), make_input("SplitAttention") * 0.1
    total = torch.zeros(2, 6, dtype=torch.float64)
    for k in range(3):
        total += x[:, k].sum((1, 2))
    logits = ACTIVATIONS["gelu"](total @ m.mlp1.weight.T) @ m.mlp2.weight.T
    exponents = torch.stack([logits[:, 6 * k : 6 * (k + 1)].exp() for k in range(3)])
    y = sum(x[:, k] * (exponents[k] / exponents.sum(0))[:, None, None, :] for k in range(3))
    close(m(x), y)


def test_split_attention_follows_its_sizes() -> None:
    m = reference.SplitAttention(6, num_branches=2, hidden_dim=4)
    assert m.mlp1.weight.shape == (4, 6)
    assert m.mlp2.weight.shape == (12, 4)
    assert m(torch.randn(1, 2, 3, 3, 6)).shape == (1, 3, 3, 6)


def test_s2_block() -> None:
    block, x = build("S2Block"), make_input("S2Block")
    attention = block.attention
    parts = layer_norm(x, block.norm1) @ attention.mlp1.weight.T + attention.mlp1.bias
    branches = torch.stack(
        [
            shift_by_loops(parts[..., :6], ("+h", "-h", "+w", "-w")),
            shift_by_loops(parts[..., 6:12], ("+w", "-w", "+h", "-h")),
            parts[..., 12:],
        ],
        dim=1,
    )
    z = x + attention.split_attention(branches) @ attention.mlp2.weight.T + attention.mlp2.bias
    fc1, fc2 = block.mlp_channels.fc1, block.mlp_channels.fc2
    hidden = ACTIVATIONS["gelu"](layer_norm(z, block.norm2) @ fc1.weight.T + fc1.bias)
    close(block(x), z + hidden @ fc2.weight.T + fc2.bias)


def test_s2_block_takes_another_attention() -> None:
    class Attention(reference.S2Attention):
        pass

    class Block(reference.S2Block):
        attention_class = Attention

    block = Block(6, attention_ratio=0.5, backend="native")
    assert type(block.attention) is Attention
    assert block.attention.backend == "native"
    assert block.attention.split_attention.mlp1.out_features == 3


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": 4},
        {"kernel_size": (5, 3), "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": 5, "stride": (2, 1), "padding": (3, 0)},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_depthwise_conv2d_is_a_depthwise_conv2d(arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(6, 6, groups=6, **{"padding": "same", **arguments})
    ours = reference.DepthwiseConv2d(6, **arguments)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 9, 11)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_conv_mixer_layer(activation: str, training: bool) -> None:
    layer = randomise(reference.ConvMixerLayer(6, 3, activation=activation, dtype=torch.float64)).train(training)
    depthwise, first_norm, pointwise, second_norm = layer[0].fn[0], layer[0].fn[2], layer[1], layer[3]

    def normalise(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = norm.running_mean.clone(), norm.running_var.clone()
        scale = norm.weight / (var + norm.eps).sqrt()
        return x * scale[:, None, None] + (norm.bias - mean * scale)[:, None, None]

    x = make_input("ConvMixerLayer")
    taps = F.unfold(x, 3, padding=1).view(2, 6, 9, 5, 4)
    z = torch.einsum("bckhw,ck->bchw", taps, depthwise.weight.flatten(1)) + depthwise.bias[:, None, None]
    z = normalise(ACTIVATIONS[activation](z), first_norm) + x
    y = torch.einsum("dc,bchw->bdhw", pointwise.weight[:, :, 0, 0], z) + pointwise.bias[:, None, None]
    close(layer(x), normalise(ACTIVATIONS[activation](y), second_norm))
    assert first_norm.num_batches_tracked == int(training)


def test_conv_mixer_layer_takes_another_convolution() -> None:
    class Convolution(reference.DepthwiseConv2d):
        pass

    class Layer(reference.ConvMixerLayer):
        depthwise_class = Convolution

    layer = Layer(6, 3, backend="native")
    assert type(layer[0].fn[0]) is Convolution
    assert layer[0].fn[0].backend == "native"


@pytest.mark.parametrize("name", CASES)
def test_deepcopy(name: str) -> None:
    module, x = build(name).eval(), make_input(name)
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reference.TokenMixing(0, 5), "TokenMixing: dim must be a positive integer, got 0"),
        (lambda: reference.TokenMixing(6, 5.0), "TokenMixing: seq_len must be a positive integer, got 5.0"),
        (lambda: reference.TokenMixing(6, 5, 0), "TokenMixing: hidden_dim must be a positive integer, got 0"),
        (lambda: reference.ChannelMixing("6"), "ChannelMixing: dim must be a positive integer, got '6'"),
        (lambda: reference.MixerBlock(1, 5), "Mlp: hidden_dim must be a positive integer, got 0"),
        (lambda: reference.MixerBlock(6, -1), "MixerBlock: seq_len must be a positive integer, got -1"),
        (lambda: reference.TokenMixing(6, 5, activation="silu"), "activation: name must be None, 'relu', 'gelu' or"),
        (lambda: reference.Affine(0), "Affine: dim must be a positive integer, got 0"),
        (lambda: reference.AffineTokenLinear(6, 0), "AffineTokenLinear: seq_len must be a positive integer, got 0"),
        (lambda: reference.ResMLPBlock(6, 0), "ResMLPBlock: seq_len must be a positive integer, got 0"),
        (lambda: reference.SpatialShift(()), "SpatialShift: directions must be a non-empty sequence of"),
        (lambda: reference.SpatialShift("+h"), "SpatialShift: directions must be a non-empty sequence of"),
        (lambda: reference.SpatialShift(("+h", "up")), "SpatialShift: directions must be a non-empty sequence of"),
        (lambda: reference.SplitAttention(6, 0), "SplitAttention: num_branches must be a positive integer, got 0"),
        (lambda: reference.S2Attention(0), "S2Attention: dim must be a positive integer, got 0"),
        (lambda: reference.S2Block(0), "S2Block: dim must be a positive integer, got 0"),
        (lambda: reference.DepthwiseConv2d(0, 3), "DepthwiseConv2d: channels must be a positive integer, got 0"),
        (lambda: reference.ConvMixerLayer(0), "ConvMixerLayer: dim must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message)


def test_blocks_equal_timms() -> None:
    pytest.importorskip("timm")
    from timm.models.mlp_mixer import MixerBlock, ResBlock

    x = torch.randn(2, 10, 12, dtype=torch.float64)
    for ours, theirs in (
        (reference.MixerBlock(12, 10), MixerBlock(12, 10)),
        (reference.ResMLPBlock(12, 10), ResBlock(12, 10)),
    ):
        ours.double().load_state_dict(randomise(theirs.double()).state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
