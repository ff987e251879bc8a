"""Experts that move between ranks, so that each has as much to compute (EPLB)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm.config.option import option, settings_of
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.utils.text import did_you_mean

logger = init_logger(__name__)

FLAG: Final = "--eplb-config"
# Keys of it that change nothing, with the reason.
_WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "use_async": "weights move between steps, a few experts at a time, in the order of the steps.",
    "communicator": "weights move by the collectives that ranks compute with.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertBalanceConfig:
    enabled: bool = option(
        False,
        flag="--enable-eplb",
        help="Count how often each expert is chosen, and move experts between ranks, so that all "
        "ranks have as much to compute. Of use with --enable-expert-parallel.",
    )
    num_redundant_experts: int = option(
        0,
        low=0,
        help="More places for experts per layer, over all ranks together; they hold copies of "
        "those that are chosen most. Of use with --enable-eplb.",
    )
    window_size: int = option(
        1000,
        low=1,
        flag="--eplb-window-size",
        help="Steps whose choices count when experts move.",
    )
    step_interval: int = option(
        3000, low=1, flag="--eplb-step-interval", help="Experts move every so many steps."
    )
    log_balancedness: bool = option(
        False,
        flag="--eplb-log-balancedness",
        help="Log how evenly ranks are busy: what they compute on average, of what the busiest "
        "does.",
    )
    log_balancedness_interval: int = option(
        1,
        low=1,
        flag="--eplb-log-balancedness-interval",
        help="Steps that a line of --eplb-log-balancedness is about.",
    )


def settings_in(value: dict[str, Any]) -> dict[str, Any]:
    """What --eplb-config sets, by setting. Raises ConfigError."""
    known = {setting.attribute: setting for setting in settings_of(ExpertBalanceConfig)}
    del known["enabled"]
    found = {}
    for key, item in value.items():
        if key in _WITHOUT_EFFECT:
            logger.warning_once("%s.%s has no effect: %s", FLAG, key, _WITHOUT_EFFECT[key])
        elif key == "policy":
            _check_policy(item)
        elif key in known:
            found[known[key].name] = known[key].check(item)
        else:
            hint = did_you_mean(key, (*known, *_WITHOUT_EFFECT, "policy"))
            raise ConfigError(f"{FLAG}.{key}: there is no such setting here.{hint}")
    return found


def _check_policy(policy: Any) -> None:
    if policy != "default":
        raise ConfigError(
            f"{FLAG}.policy {policy}: experts are placed in one way, which is called default. "
            "Leave it out."
        )
