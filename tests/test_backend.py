"""Requests for a backend, and which GPUs the compiled extension runs on."""

from __future__ import annotations

import pytest
import torch

import mixer_kernels
from mixer_kernels.ops import _backend, _native
from mixer_kernels.reference import _arguments


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        ("8.0;9.0a;10.0", (8, 0), True),
        ("8.0;9.0a;10.0", (8, 9), True),
        ("8.0;9.0a;10.0", (9, 0), True),
        ("8.0;9.0a;10.0", (10, 3), True),
        ("8.0;9.0a;10.0", (12, 0), False),
        ("8.0;9.0a;10.0", (7, 5), False),
        ("8.6 9.0", (8, 0), False),
        ("9.0a", (8, 0), False),
        ("9.0a+PTX", (10, 0), False),
        ("10.0f", (10, 3), True),
        ("10.0f+PTX", (12, 0), False),
        ("8.0;9.0+PTX", (12, 0), True),
        ("8.0+PTX", (7, 5), False),
        ("12.0", (12, 1), True),
        ("Hopper", (8, 0), True),  # nobody knows
    ],
)
def test_code_runs_on_the_gpus_it_was_compiled_for(archs, capability, expected):
    assert _native.runs_on(archs, *capability) is expected


def test_a_gpu_without_code_is_refused_with_a_reason(monkeypatch):
    pytest.importorskip("mixer_kernels._C")
    monkeypatch.setattr(_native, "_cuda_archs", "8.0;9.0a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert "was built for 8.0;9.0a, not for this GPU" in str(_native.why_not(torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert _native.why_not(torch.device("cuda", 0)) is None


def test_an_extension_of_an_older_version_says_so():
    pytest.importorskip("mixer_kernels._C")
    with pytest.raises(ImportError, match=r"has no op 'of_tomorrow'.* older .*`pip install -e \.`"):
        _native.register_fake("of_tomorrow", lambda x: x)


def test_contexts_of_two_threads_may_overlap():
    first, second = mixer_kernels.use_backend("reference"), mixer_kernels.use_backend("native")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _backend._requested == "native"
    second.__exit__(None, None, None)
    assert _backend._requested is None


def test_a_context_without_a_name_restores_the_automatic_choice():
    with mixer_kernels.use_backend("reference"):
        with mixer_kernels.use_backend(None):
            assert _backend._requested is None
        assert _backend._requested == "reference"
    assert _backend._requested is None


def test_layers_know_the_backends():
    assert _arguments.BACKENDS == _backend.BACKENDS


@pytest.mark.parametrize("name", ["TokenMixing", "AffineTokenLinear", "S2Block", "ConvMixerLayer"])
def test_a_layer_refuses_an_unknown_backend(name):
    sizes = (8, 4) if name in ("TokenMixing", "AffineTokenLinear") else (8, 3) if name == "ConvMixerLayer" else (8,)
    with pytest.raises(ValueError, match=r"backend must be one of .* or None, got 'cudnn'"):
        getattr(mixer_kernels, name)(*sizes, backend="cudnn")
