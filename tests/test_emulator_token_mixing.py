"""The CUDA token mixing on the host emulator, forward and backward, against float64 autograd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from emulated_tokens import TOLERANCE, Draw, Tensors, is_half, sweep, transposed

NONE, RELU, GELU, GELU_TANH = range(4)
ACTIVATIONS = {
    NONE: lambda z: z,
    RELU: F.relu,
    GELU: F.gelu,
    GELU_TANH: lambda z: F.gelu(z, approximate="tanh"),
}
NAMES = ("x", "norm_weight", "norm_bias", "weight1", "bias1", "weight2", "bias2")
EPS = 1e-6


@dataclass(frozen=True)
class Problem:
    """One call of token_mixing, or of layer_norm_token_linear if ``mlp`` is false; strides of None are contiguous."""

    sizes: tuple[int, int, int, int]  # B, S, C, D
    activation: int = GELU
    mlp: bool = True
    norm_weight: bool = True
    norm_bias: bool = True
    bias1: bool = True
    bias2: bool = True
    norm_is_float: bool = False
    strides: tuple[int, int, int] | None = None
    offset: int = 0
    dy_strides: tuple[int, int, int] | None = None
    dy_offset: int = 0
    mean: float = 0.0
    multiprocessors: int = 2
    warpgroups: bool = False  # only for half types

    @property
    def rows(self) -> int:
        return self.sizes[1] if self.mlp else self.sizes[3]

    def line(self, element_type: int, tf32: bool, seed: int) -> str:
        _, tokens, channels, _ = self.sizes
        words = (element_type, tf32, self.activation, *self.sizes, self.mlp, self.norm_weight, self.norm_bias)
        words += (self.bias1, self.mlp and self.bias2, self.norm_is_float)
        words += (*(self.strides or (tokens * channels, channels, 1)), self.offset)
        words += (*(self.dy_strides or (self.rows * channels, channels, 1)), self.dy_offset)
        return (
            " ".join(str(int(word)) for word in words) + f" {EPS} {self.multiprocessors} {int(self.warpgroups)} {seed}"
        )


PROBLEMS = [
    Problem((2, 49, 64, 33)),
    Problem((1, 1, 30, 7)),
    Problem((3, 5, 40, 1), GELU_TANH),
    Problem((2, 17, 30, 24), NONE),
    Problem((1, 16, 128, 64), multiprocessors=1),  # every tile full
    Problem((2, 20, 200, 72), multiprocessors=1),  # two tiles of channels, several tiles a block
    Problem((1, 130, 136, 40), RELU, multiprocessors=1),  # two tiles of tokens
    Problem((1, 112, 40, 112)),
    Problem((1, 33, 24, 150), GELU_TANH),
    Problem((1, 24, 129, 128)),
    Problem((3, 8, 1, 8)),
    Problem((41, 3, 33, 5), multiprocessors=4),  # splits of several images that end within one and beyond the last
    # A mean far from zero.
    Problem((2, 9, 64, 16), mean=10.0),
    # Absent parameters, one by one and all; float32 ones beside half types.
    Problem((2, 17, 40, 24), norm_weight=False),
    Problem((2, 17, 40, 24), norm_bias=False, norm_is_float=True),
    Problem((2, 17, 40, 24), bias1=False),
    Problem((2, 17, 64, 24), bias2=False, norm_is_float=True),
    Problem((2, 17, 64, 24), norm_weight=False, norm_bias=False, bias1=False, bias2=False),
    # Only the first half.
    *(Problem((2, 17, 40, 24), activation, mlp=False) for activation in ACTIVATIONS),
    Problem((1, 49, 33, 7), NONE, mlp=False, bias1=False),
    Problem((2, 5, 136, 130), NONE, mlp=False, multiprocessors=1),
    Problem((2, 16, 64, 24), GELU, mlp=False, norm_weight=False, norm_bias=False, bias1=False),
    # Slices of wider rows, aligned and not; every other channel; transposes; expanded gradients.
    Problem((2, 17, 40, 24), strides=(17 * 48, 48, 1), offset=8, dy_strides=(20 * 48, 48, 1), dy_offset=16),
    Problem((2, 17, 40, 24), strides=(17 * 43, 43, 1), offset=3, dy_strides=(17 * 41, 41, 1), dy_offset=1),
    Problem((2, 17, 33, 24), strides=(17 * 40, 40, 1), dy_strides=(17 * 40, 40, 1)),
    Problem((2, 6, 40, 9), strides=(6 * 80, 80, 2), offset=1, dy_strides=(6 * 120, 120, 3)),
    Problem((2, 17, 40, 24), strides=transposed(17, 40), dy_strides=transposed(17, 40)),
    # Offsets beyond 32 bits: aligned, which the kernels take as they are, and not, which they copy first.
    Problem((2, 3, 16, 8), strides=(5 << 29, 1 << 30, 1), dy_strides=(1 << 31, 3 << 29, 1)),
    Problem((2, 3, 16, 8), strides=(5 << 29, 1 << 30, 3), dy_strides=(1 << 31, 3 << 29, 1), dy_offset=1),
    Problem((2, 17, 64, 24), dy_strides=(0, 0, 0)),
    Problem((3, 17, 64, 24), strides=(0, 64, 1), dy_strides=(0, 64, 1)),
    Problem((2, 17, 64, 24), RELU, mlp=False, dy_strides=(0, 0, 0)),
    Problem((2, 17, 64, 24), NONE, mlp=False, dy_strides=(0, 0, 0)),
    Problem((2, 17, 40, 24), NONE, mlp=False, dy_strides=transposed(24, 40)),
    Problem((2, 17, 40, 24), GELU, mlp=False, strides=transposed(17, 40), dy_strides=transposed(24, 40)),
    # LayerNorm's backward pass: widths of published models, several rows a block; just off the length of a vector; more
    # channels than a block has threads for; more rows than one wave of blocks takes.
    Problem((2, 13, 768, 8), multiprocessors=1),
    Problem((1, 9, 512, 8), multiprocessors=1),
    Problem((1, 9, 1024, 8), norm_is_float=True, multiprocessors=1),
    Problem((1, 9, 1024, 8), NONE, mlp=False, multiprocessors=1),
    Problem((1, 5, 516, 8)),
    Problem((1, 5, 767, 8), multiprocessors=1),
    Problem((1, 6, 5128, 8), NONE, mlp=False, multiprocessors=1),
    Problem((2, 65, 321, 8), multiprocessors=1),
    # Warpgroups, with the least, the published and the most tokens: one chunk and several, whole and not; several tiles
    # a block; a block without a tile for its second warpgroup; every activation; absent parameters; strides.
    Problem((1, 113, 33, 20), warpgroups=True),
    Problem((1, 196, 136, 130), GELU_TANH, multiprocessors=1, warpgroups=True),
    Problem((5, 208, 64, 64), RELU, multiprocessors=1, warpgroups=True),
    Problem((1, 120, 40, 65), NONE, norm_bias=False, bias1=False, norm_is_float=True, warpgroups=True),
    Problem((1, 120, 40, 30), norm_weight=False, bias2=False, strides=transposed(120, 40), warpgroups=True),
    Problem((2, 114, 64, 8), strides=(120 * 72, 72, 1), offset=8, mean=10.0, warpgroups=True),
]  # fmt: skip


def make_tensors(problem: Problem, draw: Draw) -> Tensors:
    """The arguments that are there, and dy, with elements of about 1."""
    batch, tokens, channels, hidden = problem.sizes
    norm_dtype = torch.float32 if problem.norm_is_float else draw.dtype

    # ReLU's slope jumps at 0, where rounding would decide about it: keep away from there.
    away = problem.activation == RELU
    tensors = {
        "x": draw.features((batch, tokens, channels), problem.strides, problem.mean),
        "weight1": draw(hidden, tokens, scale=(0.2 if away else 1.0) * tokens**-0.5),
        "dy": draw.features((batch, problem.rows, channels), problem.dy_strides),
    }
    if problem.norm_weight:
        tensors["norm_weight"] = draw(channels, scale=0.3, shift=1.0, dtype=norm_dtype)
    if problem.norm_bias:
        tensors["norm_bias"] = draw(channels, scale=0.3, dtype=norm_dtype)
    if problem.bias1:
        tensors["bias1"] = draw(hidden).sign() * 2 if away else draw(hidden, scale=0.5)
    if problem.mlp:
        tensors["weight2"] = draw(tokens, hidden, scale=hidden**-0.5)
        if problem.bias2:
            tensors["bias2"] = draw(tokens, scale=0.5)
    return tensors


def exact_results(problem: Problem, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    """Outputs and gradients in float64, by autograd; and how large the terms of each are, for it may cancel."""
    t = {name: tensor.double().requires_grad_(name != "dy") for name, tensor in tensors.items()}
    x, dy = t["x"], t["dy"]
    mean, rstd = x.mean(2), (x.var(2, correction=0) + EPS).rsqrt()
    n = F.layer_norm(x, (x.shape[2],), t.get("norm_weight"), t.get("norm_bias"), EPS)
    z = F.linear(n.mT, t["weight1"], t.get("bias1"))
    h = ACTIVATIONS[problem.activation](z)
    y = x + F.linear(h, t["weight2"], t.get("bias2")).mT if problem.mlp else h.mT
    for intermediate in (n, z, h):
        intermediate.retain_grad()
    y.backward(dy)
    results = {"y": y, "mean": mean, "rstd": rstd, **{f"d{name}": t[name].grad for name in NAMES if name in t}}

    dn, dz = n.grad, z.grad.mT
    xhat = (x - mean[..., None]) * rstd[..., None]
    terms = {
        "dx": (dn * rstd[..., None]).square(),
        "dnorm_weight": (dn * xhat).square().sum((0, 1)),
        "dnorm_bias": dn.square().sum((0, 1)),
        "dweight1": torch.einsum("bdc,bsc->ds", dz.square(), n.square()),
        "dbias1": dz.square().sum((0, 2)),
        "dweight2": torch.einsum("bsc,bcd->sd", dy.square(), h.square()) if problem.mlp else torch.zeros(1),
        "dbias2": dy.square().sum((0, 2)),
    }
    scales = {
        name: max(result.abs().max().item(), terms[name].max().sqrt().item() if name in terms else 0.0)
        for name, result in results.items()
    }
    scales["mean"] = x.abs().max().item()
    return {name: result.detach() for name, result in results.items()}, scales


@pytest.mark.parametrize(("seed", "precision"), list(enumerate(TOLERANCE)))
def test_token_mixing(programs: dict[str, Path], tmp_path: Path, seed: int, precision: str) -> None:
    program = programs["token_mixing_emulated"]
    problems = [problem for problem in PROBLEMS if not problem.warpgroups or is_half(precision)]
    sweep(program, tmp_path, problems, NAMES, make_tensors, exact_results, precision, seed)
