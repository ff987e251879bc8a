"""A grammar of short English stories that keeps track of its entities.

A story names its hero, friend, thing and place once and refers to them consistently to the end, so
a model that has learned the grammar shows it by staying coherent, not by reciting.
"""

import random
from collections import Counter
from dataclasses import dataclass

from tools.tiny_models import words
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
    """A story about `hero` (drawn if not given) that follows `plot` (one of `PLOTS`).

    Every fourth story goes on with a second plot, in which the hero meets somebody else.
    """
    hero = hero or draw_being(rng)
    friend = draw_being(rng, {hero.name}, {hero.kind})
    plot = plot or rng.choice(list(PLOTS))
    teller = Teller(rng, hero, friend)
    teller.open()
    topic = PLOTS[plot](teller).format_map(teller.fields)
    if rng.random() < 0.25:
        names, kinds = {hero.name, friend.name}, {hero.kind, friend.kind}
        teller.begin_episode(draw_being(rng, names, kinds))
        teller.define(time=rng.choice(words.LATER))
        plot = rng.choice([p for p in PLOTS if p != plot])
        PLOTS[plot](teller)
    moral = teller.close(plot)
    times_asked = Counter(question for question, _ in teller.facts)
    facts = tuple(fact for fact in teller.facts if times_asked[fact[0]] == 1)
    return Story(_paragraphs(rng, teller.sentences), hero, friend, topic, moral, facts)


def _paragraphs(rng: random.Random, sentences: list[str]) -> str:
    """Join into one, two or three paragraphs of about equal length."""
    num_paragraphs = rng.choice((1, 1, 2, 3))
    size = -(-len(sentences) // num_paragraphs)
    parts = [sentences[i : i + size] for i in range(0, len(sentences), size)]
    return "\n\n".join(" ".join(part) for part in parts)
