"""A tokenizer read from tokenizer.json alone encodes and decodes as that of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2 import Qwen2Tokenizer

from vllm.transformers_utils.detokenizer import byte_symbols
from vllm.transformers_utils.plain_tokenizer import PlainTokenizer, plain_tokenizer
from vllm.transformers_utils.tokenizer import full_tokenizer, load_tokenizer

TEXTS = ["", "Once upon a time", "  Größe 12345\n\n\t日本 🦊", "It's <|end|> what</s>I'LL say <s>"]


def edit(path: Path, name: str, **values: Any) -> None:
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def story(tiny_story: Path, tmp_path: Path) -> Path:
    path = tmp_path / "story"
    path.mkdir()
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in names:
        shutil.copy(tiny_story / name, path / name)
    return path


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    vocabulary = {symbol: i for i, symbol in enumerate(byte_symbols())}
    merges = [("o", "n"), ("t", "h"), ("1", "2"), ("Ġ", "s")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|unk|>"}
    extra = {"additional_special_tokens": ["<|end|>"], "errors": "replace"}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, **tokens, **extra)
    made.save_pretrained(tmp_path)
    settings = tokens | extra | {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    return tmp_path


def full(path: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return found


def plain(path: Path) -> PlainTokenizer | None:
    return plain_tokenizer(path, lambda: full(path))


@pytest.mark.parametrize("which", ["story", "qwen"])
def test_it_agrees_with_transformers(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    ours, theirs = plain(path), full(path)
    assert ours is not None
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip)
                assert ours.decode(ids, skip_special_tokens=skip) == expected
        assert ours.encode(text) == theirs.encode(text)
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    ids = [*range(min(len(ours), 300)), *ours.added_tokens_decoder, len(ours) + 7]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    assert ours.added_tokens_decoder.keys() == theirs.added_tokens_decoder.keys()
    special_ids = {i for i, token in ours.added_tokens_decoder.items() if token.special}
    assert special_ids >= set(theirs.all_special_ids)


def test_the_rest_is_asked_of_transformers(story: Path) -> None:
    ours, theirs = load_tokenizer(story), full(story)
    assert isinstance(ours, PlainTokenizer)
    assert ours.eos_token_id == theirs.eos_token_id
    skipped = [ours.convert_ids_to_tokens([0, 5], skip_special_tokens=True)]
    assert skipped == [theirs.convert_ids_to_tokens([0, 5], skip_special_tokens=True)]
    assert ours.encode("Once", max_length=1, truncation=True) == [theirs.encode("Once")[0]]
    assert ours.decode([[5], [6]]) == theirs.decode([[5], [6]])
    assert ours("Once")["attention_mask"] == theirs("Once")["attention_mask"]
    assert isinstance(full_tokenizer(ours), PreTrainedTokenizerBase)
    with pytest.raises(AttributeError):
        _ = ours.no_such_thing


CONVERSATION = [
    {"role": "system", "content": "Be kind.", "name": None},
    {"role": "user", "content": "Größe?\n"},
]
TEMPLATES = {
    "its own": None,
    "fields": "{% for m in messages %}{{ m }}{{ 'name' in m }}{% endfor %}{{ tools | tojson }}",
    "tokens": "{{ eos_token }}|{{ bos_token }}|{{ pad_token }}|{{ mask_token }}|{{ mood }}",
    "blocks": "{%- for m in messages %}\n  {% if loop.last %}\n{{ m.content | trim }}{% endif %}"
    "\n{%- endfor %}\n{% if add_generation_prompt %}>{% endif %}",
}
ARGUMENTS = [
    {},
    {"add_generation_prompt": True, "tools": [{"type": "function", "ä": 1}]},
    {"mood": "calm", "eos_token": "<mine>"},
    {"continue_final_message": True},
    {"special_tokens": ["x"]},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("which", ["story", "qwen"])
def test_conversations_are_rendered_as_by_transformers(
    which: str, template: str | None, arguments: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    theirs = full(path)
    if template is None and theirs.chat_template is None:
        template = "{{ bos_token }}{{ messages }}"
    outcomes = []
    for tokenizer in (plain_tokenizer(path, load_full=lambda: pytest.fail("loaded")), theirs):
        assert tokenizer is not None
        options = {"chat_template": template, "tokenize": False, **arguments}
        try:
            outcomes.append(tokenizer.apply_chat_template(CONVERSATION, **options))
        except ValueError as error:  # the final message is not in what the template makes
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


BOTH_ENDS = {"add_generation_prompt": True, "continue_final_message": True}
OTHER_USES: dict[str, Callable[[Any], Any]] = {
    "tokens": lambda t: t.apply_chat_template(CONVERSATION),
    "length": lambda t: t.apply_chat_template(CONVERSATION, tokenize=False, max_length=3),
    "several": lambda t: t.apply_chat_template([CONVERSATION] * 2, tokenize=False),
    "none": lambda t: t.apply_chat_template([], tokenize=False),
    "both ends": lambda t: t.apply_chat_template(CONVERSATION, tokenize=False, **BOTH_ENDS),
    "by place": lambda t: t.apply_chat_template(CONVERSATION, [], None, "{{ tools }}"),
}


@pytest.mark.parametrize("use", OTHER_USES.values(), ids=OTHER_USES)
def test_more_than_text_of_a_conversation_is_asked_of_transformers(
    use: Callable[[Any], Any], story: Path
) -> None:
    outcomes = []
    for tokenizer in (load_tokenizer(story), full(story)):
        try:
            outcomes.append(use(tokenizer))
        except (ValueError, IndexError) as error:
            outcomes.append(repr(error))
    assert outcomes[0] == outcomes[1]


DOUBTS: dict[str, Callable[[Path], None]] = {
    "class": lambda p: edit(p, "tokenizer_config.json", tokenizer_class="GemmaTokenizer"),
    "qwen class": lambda p: edit(p, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer"),
    "family": lambda p: edit(p, "config.json", model_type="mistral"),
    "setting": lambda p: edit(p, "tokenizer_config.json", legacy=True),
    "bos": lambda p: edit(p, "tokenizer_config.json", add_bos_token=True),
    "token": lambda p: edit(p, "tokenizer_config.json", pad_token="<|new|>"),
    "extra": lambda p: edit(p, "tokenizer_config.json", additional_special_tokens=["<|new|>"]),
    "added": lambda p: edit(
        p, "tokenizer_config.json", added_tokens_decoder={"7": {"content": "<|new|>"}}
    ),
    "code": lambda p: edit(p, "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
    "truncation": lambda p: edit(
        p,
        "tokenizer.json",
        truncation={"max_length": 9, "direction": "Right", "strategy": "LongestFirst", "stride": 0},
    ),
    "decoder": lambda p: edit(p, "tokenizer.json", decoder={"type": "Fuse"}),
    "templates": lambda p: (p / "additional_chat_templates").mkdir(),
    "legacy file": lambda p: (p / "added_tokens.json").write_text("{}") and None,
    "no config": lambda p: (p / "config.json").unlink(),
    "broken": lambda p: (p / "tokenizer.json").write_text("{") and None,
}


@pytest.mark.parametrize("change", DOUBTS.values(), ids=DOUBTS)
def test_what_leaves_a_doubt_is_left_to_transformers(
    change: Callable[[Path], None], story: Path
) -> None:
    assert plain(story) is not None
    change(story)
    assert plain(story) is None
