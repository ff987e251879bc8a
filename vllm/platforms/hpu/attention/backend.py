"""Attention on HPU: static shapes, flat block lists for decode, fused kernels for prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vllm.device.attention import AttentionBackend, AttentionSpec, GroupTables, Upload
from vllm.device.launch import Phase
from vllm.errors import NotAvailable
from vllm.messages.cache import MLA, CrossAttention, FullAttention, KVCacheSpec
from vllm.platforms.hpu.attention import cache as kv
from vllm.platforms.hpu.attention.decode import decode_attention
from vllm.platforms.hpu.attention.expansion import expand_decode, expand_prompt
from vllm.platforms.hpu.attention.metadata import (
    DecodeMeta,
    DecodeTables,
    PromptMeta,
    PromptTables,
)
from vllm.platforms.hpu.attention.planning import GroupShape, Rows, plan_decode, plan_prompt
from vllm.platforms.hpu.attention.prompt import (
    FlexAttention,
    FusedAttention,
    Heads,
    NaiveAttention,
    PromptAttention,
)
from vllm.platforms.hpu.attention.settings import AttentionSettings
from vllm.platforms.hpu.attention.sliced import SlicedAttention
from vllm.platforms.hpu.attention.softmax import block_softmax
from vllm.platforms.hpu.kernels import Kernels, installed

if TYPE_CHECKING:
    from vllm.device.capabilities import Capabilities
    from vllm.device.launch import Launch

Meta = DecodeMeta | PromptMeta
Tables = DecodeTables | PromptTables


class HpuAttention(AttentionBackend):
    """Padded launches of one phase each.

    A layer's cache is one tensor of entries, [2 * B * P, K, D]: the keys of all blocks, then the
    values of all; entry b * P + o is offset o of block b. For MLA it is [B * P, latent + rope].
    New entries are written to the tensor itself and not to halves of it, because writing to a view
    may copy what it is a view of.
    """

    name = "hpu"

    def __init__(self, settings: AttentionSettings, kernels: Kernels | None = None) -> None:
        """`kernels`: by default what is installed. Raises ConfigError if a wanted one is not."""
        kernels = installed() if kernels is None else kernels
        self.settings = settings
        self.softmax = block_softmax(settings, kernels)
        self.prompt = prompt_attention(settings, kernels)
        # The kernels want the mask in the dtype of queries.
        is_naive = isinstance(self.prompt, NaiveAttention)
        self.mask_dtype = settings.softmax_dtype if is_naive else settings.dtype

    @classmethod
    def rejects(cls, spec: AttentionSpec, caps: Capabilities) -> str | None:
        if spec.dtype not in caps.dtypes:
            return f"dtype {spec.dtype} is not one of {', '.join(map(str, caps.dtypes))}"
        if spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} query heads do not divide over {spec.num_kv_heads} KV heads"
        if not spec.latent_dim and spec.value_dim not in (0, spec.head_dim):
            return f"values of {spec.value_dim} dimensions differ from keys of {spec.head_dim}"
        return None

    def kv_shape(self, spec: KVCacheSpec, num_blocks: int) -> tuple[int, ...]:
        if isinstance(spec, MLA):
            return num_blocks * spec.block_size, spec.latent_dim + spec.rope_dim
        if isinstance(spec, CrossAttention) or not isinstance(spec, FullAttention):
            raise NotAvailable(f"the {self.name} attention backend has no {type(spec).__name__}")
        assert spec.head_dim == spec.value_dim, spec
        return 2 * num_blocks * spec.block_size, spec.num_kv_heads, spec.head_dim

    def plan(self, launch: Launch, tables: GroupTables, upload: Upload) -> Meta:
        shape = GroupShape(tables.block_size, tables.window)
        table = tables.blocks_np
        key, num_real = launch.key, len(launch.plan_rows_np)
        rows = Rows(
            num_padded=key.rows,
            slots=launch.slots_np[:num_real],
            starts=launch.starts_np[:num_real],
            counts=launch.counts_np[:num_real],
        )
        if key.phase is Phase.DECODE:
            num_blocks = shape.decode_blocks(key.rows, key.kv_blocks)
            # The blocks in a window are few, and anywhere in the cache.
            contiguous = self.settings.contiguous and shape.window is None
            lists = plan_decode(rows, table, shape, num_blocks, contiguous)
            return DecodeMeta(
                block_list=upload(lists.block_list),
                block_groups=upload(lists.block_groups),
                block_range=upload(lists.block_range),
                slot_mapping=upload(lists.slot_mapping),
                block_size=shape.block_size,
                contiguous=contiguous,
            )
        num_blocks = shape.context_blocks(key.kv_blocks)
        prompts = plan_prompt(rows, table, shape, key.query_len, num_blocks)
        return PromptMeta(
            query_lens=upload(prompts.query_lens),
            context_lens=upload(prompts.context_lens),
            context_blocks=upload(prompts.context_blocks),
            slot_mapping=upload(prompts.slot_mapping),
            block_size=shape.block_size,
            window=shape.window or 0,
        )

    def expand(self, meta: Meta) -> Tables:
        settings = self.settings
        if isinstance(meta, DecodeMeta):
            return expand_decode(meta, settings.dtype, settings.softmax_dtype)
        return expand_prompt(meta, self.mask_dtype, self.prompt.needs_mask)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, meta: Tables, spec: AttentionSpec
    ) -> Tensor:
        kv.write(cache, k, v, meta.slot_mapping, spec)
        if isinstance(meta, DecodeTables):
            keys, values = kv.read_listed(cache, meta, spec)
            return decode_attention(q, keys, values, meta, spec, self.softmax)
        return self._prompt(q, k, v, cache, meta, spec)

    def _prompt(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: Tensor,
        meta: PromptTables,
        spec: AttentionSpec,
    ) -> Tensor:
        num_rows, num_blocks = meta.context_blocks.shape
        if spec.latent_dim:
            v = k  # with the rotary part behind it, which is cut off the result
        q, k, v = (x.view(num_rows, -1, *x.shape[1:]) for x in (q, k, v))  # [R, Q, N or K, D]
        if num_blocks:
            past_k, past_v = kv.read_context(cache, meta, spec)
            k, v = torch.cat((past_k, k), 1), torch.cat((past_v, v), 1)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [R, N or K, Q or S, D]
        out = self.prompt(Heads(q, k, v), meta, spec).transpose(1, 2).flatten(0, 1)
        return out[..., : spec.latent_dim] if spec.latent_dim else out


def prompt_attention(settings: AttentionSettings, kernels: Kernels) -> PromptAttention:
    naive = NaiveAttention(settings.softmax_dtype)
    if settings.prompt == "flex":
        return FlexAttention()
    if settings.prompt == "naive" or kernels.fused_sdpa is None:
        return naive
    whole = FusedAttention(kernels.fused_sdpa, settings, naive)
    if settings.slices is None or kernels.sdpa_forward is None:
        return whole
    end_graph = kernels.mark_step or (lambda: None)
    return SlicedAttention(kernels.sdpa_forward, settings.slices, whole, end_graph)
