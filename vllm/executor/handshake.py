"""What ranks compare before any of them loads: that they run with the same settings.

Ranks that differ would compute different things together, and wait for each other without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from vllm.config.digest import digests
from vllm.envs import VARIABLES, Environment, shown
from vllm.errors import ConfigError
from vllm.messages.rank import Joined
from vllm.profiling_variables import PROFILING_VARIABLES
from vllm.version import __version__

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

# What a rank may have to itself: they change where and what it tells, or are of its machine.
_OWN: Final = frozenset(
    {
        "VLLM_LOGGING_LEVEL",
        "VLLM_CONFIGURE_LOGGING",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_HOST_IP",
        "VLLM_DP_RANK",
        "VLLM_HPU_MODULE_LOCKS",
        "VLLM_API_KEY",
        "PT_HPU_RECIPE_CACHE_CONFIG",
        *(variable.name for variable in PROFILING_VARIABLES),
    }
)
_OF_THE_BRIDGE: Final = ("PT_",)  # read by Gaudi's software, not by us


def introduction(config: VllmConfig) -> Joined:
    """Of this process."""
    env = Environment()
    ours = {v.name: repr(env.value(v.name)) for v in VARIABLES if v.has_effect}
    variables = {**ours, **shown(_OF_THE_BRIDGE)}
    return Joined(
        sections=digests(config),
        versions={"vllm": __version__, "torch": _installed("torch")},
        variables={name: value for name, value in variables.items() if name not in _OWN},
    )


def compare(introductions: Sequence[Joined]) -> None:
    """By rank. Raises ConfigError naming the first rank that differs from rank 0, and in what."""
    for rank, other in enumerate(introductions[1:], start=1):
        compare_with_first(introductions[0], other, "rank", rank)


def compare_with_first(first: Joined, other: Joined, noun: str, number: int) -> None:
    """Raises ConfigError naming how `other`, of the rank or node (`noun`) `number`, differs from
    `first`, which is of number 0."""
    found = [
        f"the {section} settings"
        for section, digest in first.sections.items()
        if other.sections.get(section) != digest
    ]
    for ours, theirs in (
        (first.versions, other.versions),
        (first.variables, other.variables),
    ):
        found += [
            f"{name} ({theirs.get(name, 'not set')}, on {noun} 0 {ours.get(name, 'not set')})"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    if found:
        raise ConfigError(
            f"{noun} {number} runs with other settings than {noun} 0: {', '.join(found)}. All "
            "parts of an engine need the same arguments, versions and environment."
        )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
