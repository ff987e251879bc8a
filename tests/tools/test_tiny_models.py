"""The text generator, the shipped models and the random checkpoints."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tools.tiny_models import corpus, evaluate, random_checkpoint, tools_use
from tools.tiny_models.data import answer_mask, render, role_id
from tools.tiny_models.recipes import RECIPES
from tools.tiny_models.tokenizer import BOS_ID, EOS_ID, TURN_END_ID, train

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
SHIPPED = sorted(RECIPES)
TEXTS = [
    "",
    " leading and trailing ",
    "Žluťoučký kůň, naïve café — “quotes”",
    "你好，世界 🦊👩‍👩‍👧 \u200b\ufeff",
    "tabs\tand\r\nlines\n\n\n  indented",
    "12345 + 67 = ...",
    "".join(map(chr, range(256))),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODELS / "tiny-story")


@pytest.fixture(scope="module")
def story_model() -> PreTrainedModel:
    return evaluate.load(MODELS / "tiny-story")[0]


def test_a_seed_determines_the_documents() -> None:
    first = list(itertools.islice(corpus.documents(7), 200))
    again = list(itertools.islice(corpus.documents(7), 200))
    other = list(itertools.islice(corpus.documents(8), 200))
    assert first == again
    assert first != other


def test_stories_hardly_ever_repeat() -> None:
    plain = (d for d in corpus.documents(7) if isinstance(d, corpus.Plain))
    texts = [d.text for d in itertools.islice(plain, 500)]
    assert len(set(texts)) == len(texts)


def test_shipped_tokenizer_is_the_one_the_corpus_gives(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokenizer_round_trips_any_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == BOS_ID
    assert tokenizer.decode(ids[1:]) == text


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_chat_template_renders_roles_and_the_generation_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}],
        },
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye!"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|begin_of_text|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye!<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_template_lists_tools_and_renders_calls(tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    messages = [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    text = tokenizer.apply_chat_template(
        messages, tools=[tools_use.TOOLS["add"]], add_generation_prompt=True, tokenize=False
    )
    assert '{"name": "add", "description": "The sum of two numbers"' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in text
    assert text.endswith("<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n")


def test_answer_mask_covers_what_the_assistant_wrote(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = corpus.Chat(
        [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello there."}]
    )
    ids = tokenizer(render(tokenizer, chat), add_special_tokens=False, return_tensors="np")
    row = ids["input_ids"][0]
    written = row[answer_mask(row, role_id(tokenizer))]
    assert tokenizer.decode(written) == "Hello there.<|im_end|>"


def test_shipped_models_stay_within_eight_megabytes() -> None:
    total_bytes = sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file())
    assert total_bytes <= 8_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_as_good_as_its_card_says(name: str) -> None:
    model, tokenizer = evaluate.load(MODELS / name)
    recorded = json.loads((MODELS / name / "evaluation.json").read_text())
    assert (
        f"| stories | {recorded['story_perplexity']:.3f} |"
        in (MODELS / name / "README.md").read_text()
    )
    few_stories = evaluate.perplexity(model, tokenizer, count=12, plain=True)
    assert few_stories == pytest.approx(recorded["story_perplexity"], rel=0.08)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_ends_turns_and_shares_the_tokenizer(name: str) -> None:
    generation = json.loads((MODELS / name / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [TURN_END_ID, EOS_ID]
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (MODELS / name / file).read_text() == (MODELS / "tiny-story" / file).read_text()


def test_tiny_story_adds_small_numbers(
    story_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sums = [(2, 3), (5, 4), (7, 6), (10, 5), (12, 7), (9, 9)]
    prompts = [evaluate.prompt(tokenizer, f"What is {a} + {b}?") for a, b in sums]
    answers = evaluate.answer(story_model, tokenizer, prompts, max_new_tokens=20)
    right = [text == f"{a} + {b} = {a + b}." for text, (a, b) in zip(answers, sums, strict=True)]
    assert sum(right) >= 4, answers


def test_tiny_story_tells_a_story_about_whom_it_is_asked(
    story_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    question = "Tell me a story about a fox named Ada."
    [story] = evaluate.answer(story_model, tokenizer, [evaluate.prompt(tokenizer, question)])
    assert story.count("Ada") >= 3
    assert "fox" in story


@pytest.mark.parametrize("arch", random_checkpoint.ARCHITECTURES)
def test_random_checkpoint_loads_and_nothing_in_it_is_trivial(arch: str, tmp_path: Path) -> None:
    path = random_checkpoint.make(arch, tmp_path / arch)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    built = random_checkpoint.build(arch)
    ids = torch.tensor([[0, 5, 77, 300, 900, 12, 45]])
    with torch.no_grad():
        logits, expected = model(ids).logits, built(ids).logits
    torch.testing.assert_close(logits, expected)
    assert logits.std() > 0.5
    assert all(parameter.std() > 0.01 for parameter in model.parameters())
    ids = AutoTokenizer.from_pretrained(path)("What is 12 + 7?")["input_ids"]
    assert ids[0] == BOS_ID
    assert max(ids) < random_checkpoint.VOCAB_SIZE


def test_random_checkpoints_differ_by_seed_and_take_overrides() -> None:
    first, other = random_checkpoint.build("llama", 0), random_checkpoint.build("llama", 1)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert random_checkpoint.build("llama", num_hidden_layers=2).config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="unknown architecture 'lama'"):
        random_checkpoint.build("lama")
