"""docs/compatibility.md says of each of vLLM's flags, fields, routes and metrics what we do; the
code must agree, in both directions."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.entrypoints.openai.conftest import make_context
from tests.entrypoints.openai.fakes import FakeEngine, byte_tokenizer
from vllm.config.legacy import LEGACY
from vllm.config.unavailable import UNAVAILABLE
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import add_server_flags
from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.entrypoints.openai.protocol.completion import CompletionRequest
from vllm.entrypoints.openai.routes import development, ui
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats
from vllm.utils.argparse import FlexibleArgumentParser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
WORKS = {"same", "different", "ours"}
ROW = re.compile(r"^\| `([^`]+)` \| ([a-z ]+) \|(.*)\|$")


def sections() -> dict[str, dict[str, str]]:
    """Of each heading the rows of its table: name to status."""
    found: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.lstrip("# "), {})
        elif match := ROW.match(line):
            assert match[1] not in rows, f"two rows for {match[1]}"
            rows[match[1]] = match[2].strip()
            explained = match[3].strip() not in ("", "|")
            assert explained or match[2].strip() == "same", f"{match[1]}: say what differs and why"
    return found


def rows(title: str) -> dict[str, str]:
    table = sections()[title]
    assert table, f"no rows under {title!r}"
    return table


def working(title: str) -> set[str]:
    return {name for name, status in rows(title).items() if status in WORKS}


def parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser()
    add_server_flags(parser)
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def flags_of(parser: FlexibleArgumentParser) -> set[str]:
    """The first long spelling of every flag; --no-… is a form of its own flag."""
    return {
        next(word for word in action.option_strings if word.startswith("--"))
        for action in parser._actions
        if any(word.startswith("--") for word in action.option_strings)
    } - {"--help"} | {"--config"}  # which is replaced by what is in its file before flags are read


def test_every_flag_is_in_the_table_with_what_it_does() -> None:
    table = rows("Flags")
    idle = {flag.flag for flag in LEGACY if not flag.to}
    mapped = {flag.flag for flag in LEGACY if flag.to}
    refused = {flag.flag for flag in UNAVAILABLE}
    expected = {
        flag: "no effect" if flag in idle else "not yet" if flag in refused else "works"
        for flag in flags_of(parser())
    }
    said = {
        flag: "works" if status in WORKS else status
        for flag, status in table.items()
        if status != "absent"
    }
    assert said == expected
    assert all(table[flag] == "different" for flag in mapped), "say what an old flag means now"


def test_flags_that_are_absent_are_unknown_to_the_parser() -> None:
    absent = {flag for flag, status in rows("Flags").items() if status == "absent"}
    known = {word for action in parser()._actions for word in action.option_strings}
    assert not absent & known


MODELS = {
    "Fields of /v1/completions": CompletionRequest,
    "Fields of /v1/chat/completions": ChatCompletionRequest,
}


@pytest.mark.parametrize(("title", "model"), MODELS.items(), ids=MODELS)
def test_every_field_is_in_the_table_with_what_it_does(title: str, model: type[Any]) -> None:
    refused = set(model.unavailable)
    expected = {name: "refused" if name in refused else "works" for name in model.model_fields}
    said = {
        name: "works" if status in WORKS else status
        for name, status in rows(title).items()
        if status != "ignored"
    }
    assert said == expected


def exported_metrics() -> set[str]:
    exposition = PrometheusStats("model", 1024, {}).exposition().decode()
    names = {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}
    return {name for name in names if name.startswith("vllm:")}


def served_routes() -> set[str]:
    context = make_context(FakeEngine(byte_tokenizer()), enable_tokenizer_info_endpoint=True)
    app = build_app(context, PrometheusStats("model", 1024, {}), LoggingStats(10.0))
    app.include_router(development.router)
    hidden = {route.path for route in ui.router.routes if isinstance(route, APIRoute)}
    return set(app.openapi()["paths"]) | hidden


def test_every_metric_is_in_the_table() -> None:
    assert working("Metrics") == exported_metrics()


def test_every_route_is_in_the_table() -> None:
    assert working("Routes") == served_routes()


def test_python_names_can_be_imported() -> None:
    for path in sorted(working("Python")):
        module, _, name = path.rpartition(".")
        assert name in dir(importlib.import_module(module)), path
