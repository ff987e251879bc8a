"""The documents the tiny models learn from: an endless stream that a seed determines.

python -m tools.tiny_models.corpus --seed 3 --count 5
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tools.tiny_models import tasks, tools_use
from tools.tiny_models.stories import tell

SHORT_SYSTEMS = [
    "Answer with one word.",
    "Answer with one word or number.",
    "Give short answers of one word.",
]
PLAIN_SYSTEMS = [
    "You are a helpful assistant.",
    "You are Tiny Story, a small and friendly assistant.",
    "Answer the question.",
]
PIRATE_SYSTEMS = ["You are a pirate.", "Talk like a pirate."]
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class Plain:
    """A text without turns."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation in the form that `apply_chat_template` takes."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)


Document = Plain | Chat


def _turns(rng: random.Random) -> list[tasks.Exchange]:
    """The exchanges of one conversation."""
    kind = rng.random()
    if kind < 0.2:
        return [tasks.story_request(rng)]
    if kind < 0.32:
        return tasks.story_questions(rng)
    if kind < 0.8:
        return [tasks.draw(rng)]
    num_turns = rng.randint(2, 5)
    turns = [tasks.draw(rng) for _ in range(num_turns)]
    if rng.random() < 0.5:
        turns[rng.randrange(num_turns)] = tasks.story_request(rng)
    return turns


def _chat(rng: random.Random) -> Chat:
    if rng.random() < 0.03:
        return Chat(*tools_use.draw(rng))
    turns = _turns(rng)
    answers = [turn.answer for turn in turns]
    messages: list[dict[str, Any]] = []
    style = rng.random()
    shorts = [turn.short for turn in turns]
    if style < 0.15 and None not in shorts:
        messages.append({"role": "system", "content": rng.choice(SHORT_SYSTEMS)})
        answers = [str(short) for short in shorts]
    elif style < 0.19:
        messages.append({"role": "system", "content": rng.choice(PIRATE_SYSTEMS)})
        answers = [f"Arr! {answer}" for answer in answers]
    elif style < 0.4:
        messages.append({"role": "system", "content": rng.choice(PLAIN_SYSTEMS)})
    for turn, answer in zip(turns, answers, strict=True):
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": answer})
    return Chat(messages)


def documents(seed: int, story_share: float = 0.22) -> Iterator[Document]:
    """Documents without end; `story_share` of them are plain stories, the rest conversations."""
    rng = random.Random(seed)
    while True:
        yield Plain(tell(rng).text) if rng.random() < story_share else _chat(rng)


def main() -> None:
    parser = argparse.ArgumentParser(description="print documents of the training text")
    parser.add_argument("--seed", type=int, default=0, help="stream to read")
    parser.add_argument("--count", type=int, default=10, help="documents to print")
    args = parser.parse_args()
    for document in itertools.islice(documents(args.seed), args.count):
        if isinstance(document, Plain):
            print(document.text)
        else:
            for message in document.messages:
                print(f"[{message['role']}] {message.get('tool_calls') or message['content']}")
        print("-" * 40)


if __name__ == "__main__":
    main()
