"""Beings, and the template filler that keeps a story about the same ones."""

import random
from collections.abc import Collection
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
    has_vowel_sound = noun[0] in "aeiou" or noun.startswith("honest")
    return f"an {noun}" if has_vowel_sound else f"a {noun}"


def draw_being(
    rng: random.Random, names: Collection[str] = (), kinds: Collection[str] = ()
) -> Being:
    """A random being whose name is not in `names` and whose kind is not in `kinds`."""
    while True:
        is_female = rng.random() < 0.5
        name = rng.choice(words.GIRLS if is_female else words.BOYS)
        kind = words.CHILDREN[is_female] if rng.random() < 0.2 else rng.choice(words.ANIMALS)
        if name not in names and kind not in kinds:
            return Being(name, kind, is_female)


class Teller:
    """Fills templates with the entities of one story.

    Template fields: `{hero}` `{He}` `{he}` `{him}` `{his}`, `{friend}` `{Fhe}` `{fhe}` `{fhim}`
    `{fhis}`, `{kind}` `{fkind}` and what a plot adds with `define`.
    """

    def __init__(self, rng: random.Random, hero: Being, friend: Being) -> None:
        self.rng = rng
        self.sentences: list[str] = []
        self.facts: list[tuple[str, str]] = []
        he, him, his = hero.pronouns
        self.fields = {
            "hero": hero.name,
            "kind": hero.kind,
            "a_kind": with_article(hero.kind),
            "he": he,
            "He": he.capitalize(),
            "him": him,
            "his": his,
            "His": his.capitalize(),
            "home": rng.choice(words.HOMES),
            "trait": rng.choice(words.TRAITS),
        }
        self.fields["a_trait"] = with_article(self.fields["trait"])
        self.begin_episode(friend)

    def begin_episode(self, friend: Being) -> None:
        """Draw a new time, place and feelings, and a new friend to meet."""
        rng = self.rng
        fhe, fhim, fhis = friend.pronouns
        place = rng.choice(words.PLACES)
        self.define(
            friend=friend.name,
            fkind=friend.kind,
            a_fkind=with_article(friend.kind),
            fhe=fhe,
            Fhe=fhe.capitalize(),
            fhim=fhim,
            fhis=fhis,
            Fhis=fhis.capitalize(),
            ftrait=rng.choice(words.TRAITS),
            time=rng.choice(words.TIMES),
            place=place,
            in_place=f"{words.PREPOSITIONS.get(place, 'in')} the {place}",
            glad=rng.choice(words.GLAD),
            sad=rng.choice(words.SAD),
        )
        self.define(a_ftrait=with_article(self.fields["ftrait"]))

    def define(self, **fields: str) -> None:
        self.fields.update(fields)

    def say(self, *templates: str, chance: float = 1.0) -> None:
        """Add one of `templates`, with probability `chance`."""
        if self.rng.random() < chance:
            sentence = self.rng.choice(templates).format_map(self.fields)
            self.sentences += [sentence] if sentence else []

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
            "From that day on, {hero} and {friend} were best friends, and {hero} was {glad}.",
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
