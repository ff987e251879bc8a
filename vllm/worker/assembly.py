"""How a rank's model runner is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vllm.config.vllm import VllmConfig
from vllm.device.agreement import Agreement
from vllm.device.collectives import Collectives
from vllm.device.device import Device
from vllm.device.observer import StepObserver
from vllm.device.placement import PlacedCache, Placement
from vllm.device.planner import Planner
from vllm.device.stage_link import StageLink
from vllm.distributed.place import Place
from vllm.layers.cached_attention import Attention
from vllm.layers.dispatch import ExpertRanks
from vllm.messages.cache import KVCacheLayout
from vllm.models.interfaces import Model
from vllm.ops.registry import Ops
from vllm.platforms.base import Platform
from vllm.sample.sampler import Sampler
from vllm.sample.state import SamplingState
from vllm.sample.static_sampler import StaticSampler
from vllm.worker.caches import backend_of
from vllm.worker.ends.draw_tokens import DrawTokens
from vllm.worker.ends.launch_end import LaunchEnd
from vllm.worker.ends.pass_on import PassOn
from vllm.worker.ends.silent import Silent
from vllm.worker.expert_balance import expert_balance
from vllm.worker.inputs import GatherTokens, LaunchInputs, ReceiveHidden
from vllm.worker.lockstep import Lockstep
from vllm.worker.model_runner import ModelRunner, RunnerParts
from vllm.worker.slots import Slots, SlotsShape


@dataclass(frozen=True, slots=True)
class LoadedRank:
    """A rank whose model is loaded, and whose layers have their views of the KV cache."""

    config: VllmConfig
    place: Place
    platform: Platform
    device: Device
    ops: Ops
    model: Model
    layers: Mapping[str, Attention]  # by name, in layer order
    link: StageLink | None  # of one stage of several
    launching: Collectives  # all ranks that take part in its launches
    experts: ExpertRanks | None = None  # of all copies, where these share experts


def make_runner(
    rank: LoadedRank,
    layout: KVCacheLayout,
    tensors: Sequence[Tensor],
    max_num_seqs: int,
    observer: StepObserver,
) -> ModelRunner:
    """The runner for up to `max_num_seqs` requests at a time, over the `tensors` of `layout`."""
    planner = rank.platform.planner(rank.config, layout.num_blocks)
    slots = _make_slots(rank, layout, max_num_seqs, planner.placement)
    planner.placement.bind(PlacedCache(slots.tables, tensors, rank.device))
    return ModelRunner(
        RunnerParts(
            model=rank.model,
            device=rank.device,
            planner=planner,
            slots=slots,
            inputs=_make_inputs(rank, slots, observer),
            backends=[backend_of(group, rank.layers) for group in layout.groups],
            graphs=rank.platform.graph_runner(rank.config, rank.place),
            end=_make_end(rank, slots, observer),
            observer=observer,
            agreement=_make_agreement(rank, planner),
            balance=expert_balance(
                rank.model,
                rank.launching,
                rank.device,
                rank.config.expert_balance,
                rank.config.scheduler.pipeline_depth,
            ),
        )
    )


def _make_agreement(rank: LoadedRank, planner: Planner) -> Agreement:
    if rank.experts is None:
        return Agreement()
    return Lockstep(planner, rank.experts.ranks, rank.place.tp.size, rank.experts.tokens)


def _make_slots(
    rank: LoadedRank, layout: KVCacheLayout, max_num_seqs: int, placement: Placement
) -> Slots:
    config = rank.config
    shape = SlotsShape(
        max_num_seqs=max_num_seqs,
        max_model_len=config.model.max_model_len,
        pipeline_depth=config.scheduler.pipeline_depth,
        vocab_size=config.model.vocab_size,
        kv_groups=tuple(group.needs for group in layout.groups),
    )
    sampling = SamplingState(
        shape.num_slots,
        shape.vocab_size,
        shape.max_tokens,
        rank.device,
        rank.ops,
        config.model.eos_token_ids,
        rank.platform.capabilities.static_shapes,
    )
    return Slots(shape, rank.device, sampling, placement)


def _make_inputs(rank: LoadedRank, slots: Slots, observer: StepObserver) -> LaunchInputs:
    if rank.link is None or rank.place.pp.rank == 0:
        return GatherTokens(slots)
    return ReceiveHidden(rank.link, rank.device, partial(_new_hidden, rank), observer)


def _make_end(rank: LoadedRank, slots: Slots, observer: StepObserver) -> LaunchEnd[Any]:
    if rank.link is not None and rank.place.pp.rank < rank.place.pp.size - 1:
        return PassOn(rank.link, partial(_new_hidden, rank))
    sampler = (StaticSampler if rank.platform.capabilities.static_shapes else Sampler)(
        rank.ops,
        rank.config.model.vocab_size,
        rank.device.torch_device,
        rank.config.model.logprobs_mode,
    )
    make_end = partial(DrawTokens, rank.model, slots, sampler, observer)
    return make_end(rank.device.download) if rank.place.is_driver else Silent(make_end, rank.device)


def _new_hidden(rank: LoadedRank, num_tokens: int) -> Tensor:
    """Memory [T, H] for hidden states that travel between stages."""
    model = rank.config.model
    shape = (num_tokens, model.hf_config.hidden_size)
    return torch.empty(shape, dtype=model.dtype, device=rank.device.torch_device)
