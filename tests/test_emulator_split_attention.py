"""The CUDA kernels of the shifted split attention on the host emulator, against float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import ELEMENT_TYPES, run
from emulated_tokens import TOLERANCE, Draw, Tensors

Strides = tuple[int, int, int]

# What is float32, whatever the dtype of the features. Sums: what short chains lose, as a share of how large their terms
# are. The weights that follow from them are between 0 and 1.
TOLERANCES = {**dict.fromkeys(("dweights", "total"), 5e-7), "gates": 3e-6, "from_gate": 3e-6}

SHIFT_1 = ((1, -1), (1, 1), (2, -1), (2, 1))  # the axis of each group, and where it takes its values from
SHIFT_2 = SHIFT_1[2:] + SHIFT_1[:2]


@dataclass(frozen=True)
class Problem:
    """One call of each kernel; strides of None are dense, ``gap`` elements lie behind each pixel."""

    sizes: tuple[int, int, int, int]  # B, H, W, C
    hidden: int = 8
    gap: int = 0
    x_offset: int = 0
    dy_offset: int = 0
    offset: int = 0  # of weights, da and the outputs
    x_strides: Strides | None = None
    dy_strides: Strides | None = None
    lost: float | None = None  # the value of what the shifts lose
    da: float | None = None  # the value of one channel's
    mean: float = 0.0  # of the features

    def strides(self, channels: int) -> Strides:
        _, height, width, _ = self.sizes
        pixel = channels + self.gap
        return (height * width * pixel, width * pixel, pixel)

    def line(self, element_type: int, seed: int) -> str:
        channels = self.sizes[3]
        words = (element_type, *self.sizes, self.hidden, *(self.x_strides or self.strides(3 * channels)), self.x_offset)
        words += (*(self.dy_strides or self.strides(channels)), self.dy_offset, self.offset, seed)
        return " ".join(map(str, words))

    def expanded(self) -> bool:
        return self.x_strides is not None and self.x_strides[0] == 0


def far(height_stride: int) -> Strides:
    """Images and rows beyond 32 bits."""
    return (5 << 30, height_stride, 1 << 10)


PROBLEMS = (
    *(Problem((2, height, width, 32)) for height in (1, 2, 3, 8) for width in (1, 2, 7)),
    *(Problem((2, 4, 5, channels)) for channels in (1, 2, 3, 5, 30, 33, 16, 96)),
    Problem((1, 5, 151, 7)),  # rows longer than many runs, in several parts
    Problem((1, 151, 5, 64)),
    Problem((1, 70, 1, 1)),
    Problem((3, 23, 29, 96)),
    Problem((3, 4, 3, 192)),
    Problem((1, 3, 4, 1056)),  # several chunks of channels, in float32 of unequal sizes
    Problem((2, 3, 2, 130)),  # single channels in chunks
    Problem((1, 96, 60, 1)),  # one lane and the most lines
    Problem((2, 5, 6, 32), gap=8),
    Problem((2, 5, 6, 32), gap=3),
    Problem((2, 5, 6, 32), x_offset=1),
    Problem((2, 5, 6, 32), dy_offset=2),
    Problem((2, 5, 6, 64), offset=1),
    Problem((2, 5, 6, 64), x_offset=8, dy_offset=8, offset=8),
    Problem((3, 4, 5, 32), x_strides=(0, 5 * 96, 96), dy_strides=(0, 5 * 32, 32)),
    Problem((2, 4, 5, 32), x_strides=(96, 96 * 10, 96 * 2), dy_strides=(32, 32 * 2, 32 * 8)),  # other orders
    Problem((2, 3, 3, 32), x_strides=far(1 << 30), dy_strides=far(3 << 28)),
    Problem((2, 3, 3, 5), x_strides=far(1 << 30), dy_strides=far(3 << 28)),
    *(Problem((2, 5, 6, channels), lost=lost) for channels in (32, 30) for lost in (np.inf, np.nan)),
    *(Problem((2, 5, 6, channels), da=np.inf) for channels in (32, 30)),
    *(Problem((2, 2, 3, 64), hidden=hidden) for hidden in (0, 1, 7, 16, 24, 300)),
    Problem((1, 16, 16, 192), hidden=48),
    Problem((2, 2, 3, 30), hidden=16),  # vectors of one of the two
)


def shifted_indices(sizes: tuple[int, ...], directions: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """Return which element of a flat map (H, W, C) each element takes its value from."""
    _, height, width, channels = sizes
    h, w, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    group = np.searchsorted([(i * channels) // 4 for i in (1, 2, 3)], c, side="right")
    axis, step = (np.array([direction[i] for direction in directions])[group] for i in (0, 1))
    h = np.clip(h + step * (axis == 1), 0, height - 1)
    w = np.clip(w + step * (axis == 2), 0, width - 1)
    return torch.from_numpy((h * width + w) * channels + c).flatten()


def make_tensors(problem: Problem, draw: Draw) -> Tensors:
    batch, height, width, channels = problem.sizes
    images = 1 if problem.expanded() else batch
    x, dy = (
        draw(images, height, width, n * channels, shift=problem.mean).expand(batch, -1, -1, -1).contiguous()
        for n in (3, 1)
    )
    if problem.lost is not None:
        for k, directions in enumerate((SHIFT_1, SHIFT_2)):
            flat = x[..., k * channels : (k + 1) * channels].reshape(batch, -1)
            is_lost = torch.ones(flat.shape[1], dtype=torch.bool)
            is_lost[shifted_indices(problem.sizes, directions)] = False
            flat[:, is_lost] = problem.lost
            x[..., k * channels : (k + 1) * channels] = flat.view(batch, height, width, channels)
    weights = draw(batch, 3, channels, dtype=torch.float32).softmax(1)
    da = draw(batch, channels, dtype=torch.float32)
    if problem.da is not None:
        da[:, channels // 3] = problem.da
    # So that neither GELU nor softmax saturates.
    weight1 = draw(problem.hidden, channels, scale=(3 * height * width * channels) ** -0.5)
    weight2 = draw(3 * channels, problem.hidden, scale=max(problem.hidden, 1) ** -0.5)
    return {"x": x, "dy": dy, "weights": weights, "da": da, "weight1": weight1, "weight2": weight2}


def exact_results(problem: Problem, tensors: Tensors) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return each result in float64 and how large its terms are."""
    batch, height, width, channels = problem.sizes
    x, dy, weights, da, weight1, weight2 = (tensor.double() for tensor in tensors.values())
    indices = [shifted_indices(problem.sizes, directions) for directions in (SHIFT_1, SHIFT_2)]
    indices.append(torch.arange(height * width * channels))
    taken = [branch.reshape(batch, -1)[:, index] for branch, index in zip(x.chunk(3, -1), indices, strict=True)]
    branches = torch.stack(taken, 1).view(batch, 3, -1, channels)
    gradient = dy.reshape(batch, 1, -1, channels)
    terms = weights[:, :, None] * branches

    def spread(values: torch.Tensor) -> torch.Tensor:
        parts = [
            torch.zeros_like(part).index_add_(1, index, part)
            for part, index in zip(values.flatten(2).unbind(1), indices, strict=True)
        ]
        return torch.stack(parts, 1).view(batch, 3, -1, channels).transpose(1, 2).contiguous()

    sums = branches.sum((1, 2)), branches.abs().sum((1, 2))
    inner = (sums[0] @ weight1.mT).requires_grad_()
    hidden = torch.nn.functional.gelu(inner)
    (slope,) = torch.autograd.grad(hidden.sum(), inner)
    hidden = hidden.detach()
    gates = (hidden @ weight2.mT).view(batch, 3, channels).softmax(1)
    dweights = (gradient * branches).sum(2), (gradient * branches).abs().sum(2)
    products = [(weights * value).sum(1, keepdim=True) for value in dweights]
    dlogits = [(weights * value).flatten(1) for value in (dweights[0] - products[0], dweights[1] + products[1])]
    dinner = [dlogits[0] @ weight2 * slope, dlogits[1] @ weight2.abs()]
    parts = weights[:, :, None] * gradient, da[:, None, None].expand_as(branches)
    return {
        "y": (terms.sum(1), terms.abs().sum(1)),
        "dx": (spread(parts[0] + parts[1]), spread(parts[0].abs() + parts[1].abs())),
        "dweights": dweights,
        "total": sums,
        "gates": (gates, torch.ones_like(gates)),
        "from_gate": (dinner[0] @ weight1, dinner[1] @ weight1.abs()),
        "own_total": sums,
        "hidden": (hidden, sums[1] @ weight1.abs().mT),
        "dinner": (dinner[0], dinner[1]),
        "dlogits": (dlogits[0], dlogits[1]),
    }


def solve(
    programs: dict[str, Path], folder: Path, dtype: str, seed: int, problems: tuple[Problem, ...]
) -> tuple[list[Tensors], list[Tensors]]:
    """Return the arguments and results of each problem."""
    element_type, _ = ELEMENT_TYPES[dtype]
    own = getattr(torch, dtype)
    draw = Draw(np.random.default_rng(seed), own)
    cases = [make_tensors(problem, draw) for problem in problems]
    lines = [problem.line(element_type, seed) for problem in problems]
    (folder / "problems").write_text("\n".join(lines) + "\n")
    arguments = [tensor for tensors in cases for tensor in tensors.values() if tensor.numel() > 0]
    (folder / "input").write_bytes(b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in arguments))
    result = run(programs["split_attention_emulated"], *(folder / name for name in ("problems", "input", "output")))
    assert result.returncode == 0, result.stderr

    output = torch.frombuffer(bytearray((folder / "output").read_bytes()), dtype=torch.uint8)
    begin = 0
    results = []
    for problem in problems:
        batch, height, width, channels = problem.sizes
        map_size, result = batch * height * width * channels, {}
        for name, size, kind in (
            ("y", map_size, own),
            ("dx", 3 * map_size, own),
            ("dweights", 3 * batch * channels, torch.float32),
            ("total", batch * channels, torch.float32),
            ("gates", 3 * batch * channels, torch.float32),
            ("from_gate", batch * channels, torch.float32),
            ("own_total", batch * channels, own),
            ("hidden", batch * problem.hidden, own),
            ("dinner", batch * problem.hidden, own),
            ("dlogits", 3 * batch * channels, own),
        ):
            end = begin + size * kind.itemsize
            result[name] = output[begin:end].clone().view(kind)
            begin = end
        results.append(result)
    assert begin == len(output)
    return cases, results


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("seed", [1, 2])
def test_split_attention(programs: dict[str, Path], tmp_path: Path, dtype: str, seed: int) -> None:
    cases, results = solve(programs, tmp_path, dtype, seed, PROBLEMS)
    for problem, tensors, actual in zip(PROBLEMS, cases, results, strict=True):
        for name, (expected, scale) in exact_results(problem, tensors).items():
            tolerance = TOLERANCES.get(name, TOLERANCE[dtype])
            value = actual[name].double().view(expected.shape)
            error = (value - expected).abs()
            # Written so that NaN is wrong.
            assert ((value == expected) | (error <= tolerance * scale)).all(), (
                f"{name}: {(error / scale).max():.1e} of its terms, in {problem}"
            )


def test_long_sums_lose_no_digits(programs: dict[str, Path], tmp_path: Path) -> None:
    # Sums of many lines in a block of one channel, whose terms all have the same sign.
    problem = Problem((16, 96, 43, 1), mean=10.0)
    (tensors,), (actual,) = solve(programs, tmp_path, "float32", 1, (problem,))
    for name in ("total", "dweights"):
        expected, _ = exact_results(problem, tensors)[name]
        torch.testing.assert_close(actual[name].double().view(expected.shape), expected, rtol=1.5e-7, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_bits_do_not_depend_on_alignment(programs: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    tensors = []
    for offsets in ((0, 0, 0), (1, 3, 1)):
        problem = Problem((2, 9, 20, 64), x_offset=offsets[0], dy_offset=offsets[1], offset=offsets[2])
        tensors.append(solve(programs, tmp_path, dtype, 1, (problem,))[1][0])
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name
