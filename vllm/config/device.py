"""The kind of device."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    device: str = option(
        "auto",
        auto="hpu where there is a Gaudi, else cpu",
        help="Kind of device to run on: hpu or cpu.",
    )
    enforce_eager: bool = option(
        False,
        help="Neither compile the model nor capture graphs of it: quicker to start, slower to run. "
        "On the CPU graphs are captured as they are needed, and cost no start-up.",
    )
    recipe_cache: str = option(
        "",
        folded=True,
        help="Directory on a local disk where compiled recipes are kept, so that the next start "
        "compiles only what is new. PT_HPU_RECIPE_CACHE_CONFIG, if set, wins. Makes no difference "
        "on the CPU.",
    )
