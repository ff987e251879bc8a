from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vllm.errors import LoadError
from vllm.transformers_utils.config import Checkpoint
from vllm.transformers_utils.end_tokens import end_token_ids
from vllm.transformers_utils.plain_config import PlainConfig
from vllm.transformers_utils.tokenizer import load_tokenizer

VOCABULARY = {"<unk>": 0, "a": 1, "b": 2, "</s>": 3}
ADDED = "<|im_end|>"  # 4
AS_DICT = {"__type": "AddedToken", "content": ADDED, "lstrip": False, "special": True}


def no_tokenizer() -> PreTrainedTokenizerBase:
    raise AssertionError("the files say it")


def broken_tokenizer() -> PreTrainedTokenizerBase:
    raise LoadError("it is broken")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.add_special_tokens([ADDED])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(path: Path, **files: dict[str, Any]) -> None:
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))


def ends(path: Path, load: Any = no_tokenizer, **config: Any) -> frozenset[int]:
    checkpoint = Checkpoint(path, PlainConfig({}, {}), "", config)
    return end_token_ids(checkpoint, {}, path, load)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": ADDED}},
        {"tokenizer_config": {"eos_token": AS_DICT}},
        {"tokenizer_config": {}, "special_tokens_map": {"eos_token": ADDED}},
        {"tokenizer_config": {}, "special_tokens_map": {"eos_token": AS_DICT}},
        {"special_tokens_map": {"eos_token": {"content": ADDED}}},
        {"tokenizer_config": {"added_tokens_decoder": {"4": AS_DICT}, "eos_token": ADDED}},
    ],
)
def test_the_token_that_transformers_reads_ends_besides_the_configs(
    path: Path, files: dict[str, Any]
) -> None:
    write(path, config={"model_type": "llama"}, **files)
    settings = files.setdefault("tokenizer_config", {})
    write(path, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    assert AutoTokenizer.from_pretrained(path).eos_token_id == 4

    assert ends(path) == {4}
    assert ends(path, eos_token_id=7) == {4, 7}
    assert ends(path, eos_token_id=[2, 4]) == {2, 4}


def test_both_files_of_a_tokenizer_are_believed(path: Path) -> None:
    write(path, tokenizer_config={"eos_token": "</s>"}, special_tokens_map={"eos_token": ADDED})

    assert ends(path) == {3, 4}


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": VOCABULARY, "merges": []},
        {"type": "Unigram", "vocab": [[token, -1.5] for token in VOCABULARY], "unk_id": 0},
    ],
    ids=["bpe", "unigram"],
)
def test_an_end_token_may_be_in_the_vocabulary_only(path: Path, model: dict[str, Any]) -> None:
    write(path, tokenizer={"model": model}, tokenizer_config={"eos_token": "</s>"})

    assert ends(path) == {3}


def test_a_tokenizer_without_an_end_token_adds_none(path: Path) -> None:
    assert ends(path, eos_token_id=7) == {7}

    write(path, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "eos_token": None})
    assert ends(path, eos_token_id=7) == {7}


def test_a_class_with_an_end_token_of_its_own_is_asked(path: Path) -> None:
    write(
        path, config={"model_type": "qwen2"}, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"}
    )
    loaded = load_tokenizer(path)
    assert loaded.eos_token == "<|endoftext|>"

    assert ends(path, lambda: loaded) == {loaded.eos_token_id}
    assert ends(path, broken_tokenizer, eos_token_id=7) == {7}


def test_a_broken_tokenizer_is_left_to_those_who_need_it(path: Path) -> None:
    write(path, tokenizer_config={"eos_token": ADDED})
    (path / "tokenizer.json").write_text("{")

    assert ends(path, broken_tokenizer, eos_token_id=7) == {7}
