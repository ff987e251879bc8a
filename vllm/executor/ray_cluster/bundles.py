"""Which bundles of a placement group ranks, or copies of a model, take: one each, by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vllm.envs import Environment
from vllm.errors import ConfigError

_SIZES: Final = "--tensor-parallel-size x --pipeline-parallel-size"
_INDICES: Final = "VLLM_RAY_BUNDLE_INDICES"
_AMOUNT: Final = "VLLM_RAY_PER_WORKER_GPUS"


@dataclass(frozen=True, slots=True)
class Need:
    """What the bundle of a rank, or of a copy of the model with all its ranks, must have."""

    resource: str  # HPU or CPU
    amount: float
    noun: str = "rank"  # what has a bundle
    nouns: str = "ranks"
    sizes: str = _SIZES  # the flags that say how many there are

    @classmethod
    def of(cls, device: str) -> Need:
        """Of a rank on a `device`. Raises ConfigError."""
        amount = Environment().VLLM_RAY_PER_WORKER_GPUS
        if device == "hpu" and amount != 1.0:
            raise ConfigError(
                f"{_AMOUNT}={amount:g}: a rank needs one HPU, which Ray does not divide. Unset it."
            )
        return cls("HPU" if device == "hpu" else "CPU", amount)

    def of_copies(self, num_ranks: int) -> Need:
        """Of a copy of the model with so many ranks, all on one node."""
        amount = self.amount * num_ranks
        return Need(self.resource, amount, "copy", "copies", "--data-parallel-size")

    def room(self, has: Mapping[str, float]) -> int:
        """How many fit where these resources are."""
        return int(has.get(self.resource, 0.0) / self.amount + 1e-9)

    @property
    def resources(self) -> dict[str, float]:
        return {self.resource: self.amount}


def check_supply(need: Need, count: int, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError unless nodes with these resources have as many bundles."""
    there = sum(map(need.room, nodes))
    if there < count:
        raise ConfigError(
            f"The {count} {need.nouns} ({need.sizes}) need a bundle of {need.amount:g} "
            f"{need.resource} each, and the Ray cluster of {len(nodes)} nodes has room for "
            f"{there}. Start Ray on more machines (ray start --address=...), or lower {need.sizes}."
        )


def spread(
    need: Need, count: int, nodes: Mapping[str, Mapping[str, float]], here: str, num_here: int
) -> list[str] | None:
    """The node of each of so many bundles: `here` first, then those with most room.

    `nodes` are what nodes have free, by address. `here` gets `num_here` bundles; -1: as many as
    fit. None if there is too little room.
    """
    room = {address: need.room(has) for address, has in nodes.items()}
    fits_here = room.pop(here, 0)
    most_here = min(fits_here, count) if num_here < 0 else num_here
    chosen = [here] * min(most_here, fits_here)
    for address in sorted(room, key=lambda address: (-room[address], address)):
        chosen += [address] * min(room[address], count - len(chosen))
    return chosen if most_here <= fits_here and len(chosen) == count else None


def choose(
    need: Need,
    count: int,
    bundles: Mapping[int, Mapping[str, float]],
    nodes: Mapping[int, str],
    first_node: str,
) -> list[int]:
    """The bundle of each of so many ranks or copies, by number.

    `bundles` are the resources of a placement group's bundles by index, and `nodes` the ids of
    their nodes. Those of one node follow each other; those of `first_node` come first, then those
    of nodes with more bundles. VLLM_RAY_BUNDLE_INDICES wins. Raises ConfigError.
    """
    usable = [index for index, has in bundles.items() if has.get(need.resource, 0) >= need.amount]
    asked = _asked(need, count, bundles)
    if asked is not None:
        if unusable := [index for index in asked if index not in usable]:
            raise ConfigError(
                f"{_INDICES}: bundle {unusable[0]} has {_shown(bundles[unusable[0]])}, and a "
                f"{need.noun} needs {need.amount:g} {need.resource}."
            )
        return asked
    for index in usable:
        if need.resource == "HPU" and bundles[index]["HPU"] > need.amount:
            raise ConfigError(
                f"Bundle {index} of the placement group has {bundles[index]['HPU']:g} HPU: a "
                f"bundle is of one {need.noun}, which uses {need.amount:g}. Make a bundle of "
                f"{need.amount:g} HPU for each {need.noun}."
            )
    if len(usable) < count:
        raise ConfigError(
            f"The {count} {need.nouns} ({need.sizes}) need a bundle of {need.amount:g} "
            f"{need.resource} each, and the placement group that this program is in has "
            f"{len(usable)} such (of {len(bundles)} bundles). Make it larger, or lower "
            f"{need.sizes}."
        )
    counts = Counter(nodes[index] for index in usable)
    usable.sort(key=lambda i: (nodes[i] != first_node, -counts[nodes[i]], nodes[i], i))
    return usable[:count]


def _asked(need: Need, count: int, bundles: Mapping[int, object]) -> list[int] | None:
    text = Environment().VLLM_RAY_BUNDLE_INDICES
    if not text:
        return None
    words = [word.strip() for word in text.split(",")]
    indices = [int(word) for word in words if word.isdecimal()]
    if len(indices) < len(words) or len(set(indices)) < len(words) or len(words) != count:
        raise ConfigError(
            f"{_INDICES}={text}: must be {count} numbers of bundles, one for each {need.noun} and "
            "each once, separated by commas."
        )
    if unknown := [index for index in indices if index not in bundles]:
        raise ConfigError(
            f"{_INDICES}={text}: there is no bundle {unknown[0]}. The placement group has "
            f"{len(bundles)}, numbered from 0."
        )
    return indices


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
