"""The shifted split attention on every device and backend of this machine, against its reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import accuracy
import pytest
import torch
from accuracy import MAP_LAYOUTS, Arrange, Function, Tensors, as_it_is, with_gradients
from citizenship import assert_accurate_under_autocast, assert_captures, assert_compiles, assert_exports
from digits import CHANNELS, assert_training_follows_the_reference
from torch.library import opcheck

import mixer_kernels
import mixer_kernels.functional as MF
from mixer_kernels import reference as reference_layers
from mixer_kernels.ops.split_attention.op import IMPLEMENTATIONS

OPS = torch.ops.mixer_kernels
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (B, H, W, C, D)
SIZES = (
    (1, 1, 1, 1, 1),
    (3, 1, 1, 30, 7),
    (2, 1, 2, 5, 5),
    (2, 2, 1, 3, 4),  # an empty group of channels
    (3, 2, 2, 64, 16),
    (2, 1, 9, 30, 30),
    (2, 9, 1, 33, 8),
    (1, 7, 5, 30, 30),
    (3, 5, 6, 97, 24),
    (1, 3, 151, 10, 10),  # rows that are cut
    (2, 14, 14, 66, 16),
    (1, 16, 16, 384, 96),
    (1, 32, 32, 192, 192),
    (64, 2, 3, 17, 4),
    (3, 32, 32, 192, 48),  # beyond the caches of a core
)


def draw(sizes: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """Return x, weight1 and weight2, of which neither saturates what follows."""
    batch, height, width, channels, hidden = sizes
    drawn = [
        torch.randn(batch, height, width, 3 * channels),
        torch.randn(hidden, channels) * (3 * height * width * channels) ** -0.5,
        torch.randn(3 * channels, hidden) * hidden**-0.5,
    ]
    return [value.to(device, dtype) for value in drawn]


def op(backend: str | None) -> Function:
    return lambda *inputs: MF.shifted_split_attention(*inputs, backend=backend)


def by_the_definition(x: torch.Tensor, weight1: torch.Tensor, weight2: torch.Tensor) -> torch.Tensor:
    """Pixel by pixel: an oracle that shares nothing with the reference."""
    batch, height, width, channels = x.shape[0], x.shape[1], x.shape[2], x.shape[3] // 3
    step = {"+h": (-1, 0), "-h": (1, 0), "+w": (0, -1), "-w": (0, 1)}
    moves = [[step[name] for name in names] for names in (MF.SHIFT_1, MF.SHIFT_2)] + [[(0, 0)] * 4]
    shifted = x.new_zeros(3, batch, height, width, channels)
    for k, h, w, c in itertools.product(range(3), range(height), range(width), range(channels)):
        dh, dw = moves[k][next(i for i in range(4) if c < (i + 1) * channels // 4)]
        inside = 0 <= h + dh < height and 0 <= w + dw < width
        row, column = (h + dh, w + dw) if inside else (h, w)
        shifted[k, :, h, w, c] = x[:, row, column, k * channels + c]
    y = x.new_zeros(batch, height, width, channels)
    for image in range(batch):
        inner = weight1 @ shifted[:, image].reshape(-1, channels).sum(0)
        hidden = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        power = (weight2 @ hidden).view(3, channels).exp()
        for k in range(3):
            y[image] += power[k] / power.sum(0) * shifted[k, image]
    return y


def assert_accurate(backend: str, make_inputs: Callable[[], Tensors], arrange: Arrange = as_it_is) -> None:
    accuracy.assert_accurate(op(backend), op("reference"), make_inputs, arrange, few=1024)


@pytest.mark.parametrize("sizes", [(2, 4, 3, 9, 5), (1, 1, 4, 3, 3), (2, 3, 1, 8, 2)], ids=str)
def test_reference_is_the_definition(sizes):
    inputs = draw(sizes, torch.float64)
    torch.testing.assert_close(op("reference")(*inputs), by_the_definition(*inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_are_accurate(device, backend, dtype, sizes):
    assert_accurate(backend, lambda: draw(sizes, dtype, device))


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(device, backend, dtype, layout):
    for sizes in ((2, 7, 5, 30, 8), (1, 6, 9, 64, 16)):
        assert_accurate(backend, lambda sizes=sizes: draw(sizes, dtype, device), MAP_LAYOUTS[layout])


def test_slices_of_pixels_and_expanded_images(device, backend):
    x, *weights = draw((1, 8, 9, 20, 5), torch.float32, device)
    for view in (x[:, 1:7, ::2], x[:, ::3, 2:].expand(3, -1, -1, -1), x[:, :1].expand(-1, 5, -1, -1)):
        actual, expected = (with_gradients(op(name), [view, *weights]) for name in (backend, "reference"))
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_weights_of_any_strides(device, backend):
    x, weight1, weight2 = draw((2, 5, 4, 12, 6), torch.float32, device)
    strided = (x, weight1.mT.contiguous().mT, torch.stack((weight2, weight2), -1)[..., 1])
    torch.testing.assert_close(op(backend)(*strided), op("reference")(x, weight1, weight2))


def test_float64_is_exact():
    pytest.importorskip("mixer_kernels._C")
    for arrange in (as_it_is, *MAP_LAYOUTS.values()):
        inputs = draw((2, 7, 5, 23, 11), torch.float64)
        dy = torch.randn(2, 7, 5, 23, dtype=torch.float64)
        actual = with_gradients(op("native"), inputs, arrange(dy), arrange)
        expected = with_gradients(by_the_definition, inputs, dy)
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_every_instruction_set_in_float64(isa):
    test_float64_is_exact()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    for sizes in ((2, 7, 5, 30, 8), (1, 3, 151, 33, 10), (11, 3, 4, 33, 50), (4, 32, 40, 128, 16), (1, 1, 4, 5, 5)):
        assert_accurate("native", lambda sizes=sizes: draw(sizes, dtype))
    assert_accurate("native", lambda: draw((2, 6, 7, 64, 8), dtype), MAP_LAYOUTS["channels_first"])


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF])
def test_every_nan_is_passed_on(isa, bits):
    x, *weights = draw((2, 5, 5, 8, 16), torch.float32)
    x[0, 2, 2, 3].view(torch.int32).fill_(bits)
    y = op("native")(x, *weights)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_sums_are_exact(device, backend, dtype):
    # Ones add up to an integer that float32 holds, and low precision does until it is cast.
    x = torch.ones(1, 200, 96, 15, device=device, dtype=dtype)
    _, total, _ = IMPLEMENTATIONS[backend].forward(x, x.new_zeros(4, 5), x.new_zeros(15, 4))
    assert torch.equal(total, torch.full((1, 5), 3.0 * 200 * 96, device=device))


def test_long_sums_lose_no_digits(device, backend):
    # One chain of float32 sums would be off by some 1e-6. The branches differ, lest the softmax's gradient cancel.
    _, weight1, weight2 = draw((1, 96, 96, 4, 3), torch.float32, device)
    means = torch.tensor((1.0, 10.0, -2.0)).repeat_interleave(4)
    x = (means + 0.1 * torch.randn(1, 96, 96, 12)).to(device)
    dy = 1 + 0.1 * torch.randn(1, 96, 96, 4, device=device)
    _, total, _ = IMPLEMENTATIONS[backend].forward(x, weight1, weight2)
    pieces = zip(x.double().chunk(3, -1), (MF.SHIFT_1, MF.SHIFT_2, None), strict=True)
    branches = torch.stack([x if names is None else MF.spatial_shift(x, names) for x, names in pieces], 1)
    torch.testing.assert_close(total.double(), branches.sum((1, 2, 3)), rtol=2e-7, atol=0)
    # Every branch has a third of the weight, and the hidden layer is the sums.
    inputs = x, torch.eye(4, device=device), x.new_zeros(12, 4)
    *_, dweight2 = with_gradients(op(backend), inputs, dy)
    dweights = (dy[:, None] * branches).sum((2, 3))
    exact = ((dweights - dweights.mean(1, keepdim=True)) / 3).view(12, 1) * branches.sum((1, 2, 3))
    torch.testing.assert_close(dweight2.double(), exact, rtol=5e-7, atol=0)


def test_a_softmax_that_picks_one_branch(device, backend):
    x, weight1, weight2 = draw((2, 6, 5, 24, 8), torch.float32, device)
    inputs = [x, weight1, weight2 * 1e3]
    actual, expected = (with_gradients(op(name), inputs)[0] for name in (backend, "reference"))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_what_the_shifts_lose_is_never_seen(device, backend):
    # "+h" loses the last row of its group, "-w" the first column.
    x, *weights = draw((1, 4, 5, 8, 8), torch.float32, device)
    expected = op(backend)(x, *weights)
    x[0, -1, :, 0:2] = float("inf")
    x[0, :, 0, 8 + 2 : 8 + 4] = float("nan")
    assert torch.equal(op(backend)(x, *weights), expected)


def test_values_that_are_not_finite_stay_in_their_image(device, backend):
    inputs = draw((3, 5, 4, 24, 8), torch.float32, device)
    expected = op(backend)(*inputs)
    inputs[0][1, 2, 2, 5] = float("nan")
    y = op(backend)(*inputs)
    assert y[1].isnan().all()
    y[1] = expected[1]
    assert torch.equal(y, expected)


def test_an_empty_batch(device, backend):
    y, dx, *gradients = with_gradients(op(backend), draw((0, 5, 6, 8, 4), torch.float32, device))
    assert y.shape == (0, 5, 6, 8)
    assert dx.shape == (0, 5, 6, 24)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(device, backend, dtype):
    inputs = draw((4, 32, 32, 100, 25), dtype, device)
    first, second = (with_gradients(op(backend), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_same_bits_on_any_number_of_threads():
    pytest.importorskip("mixer_kernels._C")
    inputs, threads, found = draw((3, 32, 32, 100, 25), torch.float32), torch.get_num_threads(), []
    dy = torch.randn(3, 32, 32, 100)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(with_gradients(op("native"), inputs, dy))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(others, found[0], strict=True))


def test_backward_keeps_the_features_and_four_numbers_a_channel(device, backend):
    inputs = [value.requires_grad_() for value in draw((2, 8, 8, 24, 6), torch.bfloat16, device)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        op(backend)(*inputs)
    own = {value.data_ptr() for value in inputs}
    assert own <= {value.data_ptr() for value in kept}
    assert sum(value.nbytes for value in kept if value.data_ptr() not in own) == 2 * 24 * (3 + 1) * 4


@pytest.mark.parametrize("wanted", range(3))
def test_only_the_gradients_that_are_wanted(device, backend, wanted):
    inputs = draw((2, 5, 4, 12, 6), torch.float32, device)
    expected = with_gradients(op("reference"), inputs)[1 + wanted]
    inputs[wanted].requires_grad_()
    op(backend)(*inputs).sum().backward()
    assert [value.grad is not None for value in inputs] == [i == wanted for i in range(3)]
    torch.testing.assert_close(inputs[wanted].grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(2, 3, 4, 6, 5), (1, 1, 3, 5, 4), (1, 3, 1, 4, 4)], ids=str)
def test_gradcheck(sizes):
    pytest.importorskip("mixer_kernels._C")
    assert torch.autograd.gradcheck(op("native"), [v.requires_grad_() for v in draw(sizes, torch.float64)])


@pytest.mark.parametrize("head", [torch.square, torch.positive], ids=["square", "sum"])
def test_double_backward_is_refused(device, backend, head):
    inputs = [value.requires_grad_() for value in draw((1, 3, 3, 4, 4), torch.float32, device)]
    (dx,) = torch.autograd.grad(head(op(backend)(*inputs)).sum(), inputs[0], create_graph=True)
    for differentiate in (torch.Tensor.backward, lambda loss: torch.autograd.grad(loss, inputs)):
        with pytest.raises(RuntimeError, match="differentiate twice; double backward needs backend='reference'"):
            differentiate(dx.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [None, "channels_first", "slice"])
def test_opcheck(device, backend, layout, dtype):
    arrange = MAP_LAYOUTS.get(layout, as_it_is)
    x, *matrices = draw((2, 5, 4, 10, 4), dtype, device)
    dy = arrange(torch.randn(2, 5, 4, 10, device=device, dtype=dtype))
    weights, total = torch.rand(2, 3, 10, device=device), torch.randn(2, 10, device=device)
    if backend == "triton":
        opcheck_triton_passes(arrange(x), dy, weights, total)
    else:
        opcheck(OPS.split_attention_fwd.default, (arrange(x), *matrices))
        for wants in ((True, True), (True, False), (False, True)):
            opcheck(OPS.split_attention_bwd.default, (dy, arrange(x), total, weights, *matrices, *wants))


def opcheck_triton_passes(x: torch.Tensor, dy: torch.Tensor, weights: torch.Tensor, da: torch.Tensor) -> None:
    for name, arguments in {
        "sums": (x,),
        "combine": (x, weights),
        "bwd_weights": (dy, x),
        "bwd_features": (dy, weights, da),
    }.items():
        opcheck(getattr(OPS, f"split_attention_triton_{name}").default, arguments)


@pytest.mark.parametrize(("compiler", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compile_whole_graph(device, backend, compiler, dynamic):
    def inputs(batch: int) -> Tensors:
        return draw((batch, 5, 4, 12, 6), torch.float32, device)

    assert_compiles(op(backend), op("reference"), inputs, compiler, dynamic)


def test_export(device, backend):
    layer = mixer_kernels.S2Attention(12, 6, backend=backend, device=device)
    assert_exports(layer, torch.randn(2, 5, 4, 12, device=device))


def test_use_backend_reaches_compiled_code():
    pytest.importorskip("mixer_kernels._C")
    torch._dynamo.reset()
    graphs = []

    def record(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(MF.shifted_split_attention, fullgraph=True, backend=record)
    inputs = draw((1, 3, 3, 4, 4), torch.float32)
    compiled(*inputs)
    with mixer_kernels.use_backend("reference"):
        compiled(*inputs)
    assert ["mixer_kernels.split_attention_fwd" in graph for graph in graphs] == [True, False]


def test_autocast(device, backend):
    inputs = draw((2, 9, 8, 48, 12), torch.float32, device)
    assert_accurate_under_autocast(op(backend), op("reference"), inputs, device, torch.float32)


def test_fake_and_meta_tensors():
    inputs = draw((2, 5, 4, 10, 4), torch.bfloat16)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 5, 4, 30, dtype=torch.bfloat16)
        assert MF.shifted_split_attention(x, *inputs[1:]).shape == (2, 5, 4, 10)
    assert MF.shifted_split_attention(*(value.to("meta") for value in inputs)).shape == (2, 5, 4, 10)


@pytest.mark.gpu
def test_cuda_graph_capture(backend):
    assert_captures(op(backend), draw((4, 8, 8, 96, 24), torch.bfloat16, "cuda"))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(backend):
    x, *weights = draw((1, 32, 32, 192, 48), torch.bfloat16, "cuda")
    images = x.new_empty(3700, 32, 32, 576).copy_(x)
    y = op(backend)(images, *weights)
    assert torch.equal(y[-1:], op(backend)(x, *weights))


def s2_blocks(layers: ModuleType, backend: str | None) -> torch.nn.Module:
    blocks = (layers.S2Block(CHANNELS, 2.0, 0.25, backend=backend) for _ in range(2))
    return torch.nn.Sequential(torch.nn.Unflatten(1, (4, 4)), *blocks, torch.nn.Flatten(1, 2))


def test_training_follows_the_reference(device, backend):
    assert_training_follows_the_reference(s2_blocks, device, backend, learning_rate=2e-3, least_accuracy=0.6)


@pytest.mark.parametrize("name", ["S2Attention", "S2Block"])
def test_layers_swap_by_state_dict(device, backend, name):
    plain = getattr(reference_layers, name)(24, device=device)
    fused = getattr(mixer_kernels, name)(24, backend=backend, device=device)
    assert issubclass(type(fused), type(plain))
    with torch.no_grad():
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 4, 24, device=device)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-4)


def test_an_explicit_backend_never_falls_back(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    inputs = draw((1, 3, 3, 4, 4), torch.float32)
    with pytest.raises(RuntimeError, match="shifted_split_attention: backend 'triton' cannot run this call"):
        MF.shifted_split_attention(*inputs, backend="triton")


def test_bad_arguments(device):
    x, weight1, weight2 = draw((2, 5, 4, 6, 5), torch.float32, device)

    def refuses(error: type[Exception], message: str, *inputs: object, **options: object) -> None:
        with pytest.raises(error, match=f"shifted_split_attention: {message}"):
            MF.shifted_split_attention(*inputs, **options)

    refuses(TypeError, "x must be a torch.Tensor, got list", [1.0], weight1, weight2)
    refuses(TypeError, "x must have dtype .*, got torch.int64", x.long(), weight1, weight2)
    refuses(ValueError, r"x must have 4 dimensions \(B, H, W, 3C\), got shape \(5, 4, 18\)", x[0], weight1, weight2)
    refuses(
        ValueError,
        r"x must have at least one pixel and one channel, got shape \(2, 0, 4, 18\)",
        *(x[:, :0], weight1, weight2),
    )
    refuses(
        ValueError,
        r"x must have 3C channels, a multiple of 3, got shape \(2, 5, 4, 17\)",
        *(x[..., :17], weight1, weight2),
    )
    refuses(ValueError, r"weight1 must have shape \(D, 6\), got shape \(5, 5\)", x, weight1[:, :5], weight2)
    refuses(ValueError, r"weight2 must have shape \(18, 5\), got shape \(18, 4\)", x, weight1, weight2[:, :4])
    refuses(TypeError, "weight1 must be a torch.Tensor, got float", x, 0.1, weight2)
    refuses(TypeError, "weight1 must have x's dtype torch.float32, got torch.float16", *(x, weight1.half(), weight2))
    refuses(RuntimeError, "weight2 must be on x's device .*, got meta", x, weight1, weight2.to("meta"))
    refuses(ValueError, "backend must be one of .* or None, got 'cudnn'", x, weight1, weight2, backend="cudnn")


def test_the_ops_check_what_protects_memory():
    pytest.importorskip("mixer_kernels._C")
    x, *matrices = draw((2, 5, 4, 6, 5), torch.float32)
    dy, weights, total = torch.zeros(2, 5, 4, 6), torch.zeros(2, 3, 6), torch.zeros(2, 6)
    forward, backward = OPS.split_attention_fwd, OPS.split_attention_bwd
    calls = {
        forward: ((x, *matrices), ()),
        backward: ((dy, x, total, weights, *matrices), (True, True)),
    }
    for run, (arguments, wants) in calls.items():
        run(*arguments, *wants)
        for position, argument in enumerate(arguments):
            before, after = arguments[:position], (*arguments[position + 1 :], *wants)
            with pytest.raises(ValueError, match=r"split_attention: .* must have"):
                run(*before, argument[0], *after)
            with pytest.raises(ValueError, match=r"split_attention: .* must have shape"):
                run(*before, argument[..., :15] if argument is x else argument[:1], *after)
            with pytest.raises(TypeError, match=r"split_attention: .* must have dtype"):
                run(*before, argument.double(), *after)
    weight1, weight2 = matrices
    with pytest.raises(ValueError, match=r"split_attention: weight1 must have shape \[5, 6\]"):
        forward(x, weight1[:, 1:], weight2)
    with pytest.raises(ValueError, match=r"split_attention: weight2 must have shape \[18, 5\]"):
        forward(x, weight1, weight2[1:])
    for run, arguments in ((forward, (x, *matrices)), (backward, (dy, x, total, weights, *matrices, True, True))):
        narrow = [value[..., :17] if value is x else value for value in arguments]
        with pytest.raises(ValueError, match="x must have channels in a multiple of 3, got shape"):
            run(*narrow)
