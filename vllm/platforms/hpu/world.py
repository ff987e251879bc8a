"""All ranks of an executor on Gaudis, and those of each stage, as groups of torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.settings import CollectiveSettings


@dataclass(frozen=True, slots=True)
class StageRanks:
    """The ranks that compute one stage together; all ranks where there is one stage."""

    devices: Any  # over HCCL; None: the default group, which all ranks are in
    host: Any  # over gloo
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
        store=_store(place, settings),
        rank=place.rank,
        world_size=place.world_size,
        timeout=_limit(settings.timeout_s),
    )


def _store(place: Place, settings: CollectiveSettings) -> dist.Store:
    """At an empty file that all can open, or at host:port, where rank 0 listens."""
    if place.rendezvous.startswith("/"):
        return dist.FileStore(place.rendezvous, place.world_size)
    host, _, port = place.rendezvous.rpartition(":")
    return dist.TCPStore(
        host,
        int(port),
        place.world_size,
        is_master=place.rank == 0,
        timeout=_limit(settings.host_timeout_s) or timedelta(minutes=30),
        wait_for_workers=False,
        multi_tenant=True,
    )


def stage_ranks(place: Place, settings: CollectiveSettings) -> StageRanks:
    """Those of the stage of `place`. Every rank calls it, once. Raises RuntimeError."""
    join(place, settings)
    host_limit = _limit(settings.host_timeout_s)
    if place.pp.size == 1:
        return StageRanks(None, dist.new_group(backend="gloo", timeout=host_limit), 0)
    stages = []
    # Each rank makes the groups of all stages, in one order, as torch.distributed demands.
    for first in range(0, place.world_size, place.tp.size):
        ranks = list(range(first, first + place.tp.size))
        devices = dist.new_group(ranks, timeout=_limit(settings.timeout_s))
        host = dist.new_group(ranks, backend="gloo", timeout=host_limit)
        stages.append(StageRanks(devices, host, first))
    return stages[place.pp.rank]


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
