"""Random numbers: one generator per device, seeded as a whole."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable

import torch
from habana_frameworks.torch.hpu.device import Device, device_count, index_of
from hpu_emulator import _C
from torch import Tensor


def manual_seed(seed: int) -> None:
    _C.generator(_C.current_device()).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        _C.generator(index).manual_seed(seed)


def seed() -> None:
    manual_seed(secrets.randbits(63))


def seed_all() -> None:
    manual_seed_all(secrets.randbits(63))


def initial_seed() -> int:
    return int(_C.generator(_C.current_device()).initial_seed())


def get_rng_state(device: Device = None) -> Tensor:
    """Of device 0, the only one whose state can be had: uint8, on the host."""
    _check(device)
    return torch.as_tensor(_C.generator(0).get_state())


def get_rng_state_all() -> list[Tensor]:
    return [get_rng_state(0)]


def set_rng_state(new_state: Tensor, device: Device = None) -> None:
    _check(device)
    _C.generator(0).set_state(new_state)


def set_rng_state_all(new_states: Iterable[Tensor]) -> None:
    for state in new_states:
        set_rng_state(state)


def follow_torch() -> None:
    """From now on torch.manual_seed() and torch.seed() seed the devices too."""
    host_manual_seed, host_seed = torch.manual_seed, torch.seed

    @functools.wraps(host_manual_seed)
    def seed_both(value: int) -> torch.Generator:
        manual_seed_all(int(value))
        return host_manual_seed(value)

    @functools.wraps(host_seed)
    def seed_both_anew() -> int:
        seed_all()
        return host_seed()

    torch.manual_seed = torch.random.manual_seed = seed_both
    torch.seed = torch.random.seed = seed_both_anew


def _check(device: Device) -> None:
    if index_of(device) != 0:
        raise RuntimeError("the state of the generator is available for device 0 only")
