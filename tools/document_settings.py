"""Writes docs/configuration.md: `python -m tools.document_settings > docs/configuration.md`.

With a page as argument, writes that page's tables of HPU variables: those between its marks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vllm.config.flags import shown_default
from vllm.config.legacy import LEGACY
from vllm.config.option import Setting, settings_of
from vllm.config.unavailable import UNAVAILABLE, Unavailable
from vllm.config.unavailable_variables import UNAVAILABLE_VARIABLES
from vllm.config.vllm import GROUPS
from vllm.entrypoints.openai.server_options import server_settings
from vllm.envs import VARIABLES
from vllm.hpu_kernel_variables import HPU_KERNEL_VARIABLES
from vllm.hpu_variables import HPU_VARIABLES
from vllm.profiling_variables import PROFILING_VARIABLES
from vllm.variable import Variable

_INTRODUCTION = """\
# Configuration

Generated from the declarations by `python -m tools.document_settings > docs/configuration.md`:
do not edit.

Every flag is also a keyword of `LLM(...)`, `EngineArgs(...)` and `AsyncEngineArgs(...)`, with
underscores: `--max-model-len` is `max_model_len`. On the command line

- `--max_model_len` and `--max-model-len` are the same;
- switches are turned off by `--no-...`;
- numbers may have a unit: `2k` is 2000, `2.5k` is 2500, `2K` is 2048;
- `--config FILE` reads flags from a YAML file; those of the command line win;
- `--hf-overrides.key value` sets one key of a JSON flag;
- `vllm serve --help=WORD` finds flags.

An unknown flag, a value that is not allowed, or flags that contradict each other end the start with
a message that names flag, value and remedy.
"""


_BEGIN = "<!-- by `python -m tools.document_settings README_GAUDI.md` -->\n"
_END = "<!-- end -->\n"
HPU_TABLES: tuple[tuple[str, Sequence[Variable]], ...] = (
    ("Execution, warm-up and graphs", HPU_VARIABLES),
    ("Kernels", HPU_KERNEL_VARIABLES),
    ("Profiling, on every device", PROFILING_VARIABLES),
)


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
        ((f"`{v.name}`", v.allowed, _default(v), v.help) for v in VARIABLES),
    )
    yield "`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` work as in "
    yield "huggingface_hub. An empty variable is one that is not set.\n"
    yield "## Old flags\n"
    yield "Accepted. Those that name no other flag have no effect and say so once.\n"
    yield from _table(("flag", "now"), ((f"`{row.flag}`", row.help) for row in LEGACY))
    yield "## Flags of features that are not available yet\n"
    yield "Their default is accepted; any other value is refused.\n"
    yield from _without([row for row in UNAVAILABLE if row.is_coming])
    yield "## Flags that are refused\n"
    yield "The design has no place for what they ask for. Their default is accepted.\n"
    yield from _without([row for row in UNAVAILABLE if not row.is_coming])
    yield "## Environment variables of features that are not available yet\n"
    yield "What turns the feature off is accepted; any other value is refused.\n"
    yield from _missing()


def with_tables(text: str) -> str:
    """`text` of a page with the tables of HPU variables as they are now."""
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    assert tail, f"the page has no {_BEGIN} and {_END}"
    return "".join((head, _BEGIN, "\n", *(f"{line}\n" for line in _hpu_tables()), _END, tail))


def _hpu_tables() -> Iterator[str]:
    for title, variables in HPU_TABLES:
        yield f"### {title}\n"
        # Those of the axes of buckets are many and alike: the page has a table of its own.
        yield from _table(
            ("variable", "default", "meaning"),
            (
                (f"`{v.name}`", _default(v), _alone(v.help))
                for v in variables
                if "_BUCKET_" not in v.name
            ),
        )
    yield "### Not available yet\n"
    yield "What turns the feature off is accepted; any other value is refused.\n"
    yield from _missing()


def _alone(help: str) -> str:
    """Where everything is about HPU."""
    text = help.removeprefix("HPU: ").removeprefix("HPU, ")
    return text[0].upper() + text[1:]


def _default(variable: Variable) -> str:
    is_shown = variable.default not in (None, "", (), frozenset())
    return f"`{variable.default}`" if is_shown else ""


def _without(flags: Iterable[Unavailable]) -> Iterator[str]:
    return _table(("flag", "missing"), ((f"`{row.flag}`", row.feature) for row in flags))


def _missing() -> Iterator[str]:
    return _table(
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
    if sys.argv[1:]:
        path = Path(sys.argv[1])
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(page())
