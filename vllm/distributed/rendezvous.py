"""Where ranks meet: the store of torch.distributed at a place's rendezvous, and gloo over it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import torch.distributed as dist

from vllm import envs
from vllm.distributed.groups import Group
from vllm.distributed.place import Place

_INTERFACE: Final = "GLOO_SOCKET_IFNAME"
_SECONDS: Final = 1800  # gloo's own limit in torch.distributed


def limit_of(seconds: int) -> timedelta:
    """How long a rank waits for another; 0 seconds: as long as torch.distributed does."""
    return timedelta(seconds=seconds or _SECONDS)


def store_of(place: Place, limit: timedelta) -> dist.Store:
    """The store of all ranks that meet at `place.rendezvous`.

    That is a path to an empty file, or host:port. There rank 0 listens, but of several copies the
    core of the first one; see `serve_store`. Raises RuntimeError.
    """
    if place.rendezvous.startswith("/"):
        return dist.FileStore(place.rendezvous, place.everyone.size)
    host, _, port = place.rendezvous.rpartition(":")
    # Rank 0 listens once, however many groups it is in.
    return dist.TCPStore(
        host.strip("[]"),
        int(port),
        place.everyone.size,
        is_master=place.rank == 0 and place.dp.size == 1,
        timeout=limit,
        wait_for_workers=False,
        multi_tenant=True,
    )


def serve_store(host: str) -> tuple[dist.Store, int]:
    """A store at this address of the machine, for as long as it is kept; and its port."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, store.port


def meeting(place: Place, limit: timedelta, name: str) -> dist.Store:
    """Where the ranks of a copy that give this `name` meet, among all at `place.rendezvous`."""
    return dist.PrefixStore(f"copy {place.dp.rank}, {name}", store_of(place, limit))


def meeting_of_copies(place: Place, limit: timedelta, name: str) -> dist.Store:
    """The same, of the ranks of all copies that give this `name`."""
    return dist.PrefixStore(f"all copies, {name}", store_of(place, limit))


def connected(
    store: dist.Store, group: Group, limit: timedelta, address: str
) -> dist.ProcessGroupGloo:
    """The ranks that meet at `store`; others reach this one at `address`.

    Without an address, or where GLOO_SOCKET_IFNAME names an interface, gloo chooses.
    """
    if not address or envs.inherited(_INTERFACE):
        return dist.ProcessGroupGloo(store, group.rank, group.size, timeout=limit)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = limit
    return dist.ProcessGroupGloo(store, group.rank, group.size, options)
