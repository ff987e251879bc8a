"""Tensors of the KV cache, and ranks that have some of the layers."""

from __future__ import annotations

import msgspec
import pytest
import torch

from tests.platforms.hpu.kernel_doubles import kernels
from tests.worker.driver import NUM_BLOCKS, Driver, checkpoint, make_config
from vllm.device.attention import AttentionBackend, AttentionSpec, NoAttention
from vllm.errors import NotAvailable
from vllm.executor.in_process import InlineExecutor
from vllm.layers.cached_attention import Attention
from vllm.messages.cache import (
    AnySpec,
    CrossAttention,
    FullAttention,
    KVCacheLayout,
    SlidingWindow,
    groups_by_needs,
)
from vllm.messages.facts import WorkerFacts
from vllm.platforms import platform_of
from vllm.platforms.cpu.attention import TorchAttention
from vllm.platforms.cpu.graphs import CpuGraphRunner
from vllm.platforms.hpu.attention import AttentionSettings, HpuAttention
from vllm.sampling_params import SamplingParams
from vllm.worker.caches import backend_of, bind_caches
from vllm.worker.worker import Worker

P, B = 16, 5
WIDE = AttentionSpec(4, 2, 16, 1.0, torch.float32)
# SLIDING and LATENT have as many bytes per block as WIDE, LATENT in one part.
SLIDING = AttentionSpec(4, 2, 32, 1.0, torch.bfloat16, window=8)
NARROW = AttentionSpec(4, 1, 16, 1.0, torch.float32)
LATENT = AttentionSpec(4, 1, 64, 1.0, torch.float32, latent_dim=56, rope_dim=8)


def backends() -> list[AttentionBackend]:
    return [TorchAttention(), HpuAttention(AttentionSettings(), kernels())]


def bound(backend: AttentionBackend, *specs: AttentionSpec) -> list[Attention]:
    layers = {str(i): Attention(spec, backend, P) for i, spec in enumerate(specs)}
    groups = groups_by_needs({name: layer.kv_spec() for name, layer in layers.items()})
    views = bind_caches(KVCacheLayout(B, groups), layers, platform_of("cpu").device(0))
    kept = {layer.cache.data_ptr() for layer in layers.values()}
    assert {view.data_ptr() for view in views} == kept and len(views) == len(kept)
    return list(layers.values())


def bytes_of(layer: Attention, block: int) -> set[int]:
    """Addresses at which a layer keeps a block."""
    is_block_first = isinstance(layer.backend, TorchAttention)
    num_parts = 1 if is_block_first or layer.spec.latent_dim else 2
    itemsize = layer.cache.element_size()
    index = torch.arange(layer.cache.numel()).view(num_parts, B, -1)[:, block].flatten()
    start = layer.cache.data_ptr()
    return {start + int(i) * itemsize + k for i in index for k in range(itemsize)}


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
def test_layers_of_two_groups_keep_a_block_at_the_same_bytes_whatever_their_dtypes(
    backend: AttentionBackend,
) -> None:
    wide, sliding = bound(backend, WIDE, SLIDING)
    assert (wide.group, sliding.group) == (0, 1)
    assert (wide.cache.dtype, sliding.cache.dtype) == (torch.float32, torch.bfloat16)
    for block in range(B):
        assert bytes_of(wide, block) == bytes_of(sliding, block)
    assert not wide.cache.any()
    sliding.cache.fill_(1.0)
    assert wide.cache.all()


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
def test_layers_of_one_group_or_of_unlike_parts_have_tensors_of_their_own(
    backend: AttentionBackend,
) -> None:
    layers = bound(backend, WIDE, WIDE, NARROW, LATENT)
    assert [layer.group for layer in layers] == [0, 0, 0, 1]
    sizes = {layer.kv_spec().bytes_per_block() for layer in (layers[0], layers[3])}
    assert len(sizes) == 1, "the latent layer could have shared by its size"
    kept = [bytes_of(layer, block) for layer in layers for block in range(B)]
    assert sum(map(len, kept)) == len(set.union(*kept))


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
def test_cross_attention_is_refused(backend: AttentionBackend) -> None:
    with pytest.raises(NotAvailable, match="CrossAttention"):
        backend.kv_shape(CrossAttention(P, 2, 16, 16, 4, max_encoder_tokens=32), B)


def test_a_group_without_layers_here_has_a_backend_that_plans_nothing() -> None:
    layers = {"a": Attention(WIDE, TorchAttention(), P)}
    layout = KVCacheLayout(B, groups_by_needs({"a": layers["a"].kv_spec()}))
    assert backend_of(layout.groups[0], layers) is layers["a"].backend
    elsewhere = backend_of(layout.of(()).groups[0], {})
    assert isinstance(elsewhere, NoAttention)


class OneStage(InlineExecutor):
    """Reports layers of another rank beside its own: in its worker's group and in one of theirs."""

    def start(self) -> list[WorkerFacts]:
        (facts,) = super().start()
        self.own = facts.kv_specs
        elsewhere: dict[str, AnySpec] = {
            "before.0": SlidingWindow(P, 3, 8, 8, 4, window_tokens=7),
            **facts.kv_specs,
            "later.0": FullAttention(P, 1, 24, 24, 4),
            "later.1": next(iter(facts.kv_specs.values())),
        }
        return [msgspec.structs.replace(facts, kv_specs=elsewhere)]


@pytest.mark.engine
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_rank_runs_its_own_layers_over_the_layout_of_all(name: str) -> None:
    path = checkpoint(name)
    greedy = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    requests = [([5 + i, *range(9, 9 + 7 * i)], greedy) for i in range(4)]
    whole, stage = InlineExecutor(make_config(path), Worker), OneStage(make_config(path), Worker)
    expected = [s.tokens for s in Driver(whole, 1).run(requests)]
    driver = Driver(stage, 1, chunk=5)
    assert [s.tokens for s in driver.run(requests)] == expected
    worker = stage._worker
    layout = KVCacheLayout(NUM_BLOCKS, driver.groups)
    allocated = {
        layer.cache.untyped_storage().data_ptr(): layer.cache.untyped_storage().nbytes()
        for layer in worker.layers.values()
    }
    assert sum(allocated.values()) == NUM_BLOCKS * layout.of(stage.own).bytes_per_block
    assert layout.of(stage.own).bytes_per_block < layout.bytes_per_block
    assert [layer.group for layer in worker.layers.values()].count(0) == 0
    graphs = worker.runner.graphs
    assert not isinstance(graphs, CpuGraphRunner) or graphs._graphs, "nothing was captured"
    for executor in (whole, stage):
        executor.stop()
