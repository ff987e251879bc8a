from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.parsers.feeding import fed
from vllm.errors import ConfigError
from vllm.parsers.reasoning.base import REASONING_PARSERS
from vllm.parsers.registry import load_plugin
from vllm.parsers.tools.base import TOOL_PARSERS

DOCUMENT = Path(__file__).parents[2] / "docs" / "tool_calling.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_plug_ins_parse(tmp_path: Path) -> None:
    for index, source in enumerate(examples()):
        file = tmp_path / f"documented_{index}.py"
        file.write_text(source, encoding="utf-8")
        load_plugin("--tool-parser-plugin", str(file))
    parsed = fed(TOOL_PARSERS.get("shout")(), 'Now CALL f {"x": 1} END and CALL g END.')
    assert parsed.calls == [("f", '{"x": 1}'), ("g", "{}")]
    assert parsed.content == "Now  and ."
    parsed = fed(REASONING_PARSERS.get("notes")("hello"), "<notes>why</notes>so")
    assert (parsed.reasoning, parsed.content) == ("why", "so")


@pytest.mark.parametrize("registry", [TOOL_PARSERS, REASONING_PARSERS], ids=["tools", "reasoning"])
def test_every_parser_is_documented(registry) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    ours = [n for n in registry.names() if registry.get(n).__module__.startswith("vllm.")]
    assert [name for name in ours if f"`{name}`" not in text] == []


def test_an_unknown_parser_is_refused_by_its_flag_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"--tool-call-parser hermez.*hermes"):
        TOOL_PARSERS.get("hermez")


@pytest.mark.parametrize(
    ("source", "said"), [(None, "no such file"), ("1/0", "ZeroDivisionError"), ("x =", "Syntax")]
)
def test_a_plug_in_that_cannot_be_run_is_blamed(
    tmp_path: Path, source: str | None, said: str
) -> None:
    file = tmp_path / "wrong.py"
    if source is not None:
        file.write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_plugin("--tool-parser-plugin", str(file))
