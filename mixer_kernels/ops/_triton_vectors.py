"""Maps (B, H, W, C) in vectors of channels, each one access of 16 bytes, where their layout allows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

VECTOR_BYTES = 16


def vector_length(tensors: Sequence[torch.Tensor], bounds: Sequence[int]) -> int:
    """Return how many channels one access takes: 16 bytes of them if every group and pixel starts on 16 bytes, or 1."""
    vector = VECTOR_BYTES // tensors[0].element_size()
    for bound in bounds:
        if bound % vector:
            return 1
    for tensor in tensors:
        *strides, channel_stride = tensor.stride()
        if channel_stride != 1 or tensor.data_ptr() % VECTOR_BYTES:
            return 1
        for size, stride in zip(tensor.shape, strides, strict=False):
            if size > 1 and stride % vector:
                return 1
    return vector


def vector_strides(name: str, tensor: torch.Tensor, vector: int) -> dict[str, int]:
    """Return the tensor's strides counted in vectors, so that the compiler sees every address as a multiple of one."""
    # A dimension of size 1 may have any stride, also one that is no multiple.
    b, h, w, c = (0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return {
        f"stride_{name}_b": b // vector,
        f"stride_{name}_h": h // vector,
        f"stride_{name}_w": w // vector,
        f"stride_{name}_c": c if vector == 1 else 1,
    }
