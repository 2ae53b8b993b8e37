"""The affine-folded linear on every device and backend of this machine, against its reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import accuracy
import pytest
import torch
from accuracy import LAYOUTS, Arrange, Function, Tensors, as_it_is, in_float64, with_gradients
from citizenship import assert_accurate_under_autocast, assert_captures, assert_compiles, assert_exports
from digits import CHANNELS, TOKENS, assert_training_follows_the_reference
from tolerances import assert_as_accurate
from torch.library import opcheck

import mixer_kernels
import mixer_kernels.functional as MF
from mixer_kernels import reference as reference_layers

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (B, S, C); 113 and 208 are the fewest and the most tokens that warpgroups take.
SIZES = (
    *itertools.product((1, 3), (1, 49, 196, 197, 256), (30, 96)),
    *((1, 196, 384), (3, 49, 384), (64, 5, 17), (1, 113, 72), (3, 208, 136)),
)


def draw(
    sizes: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu", scale: float = 0.1
) -> list[torch.Tensor | None]:
    """Return x, alpha, beta, weight, bias and a LayerScale around ``scale``."""
    batch, tokens, channels = sizes
    drawn = [
        torch.randn(batch, tokens, channels),
        *(1 + 0.2 * torch.randn(channels), 0.2 * torch.randn(channels)),
        *(torch.randn(tokens, tokens) * tokens**-0.5, torch.randn(tokens)),
        scale * (1 + 0.2 * torch.randn(channels)),
    ]
    return [value.to(device, dtype) for value in drawn]


def op(backend: str) -> Function:
    return lambda *inputs: MF.affine_token_linear(*inputs, backend=backend)


def by_the_definition(
    x: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    layer_scale: torch.Tensor,
) -> torch.Tensor:
    """Each channel of each image by itself: an oracle that shares nothing with the reference."""
    y = torch.empty_like(x)
    for image, channel in itertools.product(range(x.shape[0]), range(x.shape[2])):
        column = x[image, :, channel]
        update = weight.mv(alpha[channel] * column + beta[channel]) + bias
        y[image, :, channel] = column + layer_scale[channel] * update
    return y


def assert_accurate(backend: str, make_inputs: Callable[[], Tensors], arrange: Arrange = as_it_is) -> None:
    accuracy.assert_accurate(op(backend), op("reference"), make_inputs, arrange, few=256, update=True)


def test_reference_is_the_definition():
    inputs = draw((2, 7, 5), torch.float64)
    torch.testing.assert_close(op("reference")(*inputs), by_the_definition(*inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_are_accurate(device, backend, dtype, sizes):
    assert_accurate(backend, lambda: draw(sizes, dtype, device))


@pytest.mark.parametrize("scale", [0.1, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_small_layer_scale_keeps_its_update(device, backend, dtype, scale):
    assert_accurate(backend, lambda: draw((2, 49, 96), dtype, device, scale))

    # Beside an x of the update's own size, the update is all there is to see.
    def small() -> Tensors:
        x, *parameters = draw((2, 49, 96), dtype, device, scale)
        return [x * scale, *parameters]

    assert_accurate(backend, small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_update_is_rounded_once(device, backend, dtype):
    # x of zeros leaves the constant part, each element of which has one correct rounding.
    _, alpha, beta, weight, bias, scale = draw((1, 49, 96), dtype, device, 1e-4)
    x = torch.zeros(1, 49, 96, device=device, dtype=dtype)
    y = op(backend)(x, alpha, beta, weight, bias, scale)
    exact = op("reference")(*(value.double() for value in (x, alpha, beta, weight, bias, scale)))
    spacing = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    tiny = 0 if dtype == torch.bfloat16 else 2.0**-25
    assert ((y.double() - exact).abs() <= exact.abs() * spacing / 1.9 + 1e-9 + tiny).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(device, backend, dtype, layout):
    for sizes in ((2, 49, 96), (3, 5, 30)):
        assert_accurate(backend, lambda sizes=sizes: draw(sizes, dtype, device), LAYOUTS[layout])


def test_an_expanded_gradient_and_expanded_images(device, backend):
    x, *parameters = draw((1, 20, 40), torch.float32, device)
    images = x.expand(3, -1, -1)
    actual = with_gradients(op(backend), [images, *parameters])
    expected = with_gradients(op("reference"), [images, *parameters])
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_absent_parameters(device, backend):
    for absent in ((1,), (2,), (4,), (5,), (1, 2), (4, 5), (1, 2, 4, 5)):

        def some(absent: tuple[int, ...] = absent) -> Tensors:
            every = draw((2, 20, 40), torch.float32, device)
            return [None if i in absent else value for i, value in enumerate(every)]

        assert_accurate(backend, some)


def test_parameters_of_the_channels_with_leading_ones(device, backend):
    inputs = draw((2, 20, 40), torch.float32, device)
    shaped = [value.view(1, 1, -1) if i in (1, 2, 5) else value for i, value in enumerate(inputs)]
    actual, expected = with_gradients(op(backend), shaped), with_gradients(op(backend), inputs)
    assert [value.shape for value in actual[1:]] == [value.shape for value in shaped]
    assert all(torch.equal(ours.flatten(), plain.flatten()) for ours, plain in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_of_the_channels_kept_in_float32(device, backend, dtype):
    for kept in ((1, 2, 5), (5,), (1,)):

        def mixed(kept: tuple[int, ...] = kept) -> Tensors:
            every = draw((2, 49, 96), dtype, device)
            return [value.float() if i in kept else value for i, value in enumerate(every)]

        assert_accurate(backend, mixed)
        inputs = mixed()
        gradients = with_gradients(op(backend), inputs)
        assert [value.dtype for value in gradients[1:]] == [value.dtype for value in inputs]


def test_autocast(device, backend):
    inputs = draw((2, 49, 96), torch.float32, device)
    assert_accurate_under_autocast(op(backend), op("reference"), inputs, device, torch.float32)


@pytest.mark.parametrize("scale", [0.1, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_keeps_the_update(device, backend, dtype, scale):
    x, *parameters = draw((2, 49, 96), torch.float32, device, scale)
    for inputs in ([x, *parameters], [x.to(dtype), *parameters]):
        with torch.autocast(device, dtype=dtype):
            y, *gradients = with_gradients(op(backend), inputs)
            plain = op("reference")(*inputs)
        assert y.dtype == plain.dtype == torch.float32
        assert [gradient.dtype for gradient in gradients] == [value.dtype for value in inputs]
        updates = (value.double() - inputs[0].double() for value in (y, plain, op("reference")(*in_float64(inputs))))
        assert_as_accurate(*(update.float() for update in updates))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_of_half_types_alone(device, backend, dtype):
    inputs = draw((2, 49, 96), dtype, device)
    expected = op(backend)(*inputs)
    with torch.autocast(device, dtype=dtype):
        y = op(backend)(*inputs)
    assert torch.equal(y, expected)


def test_float64_is_exact():
    pytest.importorskip("mixer_kernels._C")
    for arrange in (lambda x: x, *LAYOUTS.values()):
        inputs = draw((2, 20, 41), torch.float64)
        dy = torch.randn_like(inputs[0])
        actual = with_gradients(op("native"), inputs, arrange(dy), arrange)
        expected = with_gradients(by_the_definition, inputs, dy)
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    # From 512 channels of all images on, float32 is multiplied in parts where there is AMX.
    for sizes in ((2, 49, 96), (3, 5, 30), (6, 49, 96), (18, 5, 30), (4, 196, 130), (6, 197, 96)):
        assert_accurate("native", lambda sizes=sizes: draw(sizes, dtype))
    assert_accurate("native", lambda: draw((13, 20, 40), dtype), LAYOUTS["transposed"])
    assert_accurate("native", lambda: draw((6, 49, 96), dtype, scale=1e-6))


@pytest.mark.parametrize("arrange", [as_it_is, LAYOUTS["transposed"]], ids=["contiguous", "transposed"])
def test_every_instruction_set_under_autocast(isa, arrange):
    for sizes in ((2, 49, 96), (6, 49, 96), (18, 5, 30), (4, 196, 130)):
        inputs = draw(sizes, torch.float32)
        dy = torch.randn_like(inputs[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = with_gradients(op("native"), inputs, arrange(dy), arrange)
        expected = with_gradients(op("reference"), in_float64(inputs), dy)
        for one, truth in zip(actual, expected, strict=True):
            assert (one - truth).norm() <= 2.0**-14 * truth.norm()


@pytest.mark.parametrize("isa", ["avx2", "amx"], indirect=True)
def test_weight_gradients_of_many_images(isa):
    # A sum over all of their columns, of which one thread has every one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_accurate("native", lambda: draw((64, 17, 512), torch.float32))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_output_larger_than_caches(dtype, isa):
    # From 4 MiB on it is stored past them.
    inputs = draw((9, 16, 2**15 // dtype.itemsize), dtype)
    exact = op("reference")(*(value.double() for value in inputs))
    assert_as_accurate(op("native")(*inputs), op("reference")(*inputs), exact)


@pytest.mark.parametrize("sizes", [(3, 20, 40), (2, 196, 300)], ids=str)
def test_values_that_are_not_finite_stay_in_their_channel(device, backend, sizes):
    inputs = draw(sizes, torch.float32, device)
    expected = op(backend)(*inputs)
    inputs[0][1, 3, 5] = float("nan")
    y = op(backend)(*inputs)
    assert y[1, :, 5].isnan().all()
    y[1, :, 5] = expected[1, :, 5]
    assert torch.equal(y, expected)


def test_an_infinite_element_keeps_its_sign_in_products(isa):
    # The last four of 196 tokens lie elsewhere in the operands of AMX.
    for tokens, token in ((49, 3), (196, 194)):
        inputs = draw((2, tokens, 300), torch.float32)
        inputs[0][1, token, 5] = -float("inf")
        actual, expected = op("native")(*inputs), op("reference")(*inputs)
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf() * actual.sign().nan_to_num(), expected.isinf() * expected.sign().nan_to_num())


def test_a_beta_that_takes_x_away_leaves_its_digits(isa):
    x, _, _, weight, bias, _ = draw((2, 49, 96), torch.float32)
    scale = torch.ones(96)
    inputs = [x + 30, scale, -30 * scale, weight, bias, scale]
    exact = op("reference")(*in_float64(inputs))
    assert_as_accurate(op("native")(*inputs), op("reference")(*inputs), exact)


def test_an_empty_batch(device, backend):
    y, dx, *gradients = with_gradients(op(backend), draw((0, 5, 6), torch.float32, device))
    assert y.shape == dx.shape == (0, 5, 6)
    assert len(gradients) == 5
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(device, backend, dtype):
    inputs = draw((4, 196, 160), dtype, device)
    first, second = (with_gradients(op(backend), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_backward_keeps_nothing_but_its_inputs(device, backend):
    inputs = [value.requires_grad_() for value in draw((2, 49, 96), torch.float32, device)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        op(backend)(*inputs)
    assert {value.data_ptr() for value in kept} == {value.data_ptr() for value in inputs}


def test_only_the_gradients_that_are_wanted(device, backend):
    x, *parameters = draw((2, 20, 40), torch.float32, device)
    y = op(backend)(x, *(value.requires_grad_(i == 2) for i, value in enumerate(parameters)))
    y.sum().backward()
    assert [value.grad is not None for value in parameters] == [i == 2 for i in range(5)]
    assert x.grad is None


@pytest.mark.parametrize("absent", [(), (1, 2, 4, 5)], ids=str)
def test_gradcheck(absent):
    pytest.importorskip("mixer_kernels._C")
    inputs = [None if i in absent else v.requires_grad_() for i, v in enumerate(draw((2, 3, 5), torch.float64))]
    assert torch.autograd.gradcheck(op("native"), inputs)


@pytest.mark.parametrize("head", [torch.square, torch.positive], ids=["square", "sum"])
def test_double_backward_is_refused(device, backend, head):
    inputs = [value.requires_grad_() for value in draw((1, 3, 5), torch.float32, device)]
    (dx,) = torch.autograd.grad(head(op(backend)(*inputs)).sum(), inputs[0], create_graph=True)
    for differentiate in (torch.Tensor.backward, lambda loss: torch.autograd.grad(loss, inputs)):
        with pytest.raises(RuntimeError, match="differentiate twice; double backward needs backend='reference'"):
            differentiate(dx.sum())


@pytest.mark.parametrize("absent", [(), (1, 2, 4, 5)], ids=str)
def test_opcheck(device, backend, absent):
    suffix = "_triton" if backend == "triton" else ""
    inputs = [None if i in absent else v for i, v in enumerate(draw((2, 5, 6), torch.float32, device))]
    opcheck(getattr(torch.ops.mixer_kernels, f"affine_token_linear{suffix}_fwd").default, inputs)
    backward = getattr(torch.ops.mixer_kernels, f"affine_token_linear{suffix}_bwd").default
    opcheck(backward, (torch.randn_like(inputs[0]), *inputs))


@pytest.mark.parametrize(("compiler", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compile_whole_graph(device, backend, compiler, dynamic):
    def inputs(batch: int) -> Tensors:
        return draw((batch, 5, 12), torch.float32, device)

    assert_compiles(op(backend), op("reference"), inputs, compiler, dynamic)


def test_compile_under_autocast(device, backend):
    torch._dynamo.reset()

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return op(backend)(*inputs).square().sum()

    inputs = draw((2, 5, 12), torch.float32, device)
    actual = with_gradients(torch.compile(loss, fullgraph=True), inputs)
    for one, other in zip(actual, with_gradients(loss, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_export(device, backend):
    layer = mixer_kernels.AffineTokenLinear(12, 5, init_values=0.1, backend=backend, device=device)
    assert_exports(layer, torch.randn(2, 5, 12, device=device))


def test_fake_and_meta_tensors():
    inputs = draw((2, 5, 6), torch.bfloat16)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert MF.affine_token_linear(torch.empty(2, 5, 6, dtype=torch.bfloat16), *inputs[1:]).shape == (2, 5, 6)
    assert MF.affine_token_linear(*(value.to("meta") for value in inputs)).shape == (2, 5, 6)


@pytest.mark.gpu
def test_cuda_graph_capture(backend):
    assert_captures(op(backend), draw((4, 49, 96), torch.bfloat16, "cuda"))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(backend):
    x, *parameters = draw((1, 196, 1024), torch.bfloat16, "cuda")
    images = x.new_empty(11000, 196, 1024).copy_(x)
    y = op(backend)(images, *parameters)
    assert torch.equal(y[-1:], op(backend)(x, *parameters))


def resmlp_blocks(layers: ModuleType, backend: str | None) -> torch.nn.Module:
    blocks = (layers.ResMLPBlock(CHANNELS, TOKENS, init_values=1.0, backend=backend) for _ in range(2))
    return torch.nn.Sequential(*blocks, layers.Affine(CHANNELS))


def test_training_follows_the_reference(device, backend):
    assert_training_follows_the_reference(resmlp_blocks, device, backend, learning_rate=1e-2, least_accuracy=0.8)


@pytest.mark.parametrize("name", ["AffineTokenLinear", "ResMLPBlock"])
def test_layers_swap_by_state_dict(device, backend, name):
    plain = getattr(reference_layers, name)(24, 9, device=device)
    fused = getattr(mixer_kernels, name)(24, 9, backend=backend, device=device)
    assert issubclass(type(fused), type(plain))
    with torch.no_grad():
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 24, device=device)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["AffineTokenLinear", "ResMLPBlock"])
def test_layers_keep_a_small_update_under_autocast(device, backend, name):
    plain = getattr(reference_layers, name)(96, 49, init_values=1e-5, device=device)
    fused = getattr(mixer_kernels, name)(96, 49, init_values=1e-5, backend=backend, device=device)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 49, 96, device=device, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        outputs = [layer(x) for layer in (fused, plain)]
    assert all(y.dtype == torch.float32 for y in outputs)
    with torch.no_grad():
        outputs.append(plain.double()(x.double()))
    assert_as_accurate(*((y.double() - x.double()).float() for y in outputs))


def test_a_timm_block_swaps_by_state_dict(backend):
    timm_mixer = pytest.importorskip("timm.models.mlp_mixer")
    theirs = timm_mixer.ResBlock(24, 9)
    ours = mixer_kernels.ResMLPBlock(24, 9, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(ours(x), theirs(x))


def test_bad_arguments(device):
    x, *parameters = draw((2, 5, 6), torch.float32, device)
    alpha, beta, weight, bias, layer_scale = parameters

    def refuses(error: type[Exception], message: str, *inputs: object, **options: object) -> None:
        with pytest.raises(error, match=f"affine_token_linear: {message}"):
            MF.affine_token_linear(*inputs, **options)

    refuses(TypeError, "x must be a torch.Tensor, got list", [1.0], *parameters)
    refuses(TypeError, "x must have dtype .*, got torch.int64", x.long(), *parameters)
    refuses(ValueError, r"x must have 3 dimensions \(B, S, C\), got shape \(5, 6\)", x[0], *parameters)
    refuses(ValueError, r"x must have at least one token and one channel, got shape \(2, 0, 6\)", x[:, :0], *parameters)
    refuses(ValueError, r"alpha must have shape \(6,\), got shape \(5,\)", x, alpha[:5], *parameters[1:])
    refuses(
        ValueError,
        r"beta must have shape \(1, 1, 6\), got shape \(1, 5, 1\)",
        *(x, alpha, bias.view(1, 5, 1), weight, bias, layer_scale),
    )
    refuses(
        ValueError,
        r"weight must have shape \(5, 5\), got shape \(4, 5\)",
        *(x, alpha, beta, weight[:4], bias, layer_scale),
    )
    refuses(ValueError, r"bias must have shape \(5,\), got shape \(6,\)", *(x, alpha, beta, weight, alpha, layer_scale))
    refuses(TypeError, "layer_scale must be a torch.Tensor, got float", *(x, alpha, beta, weight, bias, 0.1))
    refuses(
        TypeError,
        "weight must have x's dtype torch.float32, got torch.float16",
        *(x, alpha, beta, weight.half(), bias, layer_scale),
    )
    refuses(
        TypeError,
        "alpha must have x's dtype torch.float32 or torch.float32, got torch.float16",
        *(x, alpha.half(), beta, weight, bias, layer_scale),
    )
    refuses(
        RuntimeError,
        "weight must be on x's device .*, got meta",
        *(x, alpha, beta, weight.to("meta"), bias, layer_scale),
    )
    refuses(ValueError, "backend must be one of .* or None, got 'cudnn'", x, *parameters, backend="cudnn")


def test_the_ops_check_what_protects_memory():
    pytest.importorskip("mixer_kernels._C")
    x, *parameters = draw((2, 5, 6), torch.float32)
    forward, backward = (getattr(torch.ops.mixer_kernels, f"affine_token_linear_{name}") for name in ("fwd", "bwd"))
    for position, bad in ((0, torch.zeros(5)), (2, torch.zeros(4, 5)), (3, torch.zeros(6)), (4, torch.zeros(7))):
        wrong = [bad if i == position else value for i, value in enumerate(parameters)]
        with pytest.raises(ValueError, match=r"affine_token_linear: .* must have shape"):
            forward(x, *wrong)
    with pytest.raises(ValueError, match="affine_token_linear: dy must have shape"):
        backward(x[:1], x, *parameters)
    with pytest.raises(TypeError, match="affine_token_linear: weight must have dtype"):
        forward(x, *parameters[:2], parameters[2].double(), *parameters[3:])
