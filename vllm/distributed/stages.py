"""Stages of a pipeline: which layers each of them computes."""

from __future__ import annotations

from dataclasses import dataclass

from vllm import envs
from vllm.distributed.groups import Group
from vllm.errors import ConfigError

PARTITION = "VLLM_PP_LAYER_PARTITION"


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers [first, end) of a model."""

    first: int
    end: int
    is_first: bool
    is_last: bool

    @property
    def layers(self) -> range:
        return range(self.first, self.end)


def divide(num_layers: int, num_stages: int, partition: str = "") -> list[int]:
    """Layers of each stage, in order. `partition` lists them, separated by commas.

    By default all stages have as many, and those before the last one more each for the rest, which
    the last stage has least room for: it has the head as well. Raises ConfigError.
    """
    if partition:
        return _as_listed(num_layers, num_stages, partition)
    if num_layers < num_stages:
        raise ConfigError(
            f"--pipeline-parallel-size {num_stages}: the model has {num_layers} layers, and every "
            f"stage needs one. Use at most {num_layers}."
        )
    each, rest = divmod(num_layers, num_stages)
    counts = [each] * num_stages
    for stage in range(rest):
        counts[-2 - stage] += 1
    return counts


def stage_of(num_layers: int, pp: Group) -> Stage:
    """The stage of a rank at position `pp`, as VLLM_PP_LAYER_PARTITION says. Raises ConfigError."""
    partition = envs.VLLM_PP_LAYER_PARTITION if pp.size > 1 else ""
    counts = divide(num_layers, pp.size, partition)
    first = sum(counts[: pp.rank])
    return Stage(first, first + counts[pp.rank], pp.rank == 0, pp.rank == pp.size - 1)


def _as_listed(num_layers: int, num_stages: int, partition: str) -> list[int]:
    words = [word.strip() for word in partition.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(
            f"{PARTITION}={partition!r}: must be numbers of layers, each at least 1, separated by "
            "commas, such as 14,14. Correct it or unset it."
        )
    counts = [int(word) for word in words]
    if len(counts) != num_stages:
        raise ConfigError(
            f"{PARTITION}={partition!r} has {len(counts)} numbers for "
            f"--pipeline-parallel-size {num_stages}. Give one per stage, or unset it."
        )
    if sum(counts) != num_layers:
        raise ConfigError(
            f"{PARTITION}={partition!r} adds up to {sum(counts)}, and the model has {num_layers} "
            "layers. Correct it or unset it."
        )
    return counts
