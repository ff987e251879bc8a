from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.fake_server import WordCodec
from vllm.benchmarks.datasets import DatasetOptions, Sample, load_samples
from vllm.benchmarks.datasets.codec import LocalCodec, ordinary_tokens, text_of_length
from vllm.benchmarks.datasets.trace import read_rows
from vllm.errors import ConfigError

STORY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-story"
VOCABULARY = range(1, 100)


def samples(seed: int = 0, **values: Any) -> list[Sample]:
    options = DatasetOptions(**{"sharegpt_output_len": None, **values})
    return load_samples(options, WordCodec(), VOCABULARY, seed)


@pytest.fixture(scope="module")
def story_codec() -> LocalCodec:
    return LocalCodec.load(str(STORY), "auto", False)


@pytest.mark.parametrize("name", ["random", "prefix_repetition"])
def test_the_same_seed_draws_the_same_prompts(name: str) -> None:
    values = {"dataset_name": name, "num_prompts": 12, "random_range_ratio": 0.5}
    assert samples(7, **values) == samples(7, **values)
    assert samples(7, **values) != samples(8, **values)


def test_random_lengths_are_exact_without_a_ratio_and_within_it_with_one() -> None:
    exact = samples(num_prompts=20, random_input_len=30, random_output_len=7)
    assert {(len(s.prompt), s.num_prompt_tokens, s.max_tokens) for s in exact} == {(30, 30, 7)}
    varied = samples(num_prompts=400, random_input_len=100, random_range_ratio=0.25)
    lengths = [len(s.prompt) for s in varied]
    assert min(lengths) == 75 and max(lengths) == 125


def test_random_prompts_share_the_prefix_and_nothing_else() -> None:
    found = samples(num_prompts=8, random_input_len=30, random_prefix_len=10)
    assert len({tuple(s.prompt[:10]) for s in found}) == 1
    assert len({tuple(s.prompt[10:14]) for s in found}) == 8
    assert {s.num_prompt_tokens for s in found} == {40}


def test_prefix_repetition_has_as_many_prefixes_as_asked_for() -> None:
    found = samples(
        dataset_name="prefix_repetition",
        num_prompts=10,
        prefix_repetition_prefix_len=20,
        prefix_repetition_suffix_len=5,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_output_len=4,
    )
    prefixes = [tuple(s.prompt[:20]) for s in found]
    assert sorted(prefixes.count(prefix) for prefix in set(prefixes)) == [3, 3, 4]
    assert {(len(s.prompt), s.max_tokens) for s in found} == {(25, 4)}
    with pytest.raises(ConfigError, match="--prefix-repetition-num-prefixes 10: more than"):
        samples(dataset_name="prefix_repetition", num_prompts=9)


@pytest.mark.parametrize("length", [2, 17, 200])
def test_text_has_exactly_the_drawn_length_when_tokenized_again(
    story_codec: LocalCodec, length: int
) -> None:
    options = DatasetOptions(num_prompts=20, random_input_len=length, sharegpt_output_len=None)
    for sample in load_samples(options, story_codec, ordinary_tokens(story_codec), 1):
        text, found = text_of_length(story_codec, sample.prompt)
        assert found == length == len(story_codec.encode(text))


def test_text_of_merging_tokens_is_lengthened_until_it_fits() -> None:
    class Merging(WordCodec):
        """`ab` is one token, and so the text of a and b is shorter than they are."""

        def encode(self, text: str) -> list[int]:
            return list(text.replace("ab", "x").encode())

        def decode(self, token_ids: Any) -> str:
            return bytes(token_ids).decode()

    text, length = text_of_length(Merging(), list(b"abababab"))
    assert length == 8 == len(Merging().encode(text))


def test_a_special_token_counts(story_codec: LocalCodec) -> None:
    text, length = text_of_length(WordCodec(), [5, 6, 7])
    assert (text, length) == ("w5 w6", 3)


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def turns(*texts: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text} for text in texts]}


def words(count: int) -> str:
    return " ".join(["w3"] * count)


def test_sharegpt_takes_first_turns_and_the_length_of_the_answer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.json",
        [
            turns(words(9), words(6), "and more"),
            turns("alone"),
            turns(words(2), words(6)),  # too short
            turns(words(1500), words(6)),  # too long
        ],
    )
    values = {"dataset_name": "sharegpt", "dataset_path": path, "num_prompts": 3}
    assert samples(**values) == [Sample(words(9), 10, 6)] * 3
    assert samples(**values, oversample=False) == [Sample(words(9), 10, 6)]
    fixed = DatasetOptions(**{**values, "num_prompts": 1}, sharegpt_output_len=2)
    assert load_samples(fixed, WordCodec(), VOCABULARY, 0)[0].max_tokens == 2


def test_custom_rows_may_say_their_length(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.jsonl", '{"prompt": "w1 w2"}\n\n{"prompt": "w3", "output_tokens": 9}'
    )
    values = {"dataset_name": "custom", "dataset_path": path, "custom_output_len": 5}
    found = samples(**values, num_prompts=2, disable_shuffle=True)
    assert found == [Sample("w1 w2", 3, 5), Sample("w3", 2, 9)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("custom", '{"prompt": "a"}\nno', "line 2: is not JSON"),
        ("custom", '{"text": "a"}', "line 1: needs an object with a text as 'prompt'"),
        ("custom", '{"prompt": "a", "output_tokens": 0}', "output_tokens 0"),
        ("custom", "", "no rows"),
        ("sharegpt", "{}", "must hold a JSON list"),
        ("sharegpt", "[1]", "entry 0 has no list 'conversations'"),
        ("sharegpt", '[{"conversations": [{}, {}]}]', "entry 0 has no 'value'"),
        ("sharegpt", "[]", "no conversation of two turns"),
        ("sharegpt", "[", "is not JSON"),
        ("trace", "", "no column TIMESTAMP"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = write(tmp_path / "data", text)
    with pytest.raises(ConfigError, match=message) as failure:
        samples(dataset_name=name, dataset_path=path)
    assert path in str(failure.value)


def test_a_file_is_needed_where_one_is_read_and_only_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --dataset-path"):
        samples(dataset_name="trace")
    with pytest.raises(ConfigError, match="reads no file"):
        samples(dataset_path="x")
    with pytest.raises(ConfigError, match="/no/such: No such file"):
        samples(dataset_name="custom", dataset_path="/no/such")


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TRACE = (
    HEAD + "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51.2225670,8,0\n"
)


def test_a_trace_keeps_its_lengths_and_times(tmp_path: Path) -> None:
    values = {"dataset_name": "trace", "dataset_path": write(tmp_path / "t.csv", TRACE)}
    found = samples(**values)
    assert [(len(s.prompt), s.max_tokens) for s in found] == [(374, 44), (396, 109), (8, 1)]
    assert [s.at_s for s in found] == pytest.approx([0, 4.314579, 4.541977])
    fast = samples(**values, trace_speedup=2.0, trace_max_input_len=100, trace_max_output_len=50)
    assert [(len(s.prompt), s.max_tokens) for s in fast] == [(100, 44), (100, 50), (8, 1)]
    assert fast[1].at_s == pytest.approx(4.314579 / 2)
    assert len(samples(**values, num_prompts=2)) == 2


@pytest.mark.parametrize(
    ("times", "gap_s"),
    [
        (("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01.5+00:00"), 1.49007),
        (("2024-05-10T00:00:00Z", "2024-05-10T00:01:00Z"), 60),
        (("12.5", "14"), 1.5),
        (("9", "7"), 2),  # out of order
    ],
)
def test_times_of_a_trace_have_several_forms(times: tuple[str, str], gap_s: float) -> None:
    rows = read_rows([HEAD, *(f"{time},1,1\n" for time in times)], "x", 10)
    assert rows[1].time_s - rows[0].time_s == pytest.approx(gap_s)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("yesterday,1,1", "TIMESTAMP 'yesterday'"),
        ("1,many,1", "ContextTokens 'many': must be a whole number"),
        ("1,0,1", "ContextTokens 0: must be at least 1"),
        ("1,1,-3", "GeneratedTokens '-3'"),
        ("1,1", "GeneratedTokens ''"),
        (",1,1", "TIMESTAMP ''"),
    ],
)
def test_a_bad_row_of_a_trace_is_named_with_its_line(row: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"t.csv, line 3: {message}"):
        read_rows([HEAD, "0,1,1\n", row + "\n"], "t.csv", 10)


def test_a_trace_without_rows_or_columns_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        read_rows([HEAD], "x", 10)
    with pytest.raises(ConfigError, match="no column GeneratedTokens"):
        read_rows(["TIMESTAMP,ContextTokens\n"], "x", 10)
