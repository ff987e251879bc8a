"""Beings, and the template filler that keeps a story about the same ones."""

import random
from dataclasses import dataclass

from tools.tiny_models import words


@dataclass(frozen=True, slots=True)
class Being:
    """Somebody in a story; `kind` is an animal, or girl or boy."""

    name: str
    kind: str
    is_female: bool

    @property
    def pronouns(self) -> tuple[str, str, str]:
        """Subject, object and possessive."""
        return ("she", "her", "her") if self.is_female else ("he", "him", "his")


def with_article(noun: str) -> str:
    """`noun` behind "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def draw_being(rng: random.Random, avoid: Being | None = None) -> Being:
    """A random being; name and kind differ from those of `avoid`."""
    while True:
        is_female = rng.random() < 0.5
        name = rng.choice(words.GIRLS if is_female else words.BOYS)
        kind = words.CHILDREN[is_female] if rng.random() < 0.2 else rng.choice(words.ANIMALS)
        if avoid is None or (name != avoid.name and kind != avoid.kind):
            return Being(name, kind, is_female)


class Teller:
    """Fills templates with the entities of one story.

    Template fields: `{hero}` `{He}` `{he}` `{him}` `{his}`, `{friend}` `{Fhe}` `{fhe}` `{fhim}`
    `{fhis}`, `{kind}` `{fkind}` and what a plot adds with `define`.
    """

    def __init__(self, rng: random.Random, hero: Being, friend: Being) -> None:
        self.rng = rng
        self.hero = hero
        self.friend = friend
        self.sentences: list[str] = []
        self.facts: list[tuple[str, str]] = []
        he, him, his = hero.pronouns
        fhe, fhim, fhis = friend.pronouns
        place = rng.choice(words.PLACES)
        self.fields = {
            "hero": hero.name,
            "kind": hero.kind,
            "a_kind": with_article(hero.kind),
            "he": he,
            "He": he.capitalize(),
            "him": him,
            "his": his,
            "His": his.capitalize(),
            "friend": friend.name,
            "fkind": friend.kind,
            "a_fkind": with_article(friend.kind),
            "fhe": fhe,
            "Fhe": fhe.capitalize(),
            "fhim": fhim,
            "fhis": fhis,
            "Fhis": fhis.capitalize(),
            "home": rng.choice(words.HOMES),
            "time": rng.choice(words.TIMES),
            "place": place,
            "in_place": f"{words.PREPOSITIONS.get(place, 'in')} the {place}",
            "trait": rng.choice(words.TRAITS),
            "ftrait": rng.choice(words.TRAITS),
            "glad": rng.choice(words.GLAD),
            "sad": rng.choice(words.SAD),
        }
        self.fields["a_trait"] = with_article(self.fields["trait"])
        self.fields["a_ftrait"] = with_article(self.fields["ftrait"])

    def define(self, **fields: str) -> None:
        self.fields.update(fields)

    def say(self, *templates: str, chance: float = 1.0) -> None:
        """Add one of `templates`, with probability `chance`."""
        if self.rng.random() < chance:
            self.sentences.append(self.rng.choice(templates).format_map(self.fields))

    def fact(self, question: str, answer: str) -> None:
        """Record something that the story has just said."""
        self.facts.append((question.format_map(self.fields), answer.format_map(self.fields)))

    def open(self) -> None:
        """Introduce the hero."""
        self.say(
            "Once upon a time, there was {a_trait} {kind} named {hero}. {He} lived {home}.",
            "There once was {a_trait} {kind} called {hero}, who lived {home}.",
            "{hero} was {a_trait} {kind}. {He} lived {home}.",
            "Not long ago, {a_trait} {kind} named {hero} lived {home}.",
        )
        self.fact("Where did {hero} live?", "{hero} lived {home}.")
        self.fact("Who is the story about?", "The story is about {a_kind} named {hero}.")
        self.say(*words.WEATHER, chance=0.3)

    def close(self, plot: str) -> str:
        """End the story on a feeling and perhaps its moral, which is returned."""
        self.say(
            "{hero} felt very {glad}.",
            "{hero} was {glad} and smiled all day.",
            "That night {hero} fell asleep with a smile. {He} was very {glad}.",
            "From that day on, {hero} and {friend} were the best of friends, and {hero} was {glad}.",
        )
        self.fact("How did {hero} feel at the end?", "At the end, {hero} felt {glad}.")
        moral = self.rng.choice(words.MORALS[plot])
        self.define(moral=moral)
        self.say(
            "The moral of the story: {moral}",
            "{hero} had learned something: {moral}",
            "",
            "And so {hero} learned a lesson. {moral}",
        )
        return moral
