"""What README and docs tell readers to type works as printed: every curl line is run."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.entrypoints.openai.real_server import ROOT, RealServer
from tests.limits import HANG_S

pytestmark = pytest.mark.engine
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:console|bash|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLAIN_SERVERS = "/generate"  # a path of vllm.entrypoints.api_server, which has its own tests
OURS = re.compile(r"http://(?:127\.0\.0\.1|localhost)(?::\d+)?(?=/|$)")


def commands_of(block: str) -> Iterator[str]:
    """Each curl command as one line of shell, with what its continuation lines hold."""
    lines = iter(block.splitlines())
    for line in lines:
        line = line.removeprefix("$ ").strip()
        if not line.startswith("curl "):
            continue
        while not is_whole(line):
            line = line.removesuffix("\\") + "\n" + next(lines)
        yield line


def is_whole(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:
        return False
    return not command.endswith("\\")


def words_of(command: str) -> list[str]:
    """The words of the curl command itself, without what it is piped into."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    ends = [i for i, word in enumerate(words) if set(word) <= set("|;<>")]
    return words[: ends[0]] if ends else words


def commands(page: Path) -> list[str]:
    found = (command for block in BLOCK.findall(page.read_text()) for command in commands_of(block))
    return [command for command in found if PLAIN_SERVERS not in command]


def test_there_are_commands_and_they_are_found_whole() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 10
    block = "$ curl -s http://localhost:1/a -d '{\n  \"a\": 1}' \\\n  -H 'b: |' | jq .\nout\n"
    assert [words_of(c) for c in commands_of(block)] == [
        ["curl", "-s", "http://localhost:1/a", "-d", '{\n  "a": 1}', "-H", "b: |"]
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.name)
def test_every_command_of_a_page_is_answered(page: Path, server: RealServer) -> None:
    for command in commands(page):
        words = [OURS.sub(server.url, word) for word in words_of(command)]
        assert any(server.url in word for word in words), command
        done = subprocess.run(
            [*words, "-sS", "--max-time", str(HANG_S), "--write-out", "\n%{http_code}"],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        body, _, status = done.stdout.rpartition("\n")
        assert done.returncode == 0, (command, done.stderr)
        assert int(status) < 400, (command, status, body)
        assert '"error":{' not in body, (command, body)
