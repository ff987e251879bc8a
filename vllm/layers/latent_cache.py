"""Multi-head latent attention over a cache of latent rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vllm.device.attention import AttentionMetas
from vllm.layers.cached_attention import Attention


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Widths of one head: `nope` + `rope` for queries and keys, `value` for values."""

    latent: int
    nope: int
    rope: int
    value: int


class LatentAttention(nn.Module):
    """Attention whose keys and values are linear in one latent row per token.

    Instead of expanding the rows of the whole context to N keys and values, queries are mapped to
    the latent space and results back from it: the cache is read once for all heads.
    """

    key_map: Tensor  # [N, nope, latent]
    value_map: Tensor  # [N, latent, value]

    def __init__(self, shape: LatentShape, attend: Attention) -> None:
        """`attend` must be an MLA layer of shape.latent and shape.rope."""
        super().__init__()
        self.shape = shape
        self.attend = attend

    def absorb(self, expansion: Tensor) -> None:
        """Take over the weight [N * (nope + value), latent] that makes keys and values of a row.

        A second one is written to the memory of the first.
        """
        shape = self.shape
        per_head = expansion.view(-1, shape.nope + shape.value, shape.latent)
        key_map, value_map = per_head.split((shape.nope, shape.value), dim=1)
        for name, value in (("key_map", key_map), ("value_map", value_map.mT)):
            if name in self._buffers:
                self.get_buffer(name).copy_(value)
            else:
                self.register_buffer(name, value.contiguous(), persistent=False)

    def forward(
        self, q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, metas: AttentionMetas
    ) -> Tensor:
        """q [T, N, nope], q_rope [T, N, rope], latent [T, latent], k_rope [T, 1, rope].

        -> [T, N * value]
        """
        absorbed = torch.bmm(q.transpose(0, 1), self.key_map).transpose(0, 1)  # [T, N, latent]
        query = torch.cat((absorbed, q_rope), dim=-1)
        row = torch.cat((latent.unsqueeze(1), k_rope), dim=-1)  # [T, 1, latent + rope]
        mixed = self.attend(query, row, row, metas).unflatten(-1, (-1, self.shape.latent))
        return torch.bmm(mixed.transpose(0, 1), self.value_map).transpose(0, 1).flatten(1)
