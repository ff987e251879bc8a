"""A grammar of short English stories that keeps track of its entities.

A story names its hero, friend, thing and place once and refers to them consistently to the end, so
a model that has learned the grammar shows it by staying coherent, not by reciting.
"""

import random
from dataclasses import dataclass

from tools.tiny_models.plots import PLOTS
from tools.tiny_models.teller import Being, Teller, draw_being


@dataclass(frozen=True, slots=True)
class Story:
    """A finished story and what may be asked about it."""

    text: str
    hero: Being
    friend: Being
    topic: str  # completes "a story about ..."
    moral: str
    facts: tuple[tuple[str, str], ...]  # question, full-sentence answer


def tell(rng: random.Random, hero: Being | None = None, plot: str | None = None) -> Story:
    """A story about `hero` (drawn if not given) that follows `plot` (one of `PLOTS`)."""
    hero = hero or draw_being(rng)
    friend = draw_being(rng, avoid=hero)
    plot = plot or rng.choice(list(PLOTS))
    teller = Teller(rng, hero, friend)
    teller.open()
    topic = PLOTS[plot](teller).format_map(teller.fields)
    moral = teller.close(plot)
    text = _paragraphs(rng, [s for s in teller.sentences if s])
    return Story(text, hero, friend, topic, moral, tuple(teller.facts))


def _paragraphs(rng: random.Random, sentences: list[str]) -> str:
    """Join into one, two or three paragraphs of about equal length."""
    num_paragraphs = rng.choice((1, 1, 2, 3))
    size = -(-len(sentences) // num_paragraphs)
    parts = [sentences[i : i + size] for i in range(0, len(sentences), size)]
    return "\n\n".join(" ".join(part) for part in parts)
