"""Small models of 8x8 digits, trained with fused layers as with their references."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from sklearn.datasets import load_digits
from torch import nn

import mixer_kernels
from mixer_kernels import reference

CHANNELS, TOKENS = 32, 16

# Given the layers' module and a backend, returns two blocks and whatever comes behind them.
MakeBlocks = Callable[[ModuleType, str | None], nn.Module]


class DigitsModel(nn.Module):
    """Blocks over 16 tokens of 2x2 pixels."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(4, CHANNELS)
        self.blocks = blocks
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = images.unflatten(1, (4, 2)).unflatten(3, (4, 2)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        return self.head(self.blocks(self.stem(patches)).mean(1))


def train(make_blocks: Callable[[], nn.Module], device: str, learning_rate: float) -> tuple[list[float], float]:
    """Return the losses of 200 steps on the digits, and the accuracy on those left out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device) / 16
    labels = torch.tensor(digits.target, device=device)
    torch.manual_seed(0)
    model = DigitsModel(make_blocks()).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for step in range(200):
        batch = torch.arange(step * 64, (step + 1) * 64, device=device) % 1500
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()


def assert_training_follows_the_reference(
    make_blocks: MakeBlocks, device: str, backend: str, learning_rate: float, least_accuracy: float
) -> None:
    """Train both, and compare losses and accuracy."""
    losses, accuracy = train(lambda: make_blocks(mixer_kernels, backend), device, learning_rate)
    expected_losses, expected_accuracy = train(lambda: make_blocks(reference, None), device, learning_rate)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected_losses), rtol=0.02, atol=0.02)
    assert abs(accuracy - expected_accuracy) < 0.02
    assert accuracy > least_accuracy
