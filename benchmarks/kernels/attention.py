"""Times paged attention by backend, instruction set and block size, beside what the machine gives.

Prompts are shown as GFLOP/s of what their tokens see, decoding rows as GB/s of their keys and
values, which lie in as many caches as it takes to exceed those of the processor.

python benchmarks/kernels/attention.py [--isa avx512bf16] [--case decode] [--block-size 16]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm.attention.paged import PagedAttention
from vllm.device.attention import AttentionSpec, PagedMeta
from vllm.messages.cache import FullAttention
from vllm.platforms import platform_of
from vllm.platforms.cpu import native
from vllm.platforms.cpu.device import CpuDevice

COLD_BYTES = 256 << 20
GEMM_SIZE = (1024, 1024, 8192)  # rows, inputs, outputs


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    num_rows: int
    length: int
    count: int  # query tokens per row
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    def cache_bytes(self) -> int:
        tokens = self.num_rows * self.length
        return 2 * tokens * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def flop(self) -> float:
        seen = self.count * (self.length - (self.count - 1) / 2)
        return 4.0 * self.num_rows * self.num_heads * self.head_dim * seen

    def rate(self, spent_s: float) -> str:
        if self.count > 1:
            return f"{self.flop() / spent_s / 1e9:5.0f} GFLOP/s"
        return f"{self.cache_bytes() / spent_s / 1e9:5.1f} GB/s"


CASES = (
    Case("decode, 1 row of 1", 1, 1, 1),
    *(Case(f"decode, 1 row of {n}", 1, n, 1) for n in (128, 512, 2048, 8192, 32768)),
    Case("decode, 32 rows of 300", 32, 300, 1),
    Case("decode, 16 rows of 1024, f32", 16, 1024, 1, 32, 8, dtype=torch.float32),
    Case("decode, 16 rows of 1024, MHA", 16, 1024, 1, 16, 16, 64),
    Case("prefill, 1 row of 512", 1, 512, 512),
    Case("prefill, 1 row of 2048", 1, 2048, 2048),
    Case("prefill, 512 after 7680", 1, 8192, 512),
    Case("prefill, 1 row of 1024, f32", 1, 1024, 1024, 16, 4, 64, torch.float32),
)


def median_s(call: Callable[[], object], budget_s: float = 0.5) -> float:
    call()
    spent: list[float] = []
    while len(spent) < 3 or sum(spent) < budget_s:
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def read_gb_per_s() -> float:
    data = torch.ones(COLD_BYTES // 8, dtype=torch.int64)
    return COLD_BYTES / median_s(data.max) / 1e9


def gemm_gflop_per_s() -> float:
    rows, inputs, outputs = GEMM_SIZE
    x = torch.randn(rows, inputs).bfloat16()
    packed = torch.ops.vllm.pack_weight(torch.randn(outputs, inputs).bfloat16())
    spent_s = median_s(lambda: torch.ops.vllm.packed_linear(x, packed, None, outputs, False))
    return 2 * rows * inputs * outputs / spent_s / 1e9


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


def call_s(case: Case, block_size: int, backend: PagedAttention) -> float:
    """Seconds of one call."""
    spec = AttentionSpec(
        case.num_heads, case.num_kv_heads, case.head_dim, case.head_dim**-0.5, case.dtype
    )
    meta = meta_of(case, block_size)
    kv = FullAttention(
        block_size, case.num_kv_heads, case.head_dim, case.head_dim, case.dtype.itemsize
    )
    shape = backend.kv_shape(kv, meta.block_table.numel())
    values = torch.randn(shape).to(case.dtype)
    num_caches = 1
    if case.count == 1:
        num_caches = min(512, 1 + COLD_BYTES // (values.numel() * case.dtype.itemsize))
    caches = []
    for _ in range(num_caches):
        memory = CpuDevice().zeros(values.numel() * case.dtype.itemsize, case.dtype)
        caches.append(memory.view(shape).copy_(values))
    q = torch.randn(case.num_rows * case.count, case.num_heads, case.head_dim).to(case.dtype)

    def attend() -> None:
        for cache in caches:
            backend.paged_attention(q, cache, meta, spec)

    return median_s(attend) / num_caches


def main() -> None:
    isas = torch.ops.vllm.available_isas() if native.is_available() else []
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", choices=[*isas, "torch"], help="one instead of all")
    parser.add_argument("--case", default="", help="those whose name contains this")
    parser.add_argument("--block-size", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args()
    backends = {kind.name: kind for kind in platform_of("cpu").attention_backends()}
    variants = [options.isa] if options.isa else ["torch", *isas]
    if isas:
        print(f"packed product: {gemm_gflop_per_s():.0f} GFLOP/s", flush=True)
    cases = [case for case in CASES if options.case in case.name]
    for case, block_size in itertools.product(cases, options.block_size):
        print(f"{case.name:30} block {block_size:3}, reads {read_gb_per_s():5.1f} GB/s:", end="")
        for variant in variants:
            if variant in isas:
                native.select_isa(variant)
            backend = backends["native" if variant in isas else "torch"]()
            spent_s = call_s(case, block_size, backend)
            print(f"  {variant} {spent_s * 1e6:9.1f} us {case.rate(spent_s)}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
