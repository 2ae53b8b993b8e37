"""The layers under autocast: outputs and gradients in the dtypes of eager PyTorch, and as accurate."""

from __future__ import annotations

import copy

import pytest
import torch
from test_integration import BYPASSED, results
from torch import nn

import mixer_kernels
from mixer_kernels import reference

# name -> (arguments, shape of an input)
LAYERS = {name: (arguments, shape) for name, (arguments, shape, _) in BYPASSED.items()} | {
    "ChannelMixing": ((12,), (2, 10, 12)),
    "Affine": ((12,), (2, 10, 12)),
    "SpatialShift": ((), (2, 5, 6, 8)),
    "SplitAttention": ((8,), (2, 3, 5, 6, 8)),
    "S2Block": ((8,), (2, 5, 6, 8)),
    "DepthwiseConv2d": ((8, 5), (2, 8, 7, 6)),
    "ConvMixerLayer": ((8, 5), (2, 8, 7, 6)),
}

# The ratio of two errors of a few elements is luck.
DRAWS = 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_their_references(device: str, backend: str, name: str, dtype: torch.dtype) -> None:
    arguments, shape = LAYERS[name]
    ours, eager = (getattr(layers, name)(*arguments).to(device) for layers in (mixer_kernels, reference))
    errors = torch.zeros(2, 2 + len([*eager.parameters()]), dtype=torch.float64, device=device)
    for _ in range(DRAWS):
        for parameter in eager.parameters():
            nn.init.normal_(parameter, std=0.3)
        ours.load_state_dict(eager.state_dict())
        x = torch.randn(shape, device=device, dtype=dtype)
        exact = results(copy.deepcopy(eager).double(), x.double())
        with torch.autocast(device, dtype=torch.bfloat16), mixer_kernels.use_backend(backend):
            actual, expected = results(ours, x), results(eager, x)
        assert [value.dtype for value in actual] == [value.dtype for value in expected]
        for sums, values in zip(errors, (actual, expected), strict=True):
            for i, (value, truth) in enumerate(zip(values, exact, strict=True)):
                sums[i] += ((value - truth).norm() / truth.norm()).item() ** 2
    assert (errors[0] <= 4 * errors[1]).all()
