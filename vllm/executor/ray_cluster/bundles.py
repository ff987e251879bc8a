"""Which bundles of a placement group the ranks take: a bundle per rank, node after node."""

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
    """What the bundle of a rank must have."""

    resource: str  # HPU or CPU
    amount: float

    @classmethod
    def of(cls, device: str) -> Need:
        """Of a rank on a `device`. Raises ConfigError."""
        amount = Environment().VLLM_RAY_PER_WORKER_GPUS
        if device == "hpu" and amount != 1.0:
            raise ConfigError(
                f"{_AMOUNT}={amount:g}: a rank needs one HPU, which Ray does not divide. Unset it."
            )
        return cls("HPU" if device == "hpu" else "CPU", amount)

    @property
    def resources(self) -> dict[str, float]:
        return {self.resource: self.amount}


def check_supply(need: Need, num_ranks: int, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError unless nodes with these resources have a bundle for each rank."""
    there = sum(int(node.get(need.resource, 0.0) / need.amount + 1e-9) for node in nodes)
    if there < num_ranks:
        raise ConfigError(
            f"The {num_ranks} ranks ({_SIZES}) need a bundle of {need.amount:g} {need.resource} "
            f"each, and the Ray cluster of {len(nodes)} nodes has room for {there}. Start Ray on "
            f"more machines (ray start --address=...), or lower {_SIZES}."
        )


def choose(
    need: Need,
    num_ranks: int,
    bundles: Mapping[int, Mapping[str, float]],
    nodes: Mapping[int, str],
    first_node: str,
) -> list[int]:
    """The bundle of each rank, by rank.

    `bundles` are the resources of a placement group's bundles by index, and `nodes` the ids of
    their nodes. Ranks of one node follow each other; those of `first_node` come first, then those
    of nodes with more bundles. VLLM_RAY_BUNDLE_INDICES wins. Raises ConfigError.
    """
    usable = [index for index, has in bundles.items() if has.get(need.resource, 0) >= need.amount]
    asked = _asked(num_ranks, bundles)
    if asked is not None:
        if unusable := [index for index in asked if index not in usable]:
            raise ConfigError(
                f"{_INDICES}: bundle {unusable[0]} has {_shown(bundles[unusable[0]])}, and a rank "
                f"needs {need.amount:g} {need.resource}."
            )
        return asked
    for index in usable:
        if need.resource == "HPU" and bundles[index]["HPU"] > 1:
            raise ConfigError(
                f"Bundle {index} of the placement group has {bundles[index]['HPU']:g} HPU: a "
                "bundle is of one rank, which uses one. Make a bundle of 1 HPU for each rank."
            )
    if len(usable) < num_ranks:
        raise ConfigError(
            f"The {num_ranks} ranks ({_SIZES}) need a bundle of {need.amount:g} {need.resource} "
            f"each, and the placement group that this program is in has {len(usable)} such "
            f"(of {len(bundles)} bundles). Make it larger, or lower {_SIZES}."
        )
    counts = Counter(nodes[index] for index in usable)
    usable.sort(key=lambda i: (nodes[i] != first_node, -counts[nodes[i]], nodes[i], i))
    return usable[:num_ranks]


def _asked(num_ranks: int, bundles: Mapping[int, object]) -> list[int] | None:
    text = Environment().VLLM_RAY_BUNDLE_INDICES
    if not text:
        return None
    words = [word.strip() for word in text.split(",")]
    indices = [int(word) for word in words if word.isdecimal()]
    if len(indices) < len(words) or len(set(indices)) < len(words) or len(words) != num_ranks:
        raise ConfigError(
            f"{_INDICES}={text}: must be {num_ranks} numbers of bundles, one for each rank and "
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
