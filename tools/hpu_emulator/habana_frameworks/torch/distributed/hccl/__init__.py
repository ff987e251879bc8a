"""The backend "hccl" of torch.distributed: gloo on the memory of the devices."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from hpu_emulator import _C, interfaces
from hpu_emulator.runtime import SETTINGS

NAME = "hccl"
_ON = {"1", "true"}
_MPI = {"WORLD_SIZE": "SIZE", "RANK": "RANK", "LOCAL_RANK": "LOCAL_RANK"}


def register() -> None:
    """Makes the backend known to torch.distributed."""
    lazy_collectives = os.environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES", "").lower() in _ON
    _C.set_lazy_collectives(lazy_collectives)
    if dist.is_available() and NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, _create, devices=["hpu"])


def _create(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Gloo's variables of the environment have no say."""
    options = dist.ProcessGroupGloo._Options()
    options._devices = [_device()]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


def _device() -> Any:
    names = interfaces.candidates()
    for name in names:
        with suppress(RuntimeError):  # it has no address
            return dist.ProcessGroupGloo.create_device(interface=name)
    raise RuntimeError(f"HCCL: no network interface has an address: {', '.join(names) or 'none'}")


def initialize_distributed_hpu(
    world_size: int | None = None, rank: int | None = None, local_rank: int | None = None
) -> tuple[int, int, int]:
    """World size, rank and local rank, from the arguments or from the environment of the launcher.

    Sets MASTER_ADDR and MASTER_PORT where they are missing, ID, and the HLS_MODULE_ID of the
    process. Starts nothing.
    """
    for name, suffix in _MPI.items():
        given = os.environ.get(f"OMPI_COMM_WORLD_{suffix}")
        if given is not None:
            os.environ.setdefault(name, given)
    world = _chosen("WORLD_SIZE", world_size, 1)
    this = _chosen("RANK", rank, 0)
    local = _chosen("LOCAL_RANK", local_rank, -1)
    if world > 1:
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "12345")
    if world > 1 and local >= 0 and "HLS_MODULE_ID" not in os.environ:
        visible = SETTINGS.visible_modules
        if local >= len(visible):
            raise RuntimeError(
                f"local rank {local} has no module: {len(visible)} are visible "
                "(HABANA_VISIBLE_MODULES)"
            )
        os.environ["HLS_MODULE_ID"] = str(visible[local])
    os.environ["ID"] = str(this)
    return world, this, local


def _chosen(variable: str, given: int | None, default: int) -> int:
    value = int(os.environ.get(variable, default)) if given is None else given
    if given is not None:
        os.environ[variable] = str(given)
    return value


register()
__all__ = ["initialize_distributed_hpu"]
