"""The CUDA depthwise convolution on the host emulator, with its gradients and epilogues, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulated import ELEMENT_TYPES, run
from emulated_tokens import TOLERANCE, Draw, Tensors

NONE, RELU, GELU, GELU_TANH = range(4)
ACTIVATIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    NONE: lambda z: z,
    RELU: F.relu,
    GELU: F.gelu,
    GELU_TANH: lambda z: F.gelu(z, approximate="tanh"),
}
PARAMETERS = ("bias", "scale", "shift", "residual")
# float32 sums of activated values, which for 16-bit types are approximated.
SUM_TOLERANCE = {"float32": 3e-6, "float16": 1e-4, "bfloat16": 1e-4}

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where a map lies: in NCHW or channels_last, with some elements more behind each row (or pixel) and in front."""

    channels_last: bool = False
    gap: int = 0
    offset: int = 0
    step: int = 1  # from one element of a row (or pixel) to the next
    expanded: bool = False  # the same for all images
    far: bool = False  # images, channels and rows beyond 32 bits

    def strides(self, shape: tuple[int, ...]) -> Strides:
        _, channels, height, width = shape
        if self.channels_last:
            column = channels * self.step + self.gap
            return (0 if self.expanded else height * width * column, self.step, width * column, column)
        row = width * self.step + self.gap
        if self.far:
            return (5 << 29, 7 << 29, 3 << 29, self.step)
        return (0 if self.expanded else channels * height * row, height * row, row, self.step)


NCHW = Layout()
CHANNELS_LAST = Layout(channels_last=True)
BOTH = (NCHW, CHANNELS_LAST)


@dataclass(frozen=True)
class Problem:
    """One call; "same" padding unless given as top, bottom, left, right."""

    x: tuple[int, int, int, int]
    kernel: tuple[int, int]
    layout: Layout = NCHW
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] | None = None
    activation: int = GELU
    absent: tuple[str, ...] = ()
    floats: tuple[str, ...] = ("scale", "shift")  # float32 in every type
    y_layout: Layout | None = None
    residual_layout: Layout | None = None
    bias: float = 0.5
    infinite: bool = False  # one pixel of x; in float32, for the tensor cores multiply zeros, too
    multiprocessors: int = 1

    @property
    def pads(self) -> tuple[int, int, int, int]:
        if self.padding is not None:
            return self.padding
        rows, columns = (step * (taps - 1) for step, taps in zip(self.dilation, self.kernel, strict=True))
        return (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)

    @property
    def y(self) -> tuple[int, ...]:
        batch, channels, height, width = self.x
        top, bottom, left, right = self.pads
        padded = (height + top + bottom, width + left + right)
        sizes = (
            (size - step * (taps - 1) - 1) // stride + 1
            for size, step, taps, stride in zip(padded, self.dilation, self.kernel, self.stride, strict=True)
        )
        return (batch, channels, *sizes)

    def line(self, element_type: int, seed: int) -> str:
        words = (element_type, *self.x, *self.y[2:], *self.kernel, *self.stride, *self.dilation)
        words += (self.pads[0], self.pads[2], self.activation)
        words += (*(name not in self.absent for name in PARAMETERS), *(name in self.floats for name in PARAMETERS[1:3]))
        y_layout = self.y_layout or Layout(self.layout.channels_last)
        for layout, shape in (
            (self.layout, self.x),
            (y_layout, self.y),
            (self.residual_layout or y_layout, self.y),
        ):
            words += (*layout.strides(shape), layout.offset)
        return " ".join(str(int(word)) for word in (*words, self.multiprocessors, seed))


def all_problems() -> list[Problem]:
    """Every path in both formats; what is special about one after that."""
    both = [
        ((2, 3, 7, 7), (7, 7)),
        ((1, 5, 9, 10), (9, 9)),
        ((2, 16, 8, 8), (9, 9)),  # whole vectors
        ((1, 24, 6, 16), (5, 5)),  # several boxes of channels on the tensor cores
        ((1, 2, 34, 40), (7, 7)),  # several boxes of pixels
        ((1, 2, 35, 33), (3, 3)),
        # Every row of a full box on the tensor cores, with the published kernels and a high one.
        ((1, 1, 32, 20), (9, 9)),
        ((1, 2, 30, 24), (7, 7)),
        ((1, 1, 32, 18), (17, 5)),
        ((1, 3, 33, 34), (5, 9)),
        ((1, 16, 32, 32), (9, 9)),
        ((1, 2, 10, 24), (11, 11)),
        ((1, 8, 32, 26), (31, 31)),
        ((2, 3, 1, 1), (9, 9)),
        ((1, 130, 2, 3), (3, 3)),  # several boxes of channels on the floating-point units
        ((1, 40, 8, 16), (3, 3)),  # small maps, whose channels are more than the threads load at once
        ((1, 40, 1, 1), (1, 1)),
        ((1, 3, 9, 1), (3, 3)),
        ((1, 3, 1, 20), (1, 9)),
        ((1, 3, 20, 1), (9, 1)),
        ((1, 2, 13, 11), (4, 6)),
        ((1, 2, 6, 5), (31, 31)),
        ((1, 1, 4, 17), (63, 63)),
        ((1, 1, 3, 4), (2, 25)),
        ((1, 2, 5, 30), (1, 41)),
        ((1, 1, 2, 320), (1, 321)),  # more vectors in a row than threads of a warp
        ((1, 2, 2, 5), (2, 2995)),  # too wide for the tensor cores
    ]
    result = [Problem(x, kernel, layout, activation=(i + j) % 4) for i, (x, kernel) in enumerate(both)
              for j, layout in enumerate(BOTH)]  # fmt: skip
    for i, layout in enumerate(BOTH):
        result += [
            # Strides, dilations, paddings.
            Problem((2, 5, 9, 8), (3, 3), layout, stride=(2, 2), padding=(1, 1, 1, 1), activation=GELU_TANH),
            Problem((1, 40, 7, 6), (2, 3), layout, stride=(3, 2), padding=(0, 0, 1, 1), activation=RELU),
            Problem((1, 3, 11, 12), (3, 4), layout, dilation=(2, 3)),
            Problem((1, 3, 12, 11), (3, 3), layout, stride=(1, 2), dilation=(2, 1), padding=(2, 2, 1, 1)),
            Problem((1, 2, 4, 5), (1, 1), layout, stride=(1 << 31, 5), dilation=(1 << 40, 7), padding=(0, 0, 0, 0)),
            Problem((1, 3, 10, 40), (3, 3), layout, stride=(2, 1), padding=(1, 1, 1, 1)),
            Problem((1, 4, 12, 13), (5, 5), layout, padding=(0, 0, 0, 0)),
            Problem((1, 4, 9, 10), (7, 7), layout, padding=(9, 9, 8, 8)),
            Problem((1, 2, 8, 9), (7, 7), layout, padding=(0, 5, 6, 1)),
            Problem((1, 2, 5, 6), (3, 3), layout, padding=(5, 0, 0, 4)),
            # What may be absent, what may be float32.
            Problem((1, 8, 5, 8), (5, 5), layout, activation=RELU, absent=(PARAMETERS[i], PARAMETERS[3])),
            Problem((1, 8, 5, 8), (5, 5), layout, activation=NONE, absent=PARAMETERS),
            Problem((1, 8, 5, 8), (5, 5), layout, absent=("scale",), floats=()),
            Problem((1, 8, 5, 8), (3, 3), layout, absent=("shift",), floats=("scale",)),
            # A mean that is large next to the deviations.
            Problem((2, 3, 8, 7), (5, 5), layout, bias=1000.0),
            Problem((1, 3, 40, 7), (3, 3), layout, bias=1000.0, activation=NONE),
            # Many shares of the weight's gradient, fewer boxes than shares.
            Problem((7, 2, 3, 3), (9, 9), layout, multiprocessors=3),
            Problem((3, 2, 5, 6), (3, 3), layout, stride=(2, 2), padding=(1, 1, 1, 1), multiprocessors=9),
            # Several images of a block on the tensor cores, fewer in the last.
            Problem((53, 3, 4, 5), (5, 5), layout),
            Problem((49, 8, 3, 8), (7, 7), layout),
        ]
        result += [
            Problem((1, 2, 19, 22), kernel, layout, activation=NONE, absent=PARAMETERS, infinite=True)
            for kernel in ((3, 3), (5, 6), (7, 7), (9, 9))
        ]
    result += [
        # Other strides than those of a dense map.
        Problem((2, 4, 6, 8), (5, 5), Layout(gap=8), residual_layout=Layout(gap=8, offset=8)),
        Problem((2, 4, 6, 8), (5, 5), Layout(gap=1, offset=3), residual_layout=Layout(offset=1)),
        Problem((2, 4, 6, 8), (3, 3), Layout(step=2), residual_layout=CHANNELS_LAST),
        Problem((2, 16, 6, 5), (5, 5), Layout(True, gap=16, offset=8), residual_layout=NCHW),
        Problem((2, 16, 6, 5), (5, 5), Layout(True, gap=3), residual_layout=Layout(True, offset=1)),
        Problem((2, 16, 6, 5), (3, 3), Layout(True, step=2)),
        Problem((2, 16, 8, 8), (5, 5), NCHW, y_layout=Layout(offset=1)),
        Problem((2, 16, 8, 8), (3, 3), CHANNELS_LAST, y_layout=Layout(True, offset=3)),
        Problem((2, 16, 8, 8), (5, 5), NCHW, y_layout=CHANNELS_LAST),
        Problem((2, 16, 8, 8), (3, 3), CHANNELS_LAST, y_layout=NCHW),
        Problem((2, 16, 8, 8), (3, 3), NCHW, stride=(2, 2), padding=(1, 1, 1, 1), y_layout=CHANNELS_LAST),
        Problem((2, 16, 8, 8), (5, 5), NCHW, residual_layout=Layout(expanded=True)),
        # Whole vectors of channels, which have room on the tensor cores only in boxes of fewer rows.
        Problem((1, 8, 30, 18), (33, 33), CHANNELS_LAST),
        # Offsets beyond 32 bits.
        Problem((2, 2, 3, 8), (5, 5), Layout(far=True)),
        Problem((2, 2, 3, 8), (3, 3), Layout(far=True), stride=(2, 2), padding=(1, 1, 1, 1)),
    ]
    return result


PROBLEMS = all_problems()


def make_tensors(problem: Problem, draw: Draw) -> Tensors:
    """The arguments; all of them, for those that are absent are not read."""
    channels, taps = problem.x[1], problem.kernel[0] * problem.kernel[1]
    residual_layout = problem.residual_layout or NCHW
    residual = draw(*problem.y)
    if residual_layout.expanded:
        residual = residual[:1].expand(problem.y).contiguous()
    x = draw(*problem.x)
    if problem.infinite:
        x[:, :, problem.x[2] // 2, problem.x[3] // 2] = torch.inf
    parameter = {name: torch.float32 if name in problem.floats else None for name in PARAMETERS}
    return {
        "x": x,
        "weight": draw(channels, 1, *problem.kernel, scale=taps**-0.5),
        "bias": draw(channels, scale=0.3, shift=problem.bias),
        "scale": draw(channels, scale=0.3, shift=1.0, dtype=parameter["scale"]),
        "shift": draw(channels, scale=0.3, shift=0.2, dtype=parameter["shift"]),
        "residual": residual,
        "dz": draw(*problem.y),
    }


def exact_results(problem: Problem, tensors: Tensors, z_written: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
    """Results in float64, and how large the terms of each are. The epilogues start from z as it was written."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    top, bottom, left, right = problem.pads
    stride, dilation = (tuple(min(step, 1 << 20) for step in steps) for steps in (problem.stride, problem.dilation))

    def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, weight, None, stride, 0, dilation, groups=x.shape[1])

    def gradients(x: torch.Tensor, weight: torch.Tensor, dz: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
        return torch.autograd.grad(convolve(*leaves), leaves, dz)

    def parameter(name: str, absent: float) -> torch.Tensor:
        if name in problem.absent:
            return torch.full((1, 1, 1, 1), absent, dtype=torch.float64)
        return t[name] if name == "residual" else t[name].view(-1, 1, 1)

    x, weight, dz = t["x"], t["weight"], t["dz"]
    bias, scale = parameter("bias", 0.0), parameter("scale", 1.0)
    shift, residual = parameter("shift", 0.0), parameter("residual", 0.0)
    act = ACTIVATIONS[problem.activation]
    z = convolve(x, weight) + bias
    terms = (convolve(x.square(), weight.square()) + bias.square()).sqrt()
    a, y = act(z), residual + scale * act(z) + shift
    size = terms.amax((0, 2, 3)) + a.abs().amax((0, 2, 3))
    dx, dweight = gradients(x, weight, dz)
    dx2, dweight2 = (gradients(x.square(), weight.square(), dz.square())[0],
                     gradients(x.square(), weight, dz.square())[1])  # fmt: skip

    written = z_written.double().requires_grad_()
    again = act(written)
    slope = torch.autograd.grad(again.sum(), written)[0]
    again = again.detach()
    var, mean = torch.var_mean(again, (0, 2, 3), correction=0)
    centered = dz * (again - shift)
    dz_terms = (scale * dz).abs() + (shift * again).abs() + bias.abs()
    return {
        "y": (y, y.abs() + scale.abs() * terms + shift.abs() + residual.abs()),
        "z": (z, z.abs() + terms),
        "mean": (mean, size),
        "var": (var, var + var.sqrt() * size),
        "dx": (dx + x, (dx + x).abs() + dx2.sqrt() + x.abs()),
        "dweight": (dweight, dweight.abs() + dweight2.sqrt()),
        "dbias": (dz.sum((0, 2, 3)), dz.square().sum((0, 2, 3)).sqrt() + dz.sum((0, 2, 3)).abs()),
        "epilogue_y": (residual + scale * again + shift, (scale * again).abs() + shift.abs() + residual.abs()),
        "sum_dz": (dz.sum((0, 2, 3)), dz.abs().sum((0, 2, 3))),
        "sum_dz_act": (centered.sum((0, 2, 3)), (dz.abs() * (z_written.double().abs() + shift.abs())).sum((0, 2, 3))),
        "epilogue_dz": ((scale * dz + shift * again + bias) * slope, dz_terms),
    }


@pytest.mark.parametrize(("seed", "precision"), list(enumerate(SUM_TOLERANCE)))
def test_depthwise_conv2d(programs: dict[str, Path], tmp_path: Path, seed: int, precision: str) -> None:
    dtype = getattr(torch, precision)
    draw = Draw(np.random.default_rng(seed), dtype)
    problems = [problem for problem in PROBLEMS if precision == "float32" or not problem.infinite]
    cases = [make_tensors(problem, draw) for problem in problems]
    lines = [problem.line(ELEMENT_TYPES[precision][0], seed) for problem in problems]
    (tmp_path / "problems").write_text("\n".join(lines) + "\n")
    arguments = [
        tensor
        for problem, tensors in zip(problems, cases, strict=True)
        for name, tensor in tensors.items()
        if name == "residual" or name not in problem.absent
    ]
    (tmp_path / "input").write_bytes(b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in arguments))
    result = run(programs["depthwise_conv2d_emulated"], *(tmp_path / name for name in ("problems", "input", "output")))
    assert result.returncode == 0, result.stderr

    output = torch.frombuffer(bytearray((tmp_path / "output").read_bytes()), dtype=torch.uint8)
    begin = 0

    def take(shape: torch.Size, own: torch.dtype) -> torch.Tensor:
        nonlocal begin
        end = begin + shape.numel() * own.itemsize
        values = output[begin:end].clone().view(own).view(shape)
        begin = end
        return values

    for problem, tensors in zip(problems, cases, strict=True):
        sums = {"mean", "var", "sum_dz", "sum_dz_act"}
        y_bytes = tensors["dz"].numel() * dtype.itemsize
        z = output[begin + y_bytes : begin + 2 * y_bytes].clone().view(dtype).view(problem.y)
        for name, (expected, terms) in exact_results(problem, tensors, z).items():
            actual = take(expected.shape, torch.float32 if name in sums else dtype).double()
            tolerance = (SUM_TOLERANCE if name in sums else TOLERANCE)[precision]
            # Half of float16's smallest number.
            least = 2.0**-25 if precision == "float16" else 1e-30
            error, allowed = (actual - expected).abs(), tolerance * terms + least
            # Written so that NaN is wrong.
            right = torch.where(expected.isfinite(), error <= allowed, ~actual.isfinite())
            assert right.all(), f"{name}: {(error / allowed).max():.2f} times the error allowed, in {problem}"
    assert begin == len(output)
