"""What the pages point to exists: files, headings, flags."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.rules import ROOT
from vllm.entrypoints.cli.main import COMMANDS, build_parser

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-]*[=…]?\w*\*)")
BENCHMARKS = ("latency", "throughput", "serve", "startup")
# Of programs that are not ours, and what a page misspells on purpose.
FOREIGN = frozenset(
    "--no-build-isolation --no-deps --target --ulimit --num-prompt "
    "--build-arg --cap-add --ipc --network --rm --runtime --up "
    "--head --address --nproc-per-node --node-ip-address --resources "
    "--replicas --from-file --app-dir --min-replicas --max-replicas".split()
)


def links(page: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def known_flags() -> set[str]:
    """Every long option of the command line, and of the programs beside it."""
    commands = [[name] for name in COMMANDS] + [["bench", name] for name in BENCHMARKS]
    found = {word for words in commands for word in options(build_parser(words[0], words))}
    for folder in ("tools", "benchmarks", "examples", "csrc"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"[\"'](--[a-z][\w.-]*)[\"']", path.read_text()))
    return found


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options(inner)


def test_flags_that_pages_name_exist() -> None:
    known = known_flags() | FOREIGN
    unknown = {
        f"{page.name}: {flag}"
        for page in PAGES
        if page.name != "compatibility.md"  # lists what is absent too, and has its own test
        for flag in FLAG.findall(page.read_text(encoding="utf-8"))
        if flag not in known and not any(name.startswith(f"{flag}-") for name in known)
    }
    assert unknown == set()
