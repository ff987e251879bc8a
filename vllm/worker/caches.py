"""The KV cache of a rank: its tensors, given to the layers that use them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vllm.device.attention import AttentionBackend, NoAttention
from vllm.device.device import Device
from vllm.layers.cached_attention import Attention
from vllm.messages.cache import AnySpec, KVCacheLayout, KVGroup, groups_by_needs


def trial_layout(specs: Mapping[str, AnySpec]) -> KVCacheLayout:
    """A cache of the dummy block alone, for measuring launches of dummy rows."""
    return KVCacheLayout(num_blocks=1, groups=groups_by_needs(specs))


def bind_caches(
    layout: KVCacheLayout, layers: Mapping[str, Attention], device: Device
) -> list[Tensor]:
    """Allocate the tensors of a layout of these layers; give each layer its view of one.

    -> of each tensor the view of one of its layers.
    """
    views = []
    for tensor in layout.tensors:
        users = [(group, layers[name]) for group, name in tensor.users]
        # As one user has it: a device reinterprets memory only where users differ.
        memory = device.zeros(layout.num_blocks * tensor.bytes_per_block, users[0][1].spec.dtype)
        for group, layer in users:
            dtype = layer.spec.dtype
            typed = memory if dtype == memory.dtype else memory.view(dtype)
            shape = layer.backend.kv_shape(layer.kv_spec(), layout.num_blocks)
            layer.bind(typed.view(shape), group)
        views.append(users[0][1].cache)
    return views


def backend_of(group: KVGroup, layers: Mapping[str, Attention]) -> AttentionBackend:
    """The backend that plans for a KV group; a null object where none of its layers is here."""
    backends = [layers[name].backend for name in group.layers]
    kinds = {type(backend) for backend in backends}
    assert len(kinds) <= 1, f"layers of one KV group need one attention backend, got {kinds}"
    return backends[0] if backends else NoAttention()
