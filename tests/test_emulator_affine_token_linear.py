"""The CUDA affine-folded linear on the host emulator, forward and backward, against float64 autograd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from emulated_tokens import TOLERANCE, Draw, Tensors, is_half, sweep, transposed

NAMES = ("x", "alpha", "beta", "weight", "bias", "layer_scale")
CHANNEL_PARAMETERS = ("alpha", "beta", "layer_scale")


@dataclass(frozen=True)
class Problem:
    """One call; strides of None are contiguous."""

    sizes: tuple[int, int, int]  # B, S, C
    absent: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()  # parameters of the channels that stay float32
    layer_scale: float = 0.5
    quiet: bool = False  # every other token of x and dy is 0, so that the update shows however small it is
    uneven: bool = False  # the last channel's LayerScale is a million times larger
    strides: tuple[int, int, int] | None = None
    offset: int = 0
    dy_strides: tuple[int, int, int] | None = None
    dy_offset: int = 0
    weight_offset: int = 0
    multiprocessors: int = 2
    warpgroups: bool = False  # only for half types

    def equal_images(self) -> bool:
        return all(strides is not None and strides[0] == 0 for strides in (self.strides, self.dy_strides))

    def line(self, element_type: int, tf32: bool, seed: int) -> str:
        _, tokens, channels = self.sizes
        words = (element_type, tf32, *self.sizes)
        words += tuple(name not in self.absent for name in ("alpha", "beta", "bias", "layer_scale"))
        words += (*(name in self.floats for name in CHANNEL_PARAMETERS), self.weight_offset)
        words += (*(self.strides or (tokens * channels, channels, 1)), self.offset)
        words += (*(self.dy_strides or (tokens * channels, channels, 1)), self.dy_offset)
        return " ".join(str(int(word)) for word in (*words, self.multiprocessors, self.warpgroups, seed))


PROBLEMS = [
    Problem((2, 49, 64)),
    Problem((1, 1, 30)),
    Problem((3, 5, 40)),
    Problem((3, 8, 1)),
    Problem((2, 17, 30)),
    Problem((1, 64, 128), multiprocessors=1),  # every tile full
    Problem((2, 20, 200), multiprocessors=1),  # two tiles of channels, several tiles a block
    Problem((1, 130, 136), multiprocessors=1),  # two tiles of tokens
    Problem((1, 112, 40)),
    Problem((1, 120, 24)),
    Problem((1, 90, 24)),
    Problem((1, 190, 24)),
    Problem((2, 196, 24)),  # the published number of tokens
    # The least and the most tokens of the kernel that keeps the weight, with several tiles a block.
    Problem((3, 113, 70), multiprocessors=1),
    Problem((1, 208, 33), absent=("alpha", "bias"), floats=("layer_scale",), strides=transposed(208, 33)),
    Problem((1, 24, 300)),
    Problem((41, 3, 33), multiprocessors=4),  # splits of several images that end within one and beyond the last
    # Absent parameters, one by one and all; float32 ones beside half types.
    *(Problem((2, 17, 40), absent=(name,)) for name in (*CHANNEL_PARAMETERS, "bias")),
    Problem((2, 17, 40), absent=("alpha", "layer_scale")),
    Problem((2, 17, 40), absent=("beta", "bias")),
    Problem((2, 17, 64), absent=(*CHANNEL_PARAMETERS, "bias")),
    *(Problem((2, 17, 40), floats=(name,)) for name in CHANNEL_PARAMETERS),
    Problem((2, 17, 40), floats=CHANNEL_PARAMETERS),
    # A LayerScale as small as the published ones.
    Problem((2, 17, 40), floats=("layer_scale",), layer_scale=1e-4, quiet=True),
    Problem((2, 49, 40), floats=CHANNEL_PARAMETERS, layer_scale=1e-6, quiet=True),
    Problem((2, 17, 40), layer_scale=1e-4, quiet=True),
    *(
        Problem((1, 5, channels), floats=("layer_scale",), layer_scale=1e-6, uneven=True)
        for channels in (33, 64, 100, 200)
    ),
    # Slices of wider rows, aligned and not; every other channel; transposes; expanded gradients; the weight off.
    Problem((2, 17, 40), strides=(17 * 48, 48, 1), offset=8, dy_strides=(20 * 48, 48, 1), dy_offset=16),
    Problem((2, 17, 40), strides=(17 * 43, 43, 1), offset=3, dy_strides=(17 * 41, 41, 1), dy_offset=1),
    Problem((2, 17, 33), strides=(17 * 40, 40, 1), dy_strides=(17 * 40, 40, 1)),
    Problem((2, 6, 40), strides=(6 * 80, 80, 2), offset=1, dy_strides=(6 * 120, 120, 3)),
    Problem((2, 17, 40), strides=transposed(17, 40), dy_strides=transposed(17, 40)),
    Problem((2, 17, 64), dy_strides=(0, 0, 0)),
    Problem((3, 17, 64), strides=(0, 64, 1), dy_strides=(0, 64, 1)),
    Problem((2, 16, 40), weight_offset=1),
    # Offsets beyond 32 bits: aligned, which the kernels take as they are, and not, which they copy first.
    Problem((2, 3, 16), strides=(5 << 29, 1 << 30, 1), dy_strides=(1 << 31, 3 << 29, 1)),
    Problem((2, 3, 16), strides=(5 << 29, 1 << 30, 3), dy_strides=(1 << 31, 3 << 29, 1), dy_offset=1),
    # Warpgroups, with the least, the published and the most tokens: several tiles a block, a block without a tile for
    # its second warpgroup, a weight that lies well and one that does not, absent parameters, strides.
    Problem((1, 113, 33), warpgroups=True),
    Problem((1, 196, 136), multiprocessors=1, warpgroups=True),
    Problem((5, 208, 40), floats=CHANNEL_PARAMETERS, multiprocessors=1, warpgroups=True),
    Problem((1, 120, 40), absent=("alpha", "bias"), strides=transposed(120, 40), warpgroups=True),
    Problem((2, 114, 64), absent=("beta", "layer_scale"), strides=(120 * 72, 72, 1), offset=8, warpgroups=True),
    Problem((1, 120, 40), floats=("layer_scale",), layer_scale=1e-4, quiet=True, warpgroups=True),
]


def make_tensors(problem: Problem, draw: Draw) -> Tensors:
    """The arguments that are there, and dy."""
    batch, tokens, channels = problem.sizes
    scales = {"alpha": 0.3, "beta": 0.3, "layer_scale": 0.3 * problem.layer_scale}
    shifts = {"alpha": 1.0, "beta": 0.2, "layer_scale": problem.layer_scale}
    tensors = {
        "x": draw.features((batch, tokens, channels), problem.strides),
        "weight": draw(tokens, tokens, scale=tokens**-0.5),
        "bias": draw(tokens, scale=0.5),
        "dy": draw.features((batch, tokens, channels), problem.dy_strides),
    }
    for name in CHANNEL_PARAMETERS:
        dtype = torch.float32 if name in problem.floats else draw.dtype
        tensors[name] = draw(channels, scale=scales[name], shift=shifts[name], dtype=dtype)
    if problem.uneven:
        tensors["layer_scale"][-1] *= 1e6
    if problem.quiet:
        tensors["x"][:, ::2] = 0
        tensors["dy"][:, 1::2] = 0
    return {name: tensor for name, tensor in tensors.items() if name not in problem.absent}


def exact_results(problem: Problem, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Outputs and gradients in float64, by autograd; and how large the result and its terms are.

    The terms of y and dx beside the residual are those of their channel: LayerScale tells how small they are.
    Equal images err equally: what sums over them errs by their number instead of its root.
    """
    t = {name: tensor.double().requires_grad_(name != "dy") for name, tensor in tensors.items()}
    x, weight, dy = t["x"], t["weight"], t["dy"]
    channels = x.new_ones(x.shape[2])
    alpha, layer_scale = t.get("alpha", channels), t.get("layer_scale", channels)
    beta, bias = t.get("beta", 0 * channels), t.get("bias", x.new_zeros(x.shape[1]))
    inner = alpha * x + beta
    y = x + layer_scale * (weight @ inner + bias[:, None])
    y.backward(dy)
    results = {"y": y, **{f"d{name}": t[name].grad for name in NAMES if name in t}}

    with torch.no_grad():
        weight2, dy2 = weight.square(), dy.square()
        wx2, u2 = weight2 @ x.square(), weight2.T @ dy2
        row_sums2 = (weight2.sum(1) + weight.sum(1).square())[:, None]
        bias2 = bias.square()[:, None]
        xu2 = (x.square() * u2).sum((0, 1))
        update2 = (alpha.square() * wx2 + beta.square() * row_sums2 + bias2).amax((0, 1))
        terms2 = {
            "y": layer_scale.square() * update2,
            "dx": (layer_scale * alpha).square() * u2.amax((0, 1)),
            "dalpha": layer_scale.square() * xu2,
            "dbeta": layer_scale.square() * (dy2 * row_sums2).sum((0, 1)),
            "dweight": torch.einsum("bsc,btc->st", dy2, (layer_scale * inner).square()).max(),
            "dbias": (layer_scale.square() * dy2).sum((0, 2)),
            "dlayer_scale": alpha.square() * xu2 + (dy2 * (beta.square() * row_sums2 + bias2)).sum((0, 1)),
        }
        if problem.equal_images():
            for name in ("dalpha", "dbeta", "dweight", "dbias", "dlayer_scale"):
                terms2[name] = terms2[name] * x.shape[0]
        # Half of float16's smallest number.
        least = 2.0**-25 / TOLERANCE["float16"] if tensors["x"].dtype == torch.float16 else 0.0
        scales = {name: result.abs() + terms2[name].sqrt() + least for name, result in results.items()}
    return {name: result.detach() for name, result in results.items()}, scales


@pytest.mark.parametrize(("seed", "precision"), list(enumerate(TOLERANCE)))
def test_affine_token_linear(programs: dict[str, Path], tmp_path: Path, seed: int, precision: str) -> None:
    program = programs["affine_token_linear_emulated"]
    problems = [problem for problem in PROBLEMS if not problem.warpgroups or is_half(precision)]
    sweep(program, tmp_path, problems, NAMES, make_tensors, exact_results, precision, seed)
