"""Times paged attention by backend, instruction set and block size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from vllm.attention.interface import AttentionSpec
from vllm.attention.metadata import PagedMeta
from vllm.core.kv_cache.spec import FullAttention
from vllm.platforms import current_platform
from vllm.platforms.cpu import native


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    num_rows: int
    length: int
    count: int  # query tokens per row
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.float32


CASES = (
    Case("decode, 1 row of 4096", 1, 4096, 1),
    Case("decode, 16 rows of 1024", 16, 1024, 1),
    Case("decode, 16 rows of 1024, bf16", 16, 1024, 1, dtype=torch.bfloat16),
    Case("decode, 16 rows of 1024, MHA", 16, 1024, 1, 16, 16, 64),
    Case("prefill, 1 row of 1024", 1, 1024, 1024, 16, 4, 64),
)


def seconds(call: Callable[[], object], budget_s: float = 0.3) -> float:
    call()
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget_s:
        call()
        runs += 1
    return elapsed / max(1, runs)


def meta_of(case: Case, block_size: int) -> PagedMeta:
    needs = -(-case.length // block_size)
    ids = torch.randperm(case.num_rows * needs).int()
    return PagedMeta(
        query_start=torch.arange(case.num_rows + 1, dtype=torch.int32) * case.count,
        seq_lens=torch.full((case.num_rows,), case.length, dtype=torch.int32),
        block_table=ids.view(case.num_rows, needs),
        slot_mapping=torch.empty(0, dtype=torch.int64),
        max_query_len=case.count,
        max_seq_len=case.length,
    )


def main() -> None:
    isas = torch.ops.vllm.available_isas() if native.is_available() else []
    backends = {kind.name: kind for kind in current_platform("cpu").attention_backends()}
    variants = [("torch", None), *(("native", isa) for isa in isas)]
    for case in CASES:
        spec = AttentionSpec(
            case.num_heads, case.num_kv_heads, case.head_dim, case.head_dim**-0.5, case.dtype
        )
        for block_size in (16, 32, 64):
            meta = meta_of(case, block_size)
            q = torch.randn(case.num_rows * case.count, case.num_heads, case.head_dim)
            q = q.to(case.dtype)
            times = []
            for name, isa in variants:
                if isa:
                    native.select_isa(isa)
                backend = backends[name]()
                kv = FullAttention(block_size, case.num_kv_heads, case.head_dim, case.head_dim, 4)
                shape = backend.kv_shape(kv, meta.block_table.numel())
                cache = torch.randn(shape).to(case.dtype)
                spent = seconds(partial(backend.paged_attention, q, cache, meta, spec))
                times.append(f"{isa or name} {spent * 1e3:8.2f} ms")
            print(f"{case.name:32} block {block_size:3}: {'  '.join(times)}", flush=True)


if __name__ == "__main__":
    main()
