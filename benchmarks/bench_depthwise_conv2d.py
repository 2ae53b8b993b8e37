"""The depthwise convolution, and the depthwise half of a ConvMixer layer, against PyTorch in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import compiled, gate, shapes
from benchmarks.contest import OURS, PYTORCH, Call, Contender, Group, kernels
from mixer_kernels.ops.depthwise_conv2d import depthwise_conv2d_batch_norm, op

ACTIVATION, EPS = "gelu", 1e-5
# The subject of the convolution alone, and that of what ConvMixer does with it: act, BatchNorm and residual behind it.
CONVOLUTION, HALF = "depthwise_conv2d", "depthwise_conv2d_batch_norm"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

Function = Callable[..., torch.Tensor]

_FORWARD = "x and the parameters read, y written"
_MOVED = {
    shapes.FWD: _FORWARD,
    shapes.FWD_BWD: f"{_FORWARD}; once more with their gradients",
    shapes.DWEIGHT: "x and dy read, the gradient of the parameters written",
}


def groups(device: torch.device, preset: str) -> Iterator[Group]:
    """Yield everything that a preset measures of this op on a device."""
    for subject in (CONVOLUTION, HALF):
        for shape, dtype, which in shapes.op_cases(subject, device.type, preset):
            # Compilation takes longer than what it is to be compared with.
            is_quick = preset == shapes.QUICK
            # PyTorch's own K=31 in NCHW takes seconds a call on a CPU.
            slow = device.type == shapes.CPU and shape[-1] > 9 and is_quick
            eager_layouts = ("channels_last",) if slow else tuple(LAYOUTS)
            compiled_layouts = ("channels_last",) if is_quick else tuple(LAYOUTS)
            yield make_group(subject, shape, dtype, which, device, eager_layouts, compiled_layouts)


def make_group(
    subject: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    which: str,
    device: torch.device,
    eager_layouts: tuple[str, ...] = tuple(LAYOUTS),
    compiled_layouts: tuple[str, ...] = tuple(LAYOUTS),
) -> Group:
    """Return the contenders of one shape (B, C, H, W, K), dtype and pass; ours in each of the layouts.

    A forward of a half is that of evaluation, where BatchNorm is a scale and a shift; with its backward it is that of
    training. The gradient of the weight alone is that of the convolution.
    """
    batch, channels, height, width, taps = shape
    training = which == shapes.FWD_BWD
    learns_weight = which in (shapes.FWD_BWD, shapes.DWEIGHT)
    plain, exact = (_plain(subject, training, convolve) for convolve in (_convolve, _convolve_by_fourier))

    def make_inputs() -> tuple[torch.Tensor, ...]:
        def randn(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(size, device=device) * scale).to(dtype).requires_grad_(training)

        x = randn(batch, channels, height, width)
        weight = randn(channels, 1, taps, taps, scale=1 / taps).requires_grad_(learns_weight)
        norm = (randn(channels), randn(channels)) if subject == HALF else ()
        dy = (torch.randn_like(x, requires_grad=False),) if learns_weight else ()
        return x, weight, randn(channels), *norm, *dy

    modes = compiled.modes(device, which).items()
    contenders = []
    for layout in LAYOUTS:
        contenders += [
            Contender(f"{name}, {layout}", OURS, _prepare(_ours(subject, training, name), layout, which))
            for name in kernels(op, device)
        ]
        if layout in eager_layouts:
            # The gate holds everybody to the error of the contender of this name.
            name = "eager" if layout == eager_layouts[0] else f"eager, {layout}"
            contenders.append(Contender(name, PYTORCH, _prepare(plain, layout, which)))
        if layout in compiled_layouts:
            contenders += [
                Contender(f"{name}, {layout}", PYTORCH, _prepare(compiled.compile_function(plain, mode), layout, which))
                for name, mode in modes
            ]
    maps = batch * channels * height * width
    parameters = channels * (taps * taps + (3 if subject == HALF else 1))
    return Group(
        subject=subject,
        kind="op",
        shape=shape,
        dtype=dtype,
        which=which,
        device=device,
        contenders=tuple(contenders),
        make_inputs=make_inputs,
        exact=lambda *inputs: _prepare(exact, "NCHW", which)(*gate.in_float64(inputs))(),
        moved=(2 * maps + parameters) * dtype.itemsize * (2 if training else 1),
        moved_formula=_MOVED[which],
        flops=2 * maps * taps * taps * (3 if training else 1),
    )


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv2d(x, weight, bias, padding="same", groups=x.shape[1])


def _convolve_by_fourier(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    # In float64 PyTorch's own would take ten seconds for a large kernel. The kernels here are square and odd.
    (height, width), taps = x.shape[2:], weight.shape[-1]
    size = height + taps - 1, width + taps - 1
    product = torch.fft.rfft2(x, s=size) * torch.fft.rfft2(weight[:, 0], s=size).conj()
    before = taps // 2
    return torch.fft.irfft2(product, s=size).roll((before, before), (2, 3))[..., :height, :width] + bias.view(-1, 1, 1)


def _plain(subject: str, training: bool, convolve: Function) -> Function:
    """Return what a user of PyTorch writes, of x and the parameters."""

    def half(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        activated = torch.nn.functional.gelu(convolve(x, weight, bias))
        if training:
            return x + torch.nn.functional.batch_norm(activated, None, None, *norm, training=True, eps=EPS)
        # Running statistics of a fresh layer.
        mean, var = torch.zeros_like(norm[0]), torch.ones_like(norm[0])
        return x + torch.nn.functional.batch_norm(activated, mean, var, *norm, eps=EPS)

    return convolve if subject == CONVOLUTION else half


def _ours(subject: str, training: bool, backend: str) -> Function:
    def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return op.depthwise_conv2d(x, weight, bias, backend=backend)

    def half(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        if training:
            return depthwise_conv2d_batch_norm(x, weight, bias, *norm, EPS, ACTIVATION, backend=backend)[0]
        scale = norm[0].float() * (1 + EPS) ** -0.5
        return op.depthwise_conv2d(
            x, weight, bias, activation=ACTIVATION, scale=scale, shift=norm[1], residual=x, backend=backend
        )

    return convolve if subject == CONVOLUTION else half


def _prepare(function: Function, layout: str, which: str) -> Callable[..., Call]:
    """Return what binds a function to its inputs, in a layout, and to dy where there is one."""

    def prepare(*inputs: torch.Tensor) -> Call:
        def arrange(value: torch.Tensor) -> Any:
            if value.dim() < 4:
                return value
            return value.detach().contiguous(memory_format=LAYOUTS[layout]).requires_grad_(value.requires_grad)

        arranged = [arrange(value) for value in inputs]
        if which == shapes.FWD:
            return lambda: function(*arranged)
        *arguments, dy = arranged
        if which == shapes.DWEIGHT:
            y, weight = function(*arguments), arguments[1]
            return lambda: torch.autograd.grad(y, weight, dy, retain_graph=True)

        def step() -> tuple[torch.Tensor, ...]:
            y = function(*arguments)
            return y, *torch.autograd.grad(y, arguments, dy)

        return step

    return prepare


def test_depthwise_conv2d(measure_entry: Callable[[], None]) -> None:
    measure_entry()
