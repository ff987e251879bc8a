"""Writes docs/configuration.md: `python -m vllm.config.document > docs/configuration.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from vllm.config.flags import shown_default
from vllm.config.legacy import LEGACY
from vllm.config.option import Setting, settings_of
from vllm.config.unavailable import UNAVAILABLE
from vllm.config.unavailable_variables import UNAVAILABLE_VARIABLES
from vllm.config.vllm import GROUPS
from vllm.entrypoints.openai.cli_args import server_settings
from vllm.envs import VARIABLES

_INTRODUCTION = """\
# Configuration

Generated from the declarations by `python -m vllm.config.document > docs/configuration.md`:
do not edit.

Every flag is also a keyword of `LLM(...)`, `EngineArgs(...)` and `AsyncEngineArgs(...)`, with
underscores: `--max-model-len` is `max_model_len`. On the command line

- `--max_model_len` and `--max-model-len` are the same;
- switches are turned off by `--no-...`;
- numbers may have a unit: `2k` is 2000, `2K` is 2048;
- `--config FILE` reads flags from a YAML file; those of the command line win;
- `--hf-overrides.key value` sets one key of a JSON flag;
- `vllm serve --help=WORD` finds flags.

An unknown flag, a value that is not allowed, or flags that contradict each other end the start with
a message that names flag, value and remedy.
"""


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    for title, group in GROUPS.items():
        yield f"## {title.capitalize()}\n"
        yield from _settings(settings_of(group))
    yield "## Server\n"
    yield "Flags of `vllm serve` only.\n"
    yield from _settings(server_settings())
    yield "## Environment variables\n"
    yield from _table(
        ("variable", "value", "default", "meaning"),
        (
            (
                f"`{v.name}`",
                v.allowed,
                f"`{v.default}`" if v.default not in (None, "") else "",
                v.help,
            )
            for v in VARIABLES
        ),
    )
    yield "`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` work as in "
    yield "huggingface_hub. An empty variable is one that is not set.\n"
    yield "## Old flags\n"
    yield "Accepted. Those that name no other flag have no effect and say so once.\n"
    yield from _table(("flag", "now"), ((f"`{row.flag}`", row.help) for row in LEGACY))
    yield "## Flags of features that are not available yet\n"
    yield "Their default is accepted; any other value is refused.\n"
    yield from _table(("flag", "missing"), ((f"`{row.flag}`", row.feature) for row in UNAVAILABLE))
    yield "## Environment variables of features that are not available yet\n"
    yield "What turns the feature off is accepted; any other value is refused.\n"
    yield from _table(
        ("variable", "missing"), ((f"`{row.name}`", row.feature) for row in UNAVAILABLE_VARIABLES)
    )


def _settings(settings: Iterable[Setting]) -> Iterator[str]:
    rows = (
        (f"`{s.flag}`", _values(s), f"`{shown_default(s)}`" if not s.auto else s.auto, s.help)
        for s in settings
    )
    return _table(("flag", "value", "default", "meaning"), rows)


def _values(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    low = f"from {setting.low:g}" if setting.low is not None else ""
    high = f"to {setting.high:g}" if setting.high is not None else ""
    return " ".join((setting.kind.name.partition(" (")[0], low, high)).strip()


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
