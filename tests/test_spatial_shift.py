"""The spatial shift on every device and backend of this machine, against its reference and the definition."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from accuracy import MAP_LAYOUTS, as_it_is
from torch.library import opcheck

import mixer_kernels
import mixer_kernels.functional as MF
from mixer_kernels.ops.spatial_shift import reference
from mixer_kernels.ops.spatial_shift.op import DIRECTION_CODES, IMPLEMENTATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DIRECTIONS = (
    MF.SHIFT_1,
    MF.SHIFT_2,
    ("-w",),
    ("+h", "+h", "-w"),
    tuple(itertools.islice(itertools.cycle(MF.SHIFT_2), 19)),
)
SHAPES = (
    (2, 7, 5, 30),
    (1, 1, 1, 8),
    (3, 1, 9, 64),
    (2, 9, 1, 17),
    (1, 2, 2, 3),  # fewer channels than groups
    (0, 4, 4, 8),
    (2, 3, 4, 0),
    (1, 14, 14, 192),
    (2, 5, 6, 97),
)
LAYOUTS = {"contiguous": as_it_is, **MAP_LAYOUTS}


def by_the_definition(x: torch.Tensor, directions: tuple[str, ...]) -> torch.Tensor:
    """Pixel by pixel: an oracle that shares nothing with the reference."""
    height, width, channels = x.shape[1:]
    step = {"+h": (-1, 0), "-h": (1, 0), "+w": (0, -1), "-w": (0, 1)}
    y = torch.full_like(x, float("nan"))
    for h, w, c in itertools.product(range(height), range(width), range(channels)):
        group = next(i for i in range(len(directions)) if c < (i + 1) * channels // len(directions))
        dh, dw = step[directions[group]]
        inside = 0 <= h + dh < height and 0 <= w + dw < width
        y[:, h, w, c] = x[:, h + dh, w + dw, c] if inside else x[:, h, w, c]
    return y


def adjoint(dy: torch.Tensor, directions: tuple[str, ...]) -> torch.Tensor:
    """The exact adjoint, by autograd through the reference in float64."""
    x = torch.zeros(dy.shape, dtype=torch.float64, device=dy.device, requires_grad=True)
    (dx,) = torch.autograd.grad(reference.spatial_shift(x, directions), x, dy.double())
    return dx.to(dy.dtype)


def codes(directions: tuple[str, ...]) -> list[int]:
    return [DIRECTION_CODES[direction] for direction in directions]


@pytest.mark.parametrize("directions", [MF.SHIFT_1, MF.SHIFT_2, ("-h", "+w", "+w"), ("-w",)])
@pytest.mark.parametrize("shape", [(2, 4, 3, 9), (1, 1, 4, 3), (1, 3, 1, 8)])
def test_reference_is_the_definition(shape, directions):
    x = torch.randn(shape)
    assert torch.equal(reference.spatial_shift(x, directions), by_the_definition(x, directions))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_are_exact(device, backend, dtype, shape, layout):
    for directions in DIRECTIONS:
        x = LAYOUTS[layout](torch.randn(shape, device=device, dtype=dtype))
        kept = x.clone()
        expected = reference.spatial_shift(x, directions)
        y = MF.spatial_shift(x, directions, backend=backend)
        assert torch.equal(y, expected)
        assert y.dtype == dtype
        assert y.stride() == torch.empty_like(x).stride()
        assert torch.equal(x, kept)

        dy = LAYOUTS[layout](torch.randn(shape, device=device, dtype=dtype))
        leaf = x.detach().clone().requires_grad_()
        (dx,) = torch.autograd.grad(MF.spatial_shift(leaf, directions, backend=backend), leaf, dy)
        assert torch.equal(dx, adjoint(dy, directions))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_is_exact(device, backend, dtype, shape, layout):
    for directions in DIRECTIONS:
        x = LAYOUTS[layout](torch.randn(shape, device=device, dtype=dtype))
        expected = reference.spatial_shift(x, directions)
        assert MF.spatial_shift_(x, directions, backend=backend) is x
        assert torch.equal(x, expected)

        leaf = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        dy = LAYOUTS[layout](torch.randn(shape, device=device, dtype=dtype))
        kept = dy.clone()
        (dx,) = torch.autograd.grad(MF.spatial_shift_(leaf.clone(), directions, backend=backend), leaf, dy)
        assert torch.equal(dx, adjoint(dy, directions))
        assert torch.equal(dy, kept)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adjoint_in_place_is_exact(device, backend, dtype, layout):
    for shape, directions in itertools.product(SHAPES, DIRECTIONS):
        dy = LAYOUTS[layout](torch.randn(shape, device=device, dtype=dtype))
        expected = adjoint(dy, directions)
        IMPLEMENTATIONS[backend].backward_(dy, codes(directions))
        assert torch.equal(dy, expected)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    for (layout, arrange), shape in itertools.product(LAYOUTS.items(), SHAPES):
        test_forward_and_backward_are_exact("cpu", "native", dtype, shape, layout)
        x = arrange(torch.randn(shape, dtype=dtype))
        expected = reference.spatial_shift(x, MF.SHIFT_2)
        assert torch.equal(MF.spatial_shift_(x, MF.SHIFT_2, backend="native"), expected), layout


def test_a_large_map_shows_no_race(device, backend):
    # The overlapping slices that are widely used smear the border over a map of this size, or differ between runs.
    x = torch.randn(1, 1024, 2048, 6, device=device)
    expected = reference.spatial_shift(x)
    assert torch.equal(MF.spatial_shift(x, backend=backend), expected)
    assert torch.equal(MF.spatial_shift_(x, backend=backend), expected)


def test_a_slice_leaves_its_neighbours_alone(device, backend):
    x = torch.randn(2, 6, 5, 24, device=device)
    expected = x.clone()
    expected[..., 8:16] = reference.spatial_shift(x[..., 8:16])
    MF.spatial_shift_(x[..., 8:16], backend=backend)
    assert torch.equal(x, expected)


def test_gradcheck(device, backend):
    x = torch.randn(2, 3, 4, 6, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: MF.spatial_shift(x, backend=backend), (x,))
    assert torch.autograd.gradcheck(lambda x: MF.spatial_shift_(x.clone(), backend=backend), (x,))


def test_double_backward_is_refused(device, backend):
    x = torch.randn(1, 3, 3, 4, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(MF.spatial_shift(x, backend=backend).square().sum(), x, create_graph=True)
    for differentiate in (torch.Tensor.backward, lambda loss: torch.autograd.grad(loss, x)):
        with pytest.raises(RuntimeError, match="differentiate twice; double backward needs backend='reference'"):
            differentiate(dx.sum())


@pytest.mark.parametrize("name", ["fwd", "fwd_", "bwd", "bwd_"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_first", "slice"])
def test_opcheck(device, backend, name, layout):
    prefix = "spatial_shift_triton_" if backend == "triton" else "spatial_shift_"
    op = getattr(torch.ops.mixer_kernels, prefix + name).default
    x = LAYOUTS[layout](torch.randn(2, 5, 4, 10, device=device))
    opcheck(op, (x, codes(MF.SHIFT_1)))


@pytest.mark.parametrize("function", [MF.spatial_shift, lambda x, **kwargs: MF.spatial_shift_(x * 2, **kwargs)])
@pytest.mark.parametrize(("compiler", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compile_whole_graph(device, backend, function, compiler, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: function(x, backend=backend).square().sum(), fullgraph=True, dynamic=dynamic, backend=compiler
    )
    for batch in (2, 3) if dynamic else (2,):
        x = torch.randn(batch, 5, 4, 10, device=device, requires_grad=True)
        y = function(x, backend="reference").square().sum()
        (expected,) = torch.autograd.grad(y, x)
        (dx,) = torch.autograd.grad(compiled(x), x)
        torch.testing.assert_close(dx, expected)


@pytest.mark.parametrize("function", [MF.spatial_shift, lambda x, **kwargs: MF.spatial_shift_(x * 2, **kwargs)])
def test_export(device, backend, function):
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x, backend=backend)

    x = torch.randn(2, 5, 4, 10, device=device)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch},))
    assert any("mixer_kernels" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(5, 5, 4, 10, device=device)
    assert torch.equal(program.module()(x), function(x, backend="reference"))


def test_use_backend_reaches_compiled_code():
    pytest.importorskip("mixer_kernels._C")
    torch._dynamo.reset()
    graphs = []

    def record(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(MF.spatial_shift, fullgraph=True, backend=record)
    x = torch.randn(1, 3, 3, 4)
    compiled(x)
    with mixer_kernels.use_backend("reference"):
        compiled(x)
    assert ["mixer_kernels.spatial_shift_fwd" in graph for graph in graphs] == [True, False]


def test_inference_mode(device, backend):
    with torch.inference_mode():
        x = torch.randn(2, 4, 4, 8, device=device)
        expected = reference.spatial_shift(x)
        assert torch.equal(MF.spatial_shift(x, backend=backend), expected)
        assert torch.equal(MF.spatial_shift_(x, backend=backend), expected)


def test_writing_a_saved_tensor_in_place_is_noticed(device, backend):
    x = torch.randn(2, 4, 4, 8, device=device)
    weight = torch.randn(8, device=device, requires_grad=True)
    y = (x * weight).sum()
    MF.spatial_shift_(x, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_checkpointing(device, backend):
    x = torch.randn(2, 4, 4, 8, device=device, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: MF.spatial_shift(x, backend=backend), x, use_reentrant=False)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(reference.spatial_shift(x).square().sum(), x)
    assert torch.equal(dx, expected)


def test_fake_and_meta_tensors():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 4, 4, 8).permute(0, 3, 1, 2)
        assert MF.spatial_shift(x).stride() == x.stride()
    assert MF.spatial_shift(torch.empty(2, 4, 4, 8, device="meta")).shape == (2, 4, 4, 8)


@pytest.mark.gpu
def test_cuda_graph_capture(backend):
    x = torch.randn(4, 8, 8, 32, device="cuda")
    MF.spatial_shift(x, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = MF.spatial_shift(x, backend=backend)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, reference.spatial_shift(x))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(backend):
    x = torch.empty(9, 512, 512, 1024, device="cuda", dtype=torch.bfloat16)
    x.view(torch.int16).random_(0, 2**14)
    y = MF.spatial_shift(x, backend=backend)
    for image in (0, 4, 8):
        assert torch.equal(y[image : image + 1], reference.spatial_shift(x[image : image + 1]))
    MF.spatial_shift_(x, backend=backend)
    assert torch.equal(x, y)


def test_bad_arguments(device):
    x = torch.randn(2, 4, 4, 8, device=device)
    for function in (MF.spatial_shift, MF.spatial_shift_):
        name = function.__name__
        with pytest.raises(TypeError, match=rf"{name}: x must be a torch.Tensor, got list"):
            function([1.0])
        with pytest.raises(TypeError, match=rf"{name}: x must have dtype .*, got torch.int64"):
            function(torch.zeros(2, 4, 4, 8, dtype=torch.int64, device=device))
        with pytest.raises(TypeError, match=rf"{name}: x must be a dense tensor, got layout torch.sparse_coo"):
            function(x.to_sparse())
        with pytest.raises(ValueError, match=rf"{name}: x must have 4 dimensions \(B, H, W, C\), got shape \(2, 128\)"):
            function(x.view(2, -1))
        with pytest.raises(ValueError, match=rf"{name}: directions must be of '\+h', .*, got 'up'"):
            function(x, ("+h", "up"))
        with pytest.raises(ValueError, match=rf"{name}: directions must be of '\+h', .*, got \['-h'\]"):
            function(x, [["-h"], ["+h"]])
        with pytest.raises(ValueError, match=rf"{name}: directions must name at least one direction"):
            function(x, ())
        with pytest.raises(TypeError, match=rf"{name}: directions must be a sequence of direction names, got '\+h'"):
            function(x, "+h")
        with pytest.raises(ValueError, match=rf"{name}: backend must be one of .* or None, got 'cudnn'"):
            function(x, backend="cudnn")


def test_in_place_refuses_what_autograd_would_and_leaves_it_untouched(device):
    leaf = torch.randn(2, 4, 4, 8, device=device, requires_grad=True)
    refused = {
        "leaf": leaf,
        "view of one": leaf[..., :4],
        "chunk or split": (leaf * 1).chunk(2, -1)[0],
        "overlap itself": torch.randn(2, 4, 1, 8, device=device).expand(2, 4, 4, 8),
    }
    for message, x in refused.items():
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match=rf"spatial_shift_: x must not .*{message}"):
            MF.spatial_shift_(x)
        assert torch.equal(x, before)


def test_an_explicit_backend_never_falls_back(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = torch.randn(1, 2, 2, 4)
    with pytest.raises(RuntimeError, match="spatial_shift: backend 'triton' cannot run this call: triton kernels need"):
        MF.spatial_shift(x, backend="triton")
    with (
        mixer_kernels.use_backend("triton"),
        pytest.raises(RuntimeError, match="spatial_shift: backend 'triton' cannot run this call"),
    ):
        MF.spatial_shift(x)
    with mixer_kernels.use_backend("triton"):
        assert torch.equal(MF.spatial_shift(x, backend="reference"), reference.spatial_shift(x))
    with pytest.raises(ValueError, match="use_backend: backend must be one of"), mixer_kernels.use_backend("cudnn"):
        pass


def test_module_swaps_with_its_reference(device, backend):
    x = torch.randn(2, 5, 4, 12, device=device)
    ours = mixer_kernels.SpatialShift(MF.SHIFT_2, backend=backend)
    theirs = mixer_kernels.reference.SpatialShift(MF.SHIFT_2)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours(x), theirs(x))


def test_s2_attention_swaps_with_its_reference(device, backend):
    torch.manual_seed(0)
    # On a GPU the kernels take no float64.
    dtype, close = (torch.float64, 1e-7) if device == "cpu" else (torch.float32, 1e-4)
    theirs = mixer_kernels.reference.S2Attention(12, device=device, dtype=dtype)
    ours = mixer_kernels.S2Attention(12, device=device, dtype=dtype, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 4, 12, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(x)
    for actual, expected in zip(
        torch.autograd.grad(ours(x), (x, *ours.parameters()), dy),
        torch.autograd.grad(theirs(x), (x, *theirs.parameters()), dy),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=close, atol=close)


def test_deterministic(device, backend):
    dy = torch.randn(2, 9, 8, 96, device=device, dtype=torch.bfloat16)
    impl = IMPLEMENTATIONS[backend]
    first = impl.backward(dy, codes(MF.SHIFT_1))
    assert all(torch.equal(first, impl.backward(dy, codes(MF.SHIFT_1))) for _ in range(5))


def test_the_package_works_without_its_extension():
    script = (
        "import sys; sys.modules['mixer_kernels._C'] = None\n"
        "import torch, mixer_kernels, mixer_kernels.functional as MF\n"
        "assert 'native' not in mixer_kernels.available_backends('cpu')\n"
        "assert MF.spatial_shift(torch.randn(1, 3, 3, 4)).shape == (1, 3, 3, 4)\n"
        "MF.spatial_shift(torch.randn(1, 3, 3, 4), backend='native')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "RuntimeError: spatial_shift: backend 'native' cannot run this call: the compiled extension" in result.stderr
