"""How weights get into memory."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    load_format: str = option(
        "auto",
        choices=("auto", "safetensors", "pt", "dummy"),
        help="auto: safetensors where there are any, else pt; dummy: random weights.",
    )
    download_dir: str = option(
        "",
        auto="the cache of the hub",
        folded=True,
        local=True,
        help="Where models from the hub are kept.",
    )
    ignore_patterns: tuple[str, ...] = option(
        ("original/**/*",), help="Files of the checkpoint to leave alone."
    )
    use_tqdm_on_load: bool = option(
        True, local=True, help="Show progress while weights are loaded."
    )
