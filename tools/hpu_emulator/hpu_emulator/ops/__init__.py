"""Kernels of the device in torch.ops.hpu; importing registers them."""

from hpu_emulator.ops import attention, block_softmax, experts, layers

__all__ = ["attention", "block_softmax", "experts", "layers"]
