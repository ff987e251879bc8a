"""Held-out perplexity and a few abilities of a saved model.

python -m tools.tiny_models.evaluate examples/models/tiny-story [--count 200]
"""

import argparse
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tools.tiny_models import tasks
from tools.tiny_models.corpus import HELD_OUT_SEED
from tools.tiny_models.data import answer_mask, held_out, role_id
from tools.tiny_models.tokenizer import EOS_ID, TURN_END_ID

ABILITIES = {
    "sums": tasks.sum_,
    "word problems": tasks.word_problem,
    "comparisons": tasks.comparison,
    "counting": tasks.counting,
    "questions about a text": tasks.context_question,
    "JSON records": tasks.json_record,
    "opposites": tasks.opposite,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What `evaluate` found."""

    story_perplexity: float  # per token of a story, end of text included
    answer_perplexity: float  # per token that the assistant writes
    num_documents: int  # of each kind
    accuracy: dict[str, float]  # share of exact greedy answers by ability

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        exact = ", ".join(f"{name} {share:.0%}" for name, share in self.accuracy.items())
        return (
            f"story perplexity {self.story_perplexity:.3f}, "
            f"answer perplexity {self.answer_perplexity:.3f}; exact answers: {exact}"
        )


def load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in float32, whatever its weights are stored in, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    plain: bool,
    seed: int = HELD_OUT_SEED,
) -> float:
    """Over `count` held-out stories (`plain`) or the answers in as many conversations."""
    assistant_id = role_id(tokenizer)
    total, num_tokens = 0.0, 0
    for ids_np in held_out(tokenizer, seed, count, plain):
        ids = torch.from_numpy(ids_np)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        mask = torch.from_numpy(answer_mask(ids_np, assistant_id))[1:]
        total += F.cross_entropy(logits[mask], ids[0, 1:][mask], reduction="sum").item()
        num_tokens += int(mask.sum())
    return math.exp(total / num_tokens)


def prompt(tokenizer: PreTrainedTokenizerFast, question: str, system: str | None = None) -> str:
    """The rendered conversation that asks one question."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    max_new_tokens: int = 400,
) -> list[str]:
    """Greedy continuations of rendered prompts, computed as one batch; without special tokens."""
    batch = tokenizer(
        prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        eos_token_id=[TURN_END_ID, EOS_ID],
    )
    new_ids = output[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new_ids, skip_special_tokens=True)


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int
) -> dict[str, float]:
    """Share of `count` held-out questions of each ability that are answered exactly."""
    shares = {}
    for name, maker in ABILITIES.items():
        rng = random.Random(HELD_OUT_SEED)
        exchanges = [maker(rng) for _ in range(count)]
        prompts = [prompt(tokenizer, exchange.question) for exchange in exchanges]
        answers = answer(model, tokenizer, prompts, max_new_tokens=80)
        right = [given == e.answer for given, e in zip(answers, exchanges, strict=True)]
        shares[name] = sum(right) / count
    return shares


def evaluate(path: Path, count: int = 200) -> Result:
    """Measure the model at `path` on `count` stories, conversations, and questions per ability."""
    model, tokenizer = load(path)
    return Result(
        story_perplexity=round(perplexity(model, tokenizer, count, plain=True), 4),
        answer_perplexity=round(perplexity(model, tokenizer, count, plain=False), 4),
        num_documents=count,
        accuracy=accuracy(model, tokenizer, count),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="evaluate a tiny model on held-out text")
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("--count", type=int, default=200, help="documents and questions of a kind")
    args = parser.parse_args()
    print(evaluate(args.model, args.count).describe())


if __name__ == "__main__":
    main()
