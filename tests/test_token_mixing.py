"""Token mixing on every device and backend of this machine, against its reference in float64."""

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
from mixer_kernels.ops._activation import ACTIVATION_CODES

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = tuple(ACTIVATION_CODES)
# (B, S, C, D)
SIZES = (
    (1, 1, 30, 1),
    (3, 49, 96, 33),
    (2, 196, 96, 96),
    (1, 197, 30, 256),
    (3, 196, 130, 7),
    (1, 113, 72, 130),  # the fewest and the most tokens that warpgroups take
    (3, 208, 136, 64),
    (1, 256, 512, 384),
    (64, 5, 17, 3),
)
LARGE_SIZES = ((1, 784, 768, 96), (1, 1024, 30, 640), (1, 49, 1280, 257), (2, 196, 1024, 512))


def draw(sizes: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor | None]:
    """Return x and the six parameters of token mixing; the first five are those of the linear form."""
    batch, tokens, channels, hidden = sizes
    drawn = [
        torch.randn(batch, tokens, channels),
        *(torch.randn(channels), torch.randn(channels)),
        *(torch.randn(hidden, tokens) * tokens**-0.5, torch.randn(hidden)),
        *(torch.randn(tokens, hidden) * hidden**-0.5, torch.randn(tokens)),
    ]
    return [value.to(device, dtype) for value in drawn]


def mixing(backend: str, activation: str | None = "gelu", eps: float = 1e-6) -> Function:
    return lambda *inputs: MF.token_mixing(*inputs, activation=activation, eps=eps, backend=backend)


def linear(backend: str, activation: str | None = "gelu", eps: float = 1e-6) -> Function:
    return lambda *inputs: MF.layer_norm_token_linear(*inputs[:5], activation=activation, eps=eps, backend=backend)


def assert_accurate(
    form: Callable[..., Function],
    backend: str,
    make_inputs: Callable[[], Tensors],
    arrange: Arrange = as_it_is,
    **options: object,
) -> None:
    accuracy.assert_accurate(form(backend, **options), form("reference", **options), make_inputs, arrange)


@pytest.mark.parametrize("form", [mixing, linear])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_are_accurate(device, backend, dtype, sizes, form):
    assert_accurate(form, backend, lambda: draw(sizes, dtype, device))


@pytest.mark.parametrize("sizes", LARGE_SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_sizes(device, backend, dtype, sizes):
    assert_accurate(mixing, backend, lambda: draw(sizes, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_output_larger_than_caches(dtype, isa):
    # From 4 MiB on it is stored past them.
    inputs = draw((9, 16, 2**15 // dtype.itemsize, 3), dtype)
    exact = mixing("reference")(*(value.double() for value in inputs))
    assert_as_accurate(mixing("native")(*inputs), mixing("reference")(*inputs), exact)


@pytest.mark.parametrize("isa", ["avx2", "amx"], indirect=True)
def test_weight_gradients_of_many_images(isa):
    # A sum over all of their columns, of which one thread has every one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_accurate(mixing, "native", lambda: draw((64, 17, 512, 24), torch.float32))
    finally:
        torch.set_num_threads(threads)


def test_the_profiler_counts_scratch_memory_in_every_call():
    pytest.importorskip("mixer_kernels._C")
    inputs = draw((2, 49, 96, 33), torch.float32)

    def allocated() -> list[int]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            mixing("native")(*inputs)
        events = profiler.profiler.kineto_results.events()
        return [event.nbytes() for event in events if event.name() == "[memory]"]

    allocated()  # from here on the thread has what it needs
    for _ in range(2):
        sizes = allocated()
        # y, the statistics, and at least the normalised and the hidden columns of a tile
        assert sum(size for size in sizes if size > 0) > 2 * 49 * 96 * 4 + (49 + 33) * 32 * 4
        assert len([size for size in sizes if size < 0]) > 5


@pytest.mark.parametrize("form", [mixing, linear])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(device, backend, activation, form):
    # In float32: what relu does to a value that low precision moved across zero is luck.
    assert_accurate(form, backend, lambda: draw((3, 49, 96, 33), torch.float32, device), activation=activation)


def test_activations_of_extreme_values(device, backend):
    x = torch.linspace(-30, 30, 4001, device=device).view(1, 1, -1)
    spread = torch.cat((x, torch.full_like(x, -x.max().item()).roll(1)), 1)
    inputs = [spread, None, None, torch.tensor([[20.0, 0.0], [3.0, 0.0]], device=device), None]
    for activation in ACTIVATIONS:
        y, expected = (linear(name, activation=activation)(*inputs) for name in (backend, "reference"))
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-5)
    # Far below zero nothing is left of the exact form.
    z, y = (linear(backend, activation=activation)(*inputs) for activation in (None, "gelu"))
    assert (z < -8).any()
    assert (y[z < -8] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gelu_of_large_negative_values_in_half_types(device, backend, dtype):
    # The kernels may approximate the normal distribution function, but what is left of it must not grow with z.
    x = torch.linspace(-30, 30, 401, device=device, dtype=dtype).view(1, 1, -1)
    inputs = [x, None, None, torch.full((2, 1), 2000.0, device=device, dtype=dtype), None]
    z, y = (linear(backend, activation=activation)(*inputs) for activation in (None, "gelu"))
    assert (z < -3000).any()
    assert (y[z < -8].abs() < 1e-5).all()


@pytest.mark.parametrize("form", [mixing, linear])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(device, backend, dtype, layout, form):
    for sizes in ((2, 49, 96, 33), (3, 5, 30, 7)):
        assert_accurate(form, backend, lambda sizes=sizes: draw(sizes, dtype, device), LAYOUTS[layout])


def test_an_expanded_gradient_and_expanded_images(device, backend):
    x, *parameters = draw((1, 20, 40, 9), torch.float32, device)
    images = x.expand(3, -1, -1)
    actual = with_gradients(mixing(backend), [images, *parameters])
    expected = with_gradients(mixing("reference"), [images, *parameters])
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [mixing, linear])
def test_absent_parameters(device, backend, form):
    for absent in ((1, 2), (1,), (2,), (4,), (6,), (1, 2, 4, 6)):

        def some(absent: tuple[int, ...] = absent) -> Tensors:
            every = draw((2, 20, 40, 9), torch.float32, device)
            return [None if i in absent else value for i, value in enumerate(every)]

        assert_accurate(form, backend, some)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_eps_counts(device, backend, eps):
    def small() -> Tensors:
        x, *parameters = draw((2, 20, 40, 9), torch.float32, device)
        return [x * eps**0.5, *parameters]

    assert_accurate(mixing, backend, small, eps=eps)


def test_statistics_of_a_large_mean(device, backend):
    def far() -> Tensors:
        x, *parameters = draw((2, 49, 768, 33), torch.float32, device)
        return [x + 1e4, *parameters]

    assert_accurate(linear, backend, far)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_norm_kept_in_float32(device, backend, dtype):
    def mixed() -> Tensors:
        x, norm_weight, norm_bias, *linears = draw((2, 49, 96, 33), dtype, device)
        return [x, norm_weight.float(), norm_bias.float(), *linears]

    assert_accurate(mixing, backend, mixed)
    inputs = mixed()
    gradients = with_gradients(mixing(backend), inputs)
    assert [value.dtype for value in gradients[1:]] == [value.dtype for value in inputs]


def test_a_float64_norm_of_float32_parameters():
    pytest.importorskip("mixer_kernels._C")
    x, norm_weight, norm_bias, *others = draw((2, 5, 30, 7), torch.float64)
    inputs = (x, norm_weight.float(), norm_bias.float(), *others)
    torch.testing.assert_close(mixing("reference")(*inputs), mixing("native")(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", [0, 1e4])
@pytest.mark.parametrize(("form", "dtype"), [(mixing, torch.float32), (linear, torch.bfloat16)])
def test_autocast(device, backend, form, dtype, mean):
    # The mean of a float32 input would take all digits of a half type.
    x, *parameters = draw((2, 49, 96, 33), torch.float32, device)
    assert_accurate_under_autocast(form(backend), form("reference"), [x + mean, *parameters], device, dtype)


@pytest.mark.parametrize("form", [mixing, linear])
def test_autocast_of_a_half_type(device, backend, form):
    x, *parameters = draw((2, 49, 96, 33), torch.float32, device)
    half = [value.bfloat16() for value in parameters[2:]]
    with torch.autocast(device, dtype=torch.bfloat16):
        y = form(backend)(x.bfloat16(), *parameters)
        assert torch.equal(y, form(backend)(x.bfloat16(), *parameters[:2], *half))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_float64_is_exact(activation):
    pytest.importorskip("mixer_kernels._C")
    for form, arrange in itertools.product((mixing, linear), (lambda x: x, *LAYOUTS.values())):
        inputs = draw((2, 20, 41, 9), torch.float64)
        dy = torch.randn_like(form("reference")(*inputs))
        actual = with_gradients(form("native", activation=activation), inputs, arrange(dy), arrange)
        expected = with_gradients(form("reference", activation=activation), inputs, dy)
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    for form in (mixing, linear):
        # From 512 channels of all images on, float32 is multiplied in parts where there is AMX.
        for sizes in ((2, 49, 96, 33), (3, 5, 30, 7), (6, 49, 96, 33), (18, 5, 30, 7), (4, 196, 130, 96)):
            assert_accurate(form, "native", lambda sizes=sizes: draw(sizes, dtype))
        assert_accurate(form, "native", lambda: draw((13, 20, 40, 9), dtype), LAYOUTS["transposed"])
    for activation in ACTIVATIONS:
        assert_accurate(linear, "native", lambda: draw((2, 20, 40, 9), torch.float32), activation=activation)


@pytest.mark.parametrize("arrange", [as_it_is, LAYOUTS["transposed"]], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("form", [mixing, linear])
def test_every_instruction_set_under_autocast(isa, form, arrange):
    for sizes in ((2, 49, 96, 33), (6, 49, 96, 33), (18, 5, 30, 7), (4, 196, 130, 96)):
        inputs = draw(sizes, torch.float32)
        # What autocast's dtype of y does not round.
        dy = torch.randn_like(form("reference")(*inputs)).bfloat16().float()
        expected = with_gradients(form("reference"), in_float64(inputs), dy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = with_gradients(form("native"), inputs, arrange(dy), arrange)
        for one, truth in zip(actual, expected, strict=True):
            assert (one - truth).norm() <= (2.0**-12 if one.dtype == torch.float32 else 2.0**-8) * truth.norm()


@pytest.mark.parametrize("form", [mixing, linear])
def test_a_dead_unit_passes_nothing_on(isa, form):
    inputs = draw((2, 7, 16, 33), torch.float32)
    dy = torch.randn(2, 7 if form is mixing else 33, 16)
    dy[0, :, 2] = float("inf")
    actual, expected = (with_gradients(form(name, activation="relu"), inputs, dy) for name in ("native", "reference"))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours is None or torch.equal(ours.isfinite(), theirs.isfinite())


def test_an_infinite_weight_keeps_its_sign_in_products(isa):
    inputs = draw((2, 49, 300, 33), torch.float32)
    inputs[3][3, 7] = -float("inf")
    actual, expected = (linear(backend, activation=None)(*inputs) for backend in ("native", "reference"))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isinf() * actual.sign(), expected.isinf() * expected.sign())
    assert expected[:, 3].isinf().all()


def test_values_that_are_not_finite_stay_in_their_image(device, backend):
    inputs = draw((3, 20, 40, 9), torch.float32, device)
    expected = mixing(backend)(*inputs)
    inputs[0][1, 3, 5] = float("nan")
    y = mixing(backend)(*inputs)
    assert y[1].isnan().all()
    assert torch.equal(y[::2], expected[::2])


@pytest.mark.parametrize("form", [mixing, linear])
def test_an_empty_batch(device, backend, form):
    inputs = draw((0, 5, 6, 7), torch.float32, device)
    y, dx, *gradients = with_gradients(form(backend), inputs)
    assert y.shape == form("reference")(*inputs).shape
    assert dx.shape == (0, 5, 6)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_the_same_bits_every_time(device, backend):
    inputs = draw((4, 196, 160, 96), torch.float32, device)
    first, second = (with_gradients(mixing(backend), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_backward_keeps_x_and_two_numbers_a_token(device, backend):
    inputs = [value.requires_grad_() for value in draw((2, 49, 96, 33), torch.float32, device)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        mixing(backend)(*inputs)
    given = {value.data_ptr() for value in inputs}
    extra = [value for value in kept if value.data_ptr() not in given]
    assert sum(value.numel() for value in extra) == 2 * 2 * 49


def test_only_the_gradients_that_are_wanted(device, backend):
    x, *parameters = draw((2, 20, 40, 9), torch.float32, device)
    y = mixing(backend)(x, *(value.requires_grad_(i == 2) for i, value in enumerate(parameters)))
    y.sum().backward()
    assert [value.grad is not None for value in parameters] == [i == 2 for i in range(6)]
    assert x.grad is None


@pytest.mark.parametrize("form", [mixing, linear])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh"], ids=str)
def test_gradcheck(form, activation):
    pytest.importorskip("mixer_kernels._C")
    count = 7 if form is mixing else 5
    inputs = [value.requires_grad_() for value in draw((2, 3, 5, 4), torch.float64)[:count]]
    assert torch.autograd.gradcheck(form("native", activation=activation, eps=1e-3), inputs)


def test_forward_mode_differentiation_is_refused(device, backend):
    # The tangent would be dropped silently: nothing here requires grad.
    inputs = draw((1, 3, 5, 4), torch.float32, device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            mixing(backend)(dual, *inputs[1:])


def test_another_half_type_under_autocast(device, backend):
    x, norm_weight, norm_bias, *others = draw((2, 5, 12, 7), torch.float32, device)
    half = norm_weight.half(), norm_bias.half()
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = mixing(backend)(x, *half, *others)
        assert torch.equal(actual, mixing(backend)(x, *(value.float() for value in half), *others))


@pytest.mark.parametrize("head", [torch.square, torch.positive], ids=["square", "sum"])
def test_double_backward_is_refused(device, backend, head):
    inputs = [value.requires_grad_() for value in draw((1, 3, 5, 4), torch.float32, device)]
    (dx,) = torch.autograd.grad(head(mixing(backend)(*inputs)).sum(), inputs[0], create_graph=True)
    for differentiate in (torch.Tensor.backward, lambda loss: torch.autograd.grad(loss, inputs)):
        with pytest.raises(RuntimeError, match="differentiate twice; double backward needs backend='reference'"):
            differentiate(dx.sum())


@pytest.mark.parametrize("absent", [False, True])
def test_opcheck(device, backend, absent):
    suffix = "_triton" if backend == "triton" else ""
    x, *parameters = draw((2, 5, 6, 7), torch.float32, device)
    if absent:
        parameters[0] = parameters[3] = parameters[5] = None
    code = ACTIVATION_CODES["gelu"]
    for name, given, dy in (
        ("layer_norm_token_linear", parameters[:4], torch.randn(2, 7, 6, device=device)),
        ("token_mixing", parameters, torch.randn_like(x)),
    ):
        forward = getattr(torch.ops.mixer_kernels, f"{name}{suffix}_fwd").default
        backward = getattr(torch.ops.mixer_kernels, f"{name}{suffix}_bwd").default
        opcheck(forward, (x, *given, 1e-6, code))
        _, mean, rstd = forward(x, *given, 1e-6, code)
        opcheck(backward, (dy, x, mean, rstd, *given, code))


@pytest.mark.parametrize(("compiler", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compile_whole_graph(device, backend, compiler, dynamic):
    def inputs(batch: int) -> Tensors:
        return draw((batch, 5, 12, 7), torch.float32, device)

    assert_compiles(mixing(backend), mixing("reference"), inputs, compiler, dynamic)


def test_export(device, backend):
    layer = mixer_kernels.TokenMixing(12, 5, 7, backend=backend, device=device)
    assert_exports(layer, torch.randn(2, 5, 12, device=device))


def test_fake_and_meta_tensors():
    inputs = draw((2, 5, 6, 7), torch.bfloat16)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert MF.token_mixing(torch.empty(2, 5, 6, dtype=torch.bfloat16), *inputs[1:]).shape == (2, 5, 6)
    on_meta = [value.to("meta") for value in inputs]
    assert MF.token_mixing(*on_meta).shape == (2, 5, 6)
    assert MF.layer_norm_token_linear(*on_meta[:5]).shape == (2, 7, 6)


@pytest.mark.gpu
def test_cuda_graph_capture(backend):
    assert_captures(mixing(backend), draw((4, 49, 96, 33), torch.bfloat16, "cuda"))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(backend):
    x, *parameters = draw((1, 196, 1024, 96), torch.bfloat16, "cuda")
    images = x.new_empty(11000, 196, 1024).copy_(x)
    y = mixing(backend)(images, *parameters)
    assert torch.equal(y[-1:], mixing(backend)(x, *parameters))


def mixer_blocks(layers: ModuleType, backend: str | None) -> torch.nn.Module:
    blocks = (layers.MixerBlock(CHANNELS, TOKENS, backend=backend) for _ in range(2))
    return torch.nn.Sequential(*blocks)


def test_training_follows_the_reference(device, backend):
    assert_training_follows_the_reference(mixer_blocks, device, backend, learning_rate=3e-3, least_accuracy=0.85)


@pytest.mark.parametrize("name", ["TokenMixing", "MixerBlock"])
def test_layers_swap_by_state_dict(device, backend, name):
    plain = getattr(reference_layers, name)(24, 9, device=device)
    fused = getattr(mixer_kernels, name)(24, 9, backend=backend, device=device)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 24, device=device)
    torch.testing.assert_close(fused(x), plain(x))


def test_bad_arguments(device):
    x, *parameters = draw((2, 5, 6, 7), torch.float32, device)
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = parameters

    def refuses(error: type[Exception], message: str, *inputs: object, **options: object) -> None:
        with pytest.raises(error, match=f"token_mixing: {message}"):
            MF.token_mixing(*inputs, **options)

    refuses(TypeError, "x must be a torch.Tensor, got list", [1.0], *parameters)
    refuses(TypeError, "x must have dtype .*, got torch.int64", x.long(), *parameters)
    refuses(ValueError, r"x must have 3 dimensions \(B, S, C\), got shape \(5, 6\)", x[0], *parameters)
    refuses(ValueError, r"x must have at least one token and one channel, got shape \(2, 0, 6\)", x[:, :0], *parameters)
    refuses(
        ValueError,
        r"norm_weight must have shape \(6,\), got shape \(5,\) for x of shape \(2, 5, 6\)",
        x,
        norm_weight[:5],
        *parameters[1:],
    )
    refuses(
        ValueError,
        r"weight1 must have shape \(D, 5\), got shape \(5, 7\)",
        *(x, norm_weight, norm_bias, weight1.T, bias1, weight2, bias2),
    )
    refuses(
        ValueError,
        r"weight1 must have at least one row, got shape \(0, 5\)",
        *(x, norm_weight, norm_bias, weight1[:0], None, weight2[:, :0], bias2),
    )
    refuses(
        ValueError,
        r"weight2 must have shape \(5, 7\), got shape \(7, 5\)",
        *(x, norm_weight, norm_bias, weight1, bias1, weight2.T, bias2),
    )
    refuses(
        ValueError,
        r"bias2 must have shape \(5,\), got shape \(7,\)",
        *(x, norm_weight, norm_bias, weight1, bias1),
        *(weight2, bias1),
    )
    refuses(
        TypeError,
        "weight1 must have x's dtype torch.float32, got torch.float16",
        *(x, norm_weight, norm_bias, weight1.half(), bias1, weight2, bias2),
    )
    refuses(
        TypeError,
        "norm_bias must have x's dtype torch.float32 or torch.float32, .*got torch.float16",
        *(x, norm_weight, norm_bias.half(), weight1, bias1, weight2, bias2),
    )
    refuses(
        RuntimeError,
        "weight1 must be on x's device .*, got meta",
        *(x, norm_weight, norm_bias, weight1.to("meta"), bias1, weight2, bias2),
    )
    refuses(
        ValueError,
        "activation must be None, 'relu', 'gelu' or 'gelu_tanh', got 'silu'",
        x,
        *parameters,
        activation="silu",
    )
    refuses(ValueError, "backend must be one of .* or None, got 'cudnn'", x, *parameters, backend="cudnn")


def test_the_ops_protect_memory():
    pytest.importorskip("mixer_kernels._C")
    x, *parameters = draw((2, 5, 6, 7), torch.float32)
    parameters[2] = parameters[2][:, :4]
    with pytest.raises(ValueError, match="token_mixing: weight1 must have shape"):
        torch.ops.mixer_kernels.token_mixing_fwd(x, *parameters, 1e-6, 2)
