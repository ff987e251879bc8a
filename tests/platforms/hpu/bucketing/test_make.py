from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.platforms.hpu.bucketing.axes import Limits, default_axes, overridden
from vllm.platforms.hpu.bucketing.file import read_buckets, write_buckets
from vllm.platforms.hpu.bucketing.make import chosen_strategy, make_table
from vllm.platforms.hpu.bucketing.table import Bucket

LIMITS = Limits(32, 2, 2048, 4096, 128, 2048)


def make_config(**scheduler: Any) -> Any:
    fields = {"max_num_seqs": 8, "max_num_batched_tokens": 512, **scheduler}
    return SimpleNamespace(
        scheduler=SimpleNamespace(**fields),
        model=SimpleNamespace(max_model_len=1024),
        cache=SimpleNamespace(block_size=128),
    )


def env(**variables: str) -> Environment:
    return Environment(variables)


def test_the_older_switch_wins_over_the_strategy() -> None:
    assert chosen_strategy(env()) == "exponential"
    assert chosen_strategy(env(VLLM_BUCKETING_STRATEGY="pad")) == "padding-aware"
    both = env(VLLM_BUCKETING_STRATEGY="exp", VLLM_EXPONENTIAL_BUCKETING="false")
    assert chosen_strategy(both) == "linear"


def test_linear_axes_follow_their_variables() -> None:
    given = env(
        VLLM_DECODE_BS_BUCKET_MIN="4",
        VLLM_DECODE_BS_BUCKET_STEP="8",
        VLLM_DECODE_BS_BUCKET_MAX="24",
        VLLM_PROMPT_SEQ_BUCKET_STEP="256",
    )
    axes = overridden(default_axes("linear", LIMITS), "linear", LIMITS, given)
    assert axes.decode_rows.values("linear") == [4, 8, 16, 24]
    assert axes.prompt_query.step == 256


def test_the_newer_name_of_a_variable_wins() -> None:
    given = env(VLLM_PROMPT_SEQ_BUCKET_STEP="256", VLLM_PROMPT_QUERY_BUCKET_STEP="512")
    assert (
        overridden(default_axes("linear", LIMITS), "linear", LIMITS, given).prompt_query.step == 512
    )


def test_exponential_axes_ignore_variables_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    given = env(VLLM_DECODE_BLOCK_BUCKET_STEP="7")
    with caplog.at_level(logging.WARNING, "vllm"):
        axes = overridden(default_axes("exponential", LIMITS), "exponential", LIMITS, given)
    assert axes == default_axes("exponential", LIMITS)
    assert any("VLLM_DECODE_BLOCK_BUCKET_{STEP} are ignored" in r.message for r in caplog.records)


@pytest.mark.parametrize(
    "variables",
    [
        {"VLLM_DECODE_BS_BUCKET_STEP": "0"},
        {"VLLM_DECODE_BS_BUCKET_MIN": "9", "VLLM_DECODE_BS_BUCKET_MAX": "3"},
        {"VLLM_PROMPT_CTX_BUCKET_PAD_PERCENT": "51"},
        {"VLLM_PROMPT_BS_BUCKET_MAX": "-1"},
        {"VLLM_PROMPT_BS_BUCKET_MAX": "many"},
    ],
)
def test_impossible_axes_are_refused_by_name(variables: dict[str, str]) -> None:
    name = next(iter(variables)).rpartition("_BUCKET")[0]
    with pytest.raises(ConfigError, match=name):
        overridden(default_axes("linear", LIMITS), "linear", LIMITS, env(**variables))


@pytest.mark.parametrize(
    ("variable", "axis", "greatest"),
    [
        ("VLLM_DECODE_BS_BUCKET_MAX", "decode_rows", 32),
        ("VLLM_PROMPT_QUERY_BUCKET_MAX", "prompt_query", 2048),
        ("VLLM_PROMPT_CTX_BUCKET_MAX", "prompt_context", 32),
        ("VLLM_DECODE_BLOCK_BUCKET_MAX", "decode_blocks", 1024),
    ],
)
def test_maxima_that_no_launch_can_have_are_lowered_and_remarked_on(
    variable: str, axis: str, greatest: int, caplog: pytest.LogCaptureFixture
) -> None:
    given = env(**{variable: "1000000007"})
    with caplog.at_level(logging.WARNING, "vllm"):
        axes = overridden(default_axes("linear", LIMITS), "linear", LIMITS, given)
    assert getattr(axes, axis).max == greatest
    assert any(f"{variable}=1000000007" in record.message for record in caplog.records)


def test_a_lower_maximum_leaves_longer_demands_covered() -> None:
    given = env(
        VLLM_BUCKETING_STRATEGY="lin",
        VLLM_PROMPT_QUERY_BUCKET_MAX="128",
        VLLM_DECODE_BS_BUCKET_MAX="2",
        VLLM_DECODE_BLOCK_BUCKET_MAX="4",
    )
    table = make_table(make_config(), 64, given)
    for demand in ((1, 512, 0), (1, 100, 8)):
        assert table.is_prepared(table.find_prompt(*demand))
    assert table.is_prepared(table.find_decode(8, 64))


def test_the_run_that_measures_activations_logs_no_buckets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "vllm"):
        make_table(make_config(), 1, env())
    assert not any("Generated" in record.message for record in caplog.records)


@pytest.mark.parametrize("max_model_len", [1024, 16384])
@pytest.mark.parametrize("strategy", ["lin", "exp", "pad", "file"])
def test_without_a_cache_buckets_differ_in_rows_and_query_lengths_alone(
    strategy: str, max_model_len: int, tmp_path: Path
) -> None:
    config = make_config()
    config.model.max_model_len = max_model_len
    path = tmp_path / "buckets.txt"
    path.write_text("(1, [128, 512], [0, 8])\n([1, 8], 1, [64, 128])\n")
    given = {"VLLM_CONTIGUOUS_PA": "true", "VLLM_DECODE_BLOCK_BUCKET_MAX": "99"}
    given |= (
        {"VLLM_BUCKETING_FROM_FILE": str(path)}
        if strategy == "file"
        else {"VLLM_BUCKETING_STRATEGY": strategy}
    )
    table = make_table(config, 0, env(**given))
    assert {bucket.blocks for bucket in (*table.prompt, *table.decode)} == {0}
    assert table.max_decode_blocks == 0
    for demand in ((1, 512, 0), (1, 2, 0)):
        assert table.is_prepared(table.find_prompt(*demand))
    for rows in range(1, 9):
        assert table.is_prepared(table.find_decode(rows, 0))


@pytest.mark.parametrize(
    "line",
    [
        "(range(1, 10000), range(2, 10000), range(0, 10000))",
        "(" * 5000 + "1",
        "(1, " + "9" * 6000 + ", 0)",
        "(1, 128, 10 ** 9)",
        "(1.5, 128, 0)",
        "(True, 128, 0)",
        "(1, 128, -1)",
        "(range(0, 10, 0), 128, 0)",
        "([[1]], 128, 0)",
        "\x00",
    ],
)
def test_hostile_lines_are_left_out_and_others_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "buckets.txt"
    path.write_text(f"{line}\n(1, 128, 0)\n(8, 1, 16)\n")
    assert read_buckets(path, LIMITS) == ([(1, 128, 0)], [(8, 1, 16)])


def test_the_log_names_configuration_and_buckets(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm"):
        table = make_table(make_config(), 64, env())
    text = "\n".join(record.message for record in caplog.records)
    assert "Prompt bucket config (min, step, max_warmup" in text
    assert f"Generated {len(table.prompt)} prompt buckets [bs, query, num_blocks]: [(1, " in text
    assert f"Generated {len(table.decode)} decode buckets [bs, query, num_blocks]: [(1, " in text


def test_a_file_lists_buckets_and_their_combinations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "buckets.txt"
    path.write_text(
        "# measured\n([1, 2], [128, 256], 0)\n(1, 2048, range(0, 17, 4))  # long\n"
        "([1, 8], 1, [128, 256])\n(1, 128)\n(1, 9999, 0)\nimport os\n(1, print(1), 0)\n"
    )
    with caplog.at_level(logging.WARNING, "vllm"):
        prompt, decode = read_buckets(path, LIMITS)
    assert Bucket(2, 256, 0) in prompt and Bucket(1, 2048, 16) in prompt and len(prompt) == 9
    assert decode == [(1, 1, 32), (8, 1, 128), (8, 1, 256)]
    text = "\n".join(record.message for record in caplog.records)
    assert all(f"line {number}" in text for number in (5, 7, 8)) and "(1, 9999, 0)" in text


@pytest.mark.parametrize("text", ["", "(1, 128, 0)", "([1], 1, 4)", "(0, 1, 4)"])
def test_a_file_without_buckets_of_a_phase_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "buckets.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="Generated 0"):
        read_buckets(path, LIMITS)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_buckets(tmp_path / "absent.txt", LIMITS)


def test_written_buckets_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "buckets.txt"
    buckets = [Bucket(1, 128, 0), Bucket(1, 128, 7), Bucket(4, 1, 16)]
    write_buckets(path, buckets, "by a test\nof two lines")
    prompt, decode = read_buckets(path, LIMITS)
    assert [*prompt, *decode] == buckets
