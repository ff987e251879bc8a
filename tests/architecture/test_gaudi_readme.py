"""README_GAUDI.md agrees with the code: variables, worked examples, messages, build arguments."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.architecture import rules
from tools.document_settings import HPU_TABLES, with_tables
from vllm import envs
from vllm.platforms.hpu.bucketing.axes import Limits, default_axes
from vllm.platforms.hpu.bucketing.ranges import exponential_range, linear_range, padded_range
from vllm.platforms.hpu.bucketing.table import BucketTable, decode_buckets, prompt_buckets
from vllm.platforms.hpu.memory import GIB, MemorySplit

PAGE = rules.ROOT / "README_GAUDI.md"
TEXT = PAGE.read_text(encoding="utf-8")


def table(first: str) -> list[list[str]]:
    """Cells of the tables whose head begins with `first`, without backticks."""
    found: list[list[str]] = []
    inside = False
    for line in TEXT.splitlines():
        if line.startswith(f"| {first} |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("| ---"):
            found.append([cell.strip().strip("`") for cell in line[1:-1].split("|")])
    assert found, first
    return found


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]


def test_the_tables_of_variables_are_current() -> None:
    assert with_tables(TEXT) == TEXT, "run: python -m tools.document_settings README_GAUDI.md"


def test_every_variable_that_is_about_hpu_has_a_table() -> None:
    shown = {variable.name for _, variables in HPU_TABLES for variable in variables}
    missing = [v.name for v in envs.VARIABLES if v.help.startswith("HPU") and v.name not in shown]
    assert missing == []


def test_the_axes_of_buckets_are_all_there() -> None:
    declared = {v.name.partition("_BUCKET_")[0] for v in envs.VARIABLES if "_BUCKET_" in v.name}
    assert declared == {
        name.removesuffix("_BUCKET") for name in re.findall(r"VLLM_\w+_BUCKET(?!\w)", TEXT)
    }


@pytest.mark.parametrize("row", table("strategy"), ids=str)
def test_worked_examples_of_axes_come_out(row: list[str]) -> None:
    strategy, bounds, more, values = row
    ranges = {"lin": linear_range, "exp": exponential_range, "pad": padded_range}

    computed = ranges[strategy](*numbers(bounds), *numbers(more))

    assert computed == numbers(values)


@pytest.mark.parametrize("row", table("--max-num-seqs"), ids=str)
def test_numbers_of_buckets_come_out(row: list[str]) -> None:
    seqs, tokens, longest, blocks = map(int, row[:4])
    limits = Limits(seqs, 1, tokens, longest, 128, blocks)

    for strategy, cell in zip(("exponential", "linear", "padding-aware"), row[4:], strict=True):
        axes = default_axes(strategy, limits)
        buckets = BucketTable(
            prompt_buckets(axes, strategy, limits), decode_buckets(axes, strategy, limits), limits
        )
        assert [len(buckets.prompt), len(buckets.decode)] == numbers(cell)


def test_the_example_of_the_memory_split_comes_out() -> None:
    free = 80 * GIB
    usable = int(free * 0.9)
    graphs = int(usable * 0.1)
    parts = MemorySplit(free, usable, graphs, usable - graphs)

    assert str(parts) in TEXT
    block_bytes = 2 * 32 * 8 * 128 * 2 * 128
    assert f"{parts.cache // block_bytes} blocks" in TEXT
    assert f"{parts.cache // block_bytes * 128} tokens" in TEXT


@cache
def strings_of_the_engine() -> str:
    """All constant texts, each on lines of its own; what is formatted in is cut out."""
    return "\n".join(
        node.value
        for source in rules.sources("vllm")
        for node in ast.walk(source.tree())
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_messages_of_the_engine_are_quoted_as_they_are() -> None:
    texts = strings_of_the_engine()
    section = TEXT.partition("By the text of the error. Of the engine:")[2].partition(
        "Of the Gaudi"
    )
    quoted = re.findall(r"^\| `([^`]+)`", section[0], re.MULTILINE)

    assert len(quoted) >= 8
    assert [text for text in quoted if text not in texts] == []


def test_lines_of_the_log_are_quoted_as_they_are() -> None:
    texts = strings_of_the_engine()

    for line in (
        "bucket config (min, step, max_warmup",
        "buckets [bs, query, num_blocks]: ",
        "batch_size:%d query_len:%d num_blocks:%d free_mem:%.2f GiB",
        "captured:%d (%.1f%%) used_mem:%.2f GiB buckets:",
        "Warmup finished in %.0f secs, allocated %.2f GiB of device memory",
    ):
        assert line in texts, line
        assert re.sub(r"%[\d.]*\w", "%", line).split("%")[0] in TEXT, line


def test_arguments_of_the_dockerfiles_are_all_explained() -> None:
    explained = {row[0]: row[1] for row in table("`--build-arg`")}

    for name in ("Dockerfile.hpu", "Dockerfile.hpu.ubi"):
        text = (rules.ROOT / name).read_text()
        arguments = dict(re.findall(r"^ARG (\w+)=(.+)$", text, re.MULTILINE))
        assert set(arguments) == set(explained)
        for argument, default in arguments.items():
            assert argument == "BASE_IMAGE" or default in explained[argument]


def test_variables_of_the_gaudi_software_are_those_the_engine_knows() -> None:
    code = "\n".join(s.text for s in rules.sources("vllm"))
    named = set(re.findall(r"PT_HPU_\w+", code))

    assert named <= set(re.findall(r"PT_HPU_\w+", TEXT)) | {"PT_HPU_"}
