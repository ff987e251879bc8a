"""All ranks on Gaudis that compute together, and groups of them, on one machine or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vllm.distributed import rendezvous
from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.settings import CollectiveSettings


@dataclass(frozen=True, slots=True)
class MetRanks:
    """Ranks that compute together."""

    group: Group
    devices: Any  # over HCCL; None: the default group, which all ranks are in
    host: dist.ProcessGroupGloo
    members: Sequence[int]  # ranks in the world


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
        rank=place.everyone.rank,
        world_size=place.everyone.size,
        timeout=_limit(settings.timeout_s),
    )


def stage_ranks(place: Place, settings: CollectiveSettings) -> MetRanks:
    """Those of the stage of `place`. Every rank calls it, once. Raises RuntimeError."""
    width = place.tp.size
    starts = range(0, place.everyone.size, width)
    groups = [range(start, start + width) for start in starts]
    return _met(place, settings, place.tp, groups, rendezvous.meeting, "")


def expert_ranks(place: Place, settings: CollectiveSettings) -> MetRanks:
    """Those of the same stage in all copies of the model. As `stage_ranks`."""
    copies = range(0, place.everyone.size, place.world_size)
    stages = range(0, place.world_size, place.tp.size)
    groups = [
        [copy + stage + share for copy in copies for share in range(place.tp.size)]
        for stage in stages
    ]
    return _met(place, settings, place.ep, groups, rendezvous.meeting_of_copies, "experts of ")


def _met(
    place: Place,
    settings: CollectiveSettings,
    own: Group,
    groups: Sequence[Sequence[int]],
    meet: Callable[[Place, timedelta, str], dist.Store],
    what: str,
) -> MetRanks:
    """`groups` of ranks in the world, of which `own` is one."""
    join(place, settings)
    devices = None
    (members,) = (group for group in groups if place.everyone.rank in group)
    if len(groups) > 1:
        # Each rank makes all groups, in one order, as torch.distributed demands.
        limit = _limit(settings.timeout_s)
        made = [dist.new_group(list(group), timeout=limit) for group in groups]
        devices = made[groups.index(members)]
    host_limit = rendezvous.limit_of(settings.host_timeout_s)
    store = meet(place, host_limit, f"{what}stage {place.pp.rank} on the host")
    host = rendezvous.connected(store, own, host_limit, place.address)
    return MetRanks(own, devices, host, members)


@contextmanager
def meeting(place: Place) -> Iterator[None]:
    """What fails while ranks meet is a ConfigError, with which the start of every rank ends."""
    try:
        yield
    except RuntimeError as error:
        raise ConfigError(
            f"--device hpu: the {place.everyone.size} ranks cannot compute together: {error}. They "
            "reach each other over HCCL, and on the host over the network interface that "
            "GLOO_SOCKET_IFNAME names; HCCL_SOCKET_IFNAME names the one over which HCCL meets."
        ) from error


def _limit(seconds: int) -> timedelta | None:
    return timedelta(seconds=seconds) if seconds else None
