"""All ranks of an executor on Gaudis, and those of each stage, on one machine or several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vllm.distributed import rendezvous
from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.settings import CollectiveSettings


@dataclass(frozen=True, slots=True)
class StageRanks:
    """The ranks that compute one stage together; all ranks where there is one stage."""

    devices: Any  # over HCCL; None: the default group, which all ranks are in
    host: dist.ProcessGroupGloo
    first: int  # rank in the world of the first of them


def join(place: Place, settings: CollectiveSettings) -> None:
    """Meet all other ranks at `place.rendezvous`; once.

    They are the default group, over HCCL. Raises RuntimeError.
    """
    if dist.is_initialized():
        return
    bridge.module("distributed.hccl")  # registers the backend
    dist.init_process_group(
        "hccl",
        store=rendezvous.store_of(place, rendezvous.limit_of(settings.host_timeout_s)),
        rank=place.rank,
        world_size=place.world_size,
        timeout=_limit(settings.timeout_s),
    )


def stage_ranks(place: Place, settings: CollectiveSettings) -> StageRanks:
    """Those of the stage of `place`. Every rank calls it, once. Raises RuntimeError."""
    join(place, settings)
    devices, first = None, place.rank - place.tp.rank
    if place.pp.size > 1:
        # Each rank makes the groups of all stages, in one order, as torch.distributed demands.
        starts = range(0, place.world_size, place.tp.size)
        stages = [list(range(start, start + place.tp.size)) for start in starts]
        groups = [dist.new_group(stage, timeout=_limit(settings.timeout_s)) for stage in stages]
        devices = groups[place.pp.rank]
    limit = rendezvous.limit_of(settings.host_timeout_s)
    store = rendezvous.meeting(place, limit, f"stage {place.pp.rank} on the host")
    return StageRanks(devices, rendezvous.connected(store, place.tp, limit, place.address), first)


@contextmanager
def meeting(place: Place) -> Iterator[None]:
    """What fails while ranks meet is a ConfigError, with which the start of every rank ends."""
    try:
        yield
    except RuntimeError as error:
        raise ConfigError(
            f"--device hpu: the {place.world_size} ranks cannot compute together: {error}. They "
            "reach each other over HCCL, and on the host over the network interface that "
            "GLOO_SOCKET_IFNAME names; HCCL_SOCKET_IFNAME names the one over which HCCL meets."
        ) from error


def _limit(seconds: int) -> timedelta | None:
    return timedelta(seconds=seconds) if seconds else None
