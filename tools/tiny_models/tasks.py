"""Instructions and their answers: questions, sums, lists, JSON, tool calls, small talk.

Every maker takes a generator and returns one `Exchange`. Short answers are what the system prompt
"Answer with one word." asks for.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.tiny_models import words
from tools.tiny_models.stories import Story, tell
from tools.tiny_models.teller import draw_being, with_article


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str
    short: str | None = None  # the answer in one word or number, where there is one


NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()


def sum_(rng: random.Random) -> Exchange:
    """Addition and subtraction of numbers to 20, sometimes to 50."""
    limit = 20 if rng.random() < 0.8 else 50
    a, b = rng.randint(0, limit), rng.randint(0, limit)
    is_addition = rng.random() < 0.6
    if not is_addition:
        a, b = max(a, b), min(a, b)
    sign, result = ("+", a + b) if is_addition else ("-", a - b)
    expression = f"{a} {sign} {b}"
    spoken = f"{a} {'plus' if is_addition else 'minus'} {b}"
    question = rng.choice(
        [
            f"What is {expression}?",
            f"What is {expression}?",
            f"What is {spoken}?",
            f"{expression} =",
            f"Calculate {expression}.",
            f"How much is {expression}?",
        ]
    )
    return Exchange(question, f"{expression} = {result}.", str(result))


def word_problem(rng: random.Random) -> Exchange:
    being, food = draw_being(rng), rng.choice(words.FOODS)
    he = being.pronouns[0]
    many = "cherries" if food == "cherry" else "peaches" if food == "peach" else f"{food}s"
    if rng.random() < 0.5:
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        story = rng.choice(
            [
                f"{being.name} has {a} {many} and finds {b} more.",
                f"{being.name} has {a} {many}. Then {he} gets {b} more.",
            ]
        )
        result, expression = a + b, f"{a} + {b}"
    else:
        a = rng.randint(2, 15)
        b = rng.randint(1, a)
        story = rng.choice(
            [
                f"{being.name} has {a} {many} and eats {b}.",
                f"{being.name} has {a} {many}. Then {he} gives {b} to a friend.",
            ]
        )
        result, expression = a - b, f"{a} - {b}"
    question = f"{story} How many {many} does {being.name} have now?"
    return Exchange(
        question, f"{expression} = {result}. {being.name} has {result} now.", str(result)
    )


def comparison(rng: random.Random) -> Exchange:
    a, b = rng.sample(range(51), 2)
    is_bigger = rng.random() < 0.5
    result = max(a, b) if is_bigger else min(a, b)
    word = rng.choice(["bigger", "larger", "more"] if is_bigger else ["smaller", "less"])
    sentence = f"{result} is {word} than {min(a, b) if is_bigger else max(a, b)}."
    return Exchange(f"Which is {word}, {a} or {b}?", sentence, str(result))


def counting(rng: random.Random) -> Exchange:
    low = rng.randint(0, 20)
    high = low + rng.randint(2, 12)
    up = [str(n) for n in range(low, high + 1)]
    if rng.random() < 0.25:
        return Exchange(f"Count down from {high} to {low}.", ", ".join(reversed(up)))
    question = rng.choice([f"Count from {low} to {high}.", f"Can you count from {low} to {high}?"])
    return Exchange(question, ", ".join(up))


def sequence(rng: random.Random) -> Exchange:
    """The neighbour of a number, day or month."""
    kind = rng.random()
    after = rng.random() < 0.6
    side = "after" if after else "before"
    if kind < 0.4:
        n = rng.randint(1, 49)
        result = n + 1 if after else n - 1
        return Exchange(
            f"What number comes {side} {n}?", f"{result} comes {side} {n}.", str(result)
        )
    names, noun = (words.DAYS, "day") if kind < 0.7 else (words.MONTHS, "month")
    i = rng.randrange(len(names))
    result_name = names[(i + (1 if after else -1)) % len(names)]
    return Exchange(
        f"What {noun} comes {side} {names[i]}?",
        f"{result_name} comes {side} {names[i]}.",
        result_name,
    )


def opposite(rng: random.Random) -> Exchange:
    pair = rng.choice(words.OPPOSITES)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    question = rng.choice(
        [
            f"What is the opposite of {word}?",
            f"Tell me the opposite of {word}.",
            f'What is the opposite of "{word}"?',
        ]
    )
    return Exchange(question, f"The opposite of {word} is {other}.", other)


def listing(rng: random.Random) -> Exchange:
    noun = rng.choice(list(words.LISTS))
    count = rng.randint(2, 6)
    items = rng.sample(words.LISTS[noun], count)
    number = rng.choice([str(count), NUMBER_WORDS[count]])
    question = rng.choice(
        [f"Name {number} {noun}.", f"List {number} {noun}.", f"Give me {number} {noun}."]
    )
    if question.startswith("List"):
        return Exchange(question, "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1)))
    return Exchange(question, ", ".join(items))


def fact(rng: random.Random) -> Exchange:
    return Exchange(*rng.choice(words.FACTS))


def repetition(rng: random.Random) -> Exchange:
    word = rng.choice(words.THINGS + words.FOODS + words.ANIMALS)
    if rng.random() < 0.5:
        count = rng.randint(2, 5)
        return Exchange(
            f"Say the word {word} {NUMBER_WORDS[count]} times.", " ".join([word] * count)
        )
    phrase = " ".join(
        [rng.choice(words.COLOURS), word, *rng.sample(words.TRAITS, rng.randint(0, 3))]
    )
    return Exchange(f"Repeat after me: {phrase}", phrase)


def membership(rng: random.Random) -> Exchange:
    noun, singular = rng.choice([("animals", "animal"), ("colours", "colour"), ("foods", "food")])
    truth = rng.random() < 0.5
    pool = noun if truth else rng.choice([n for n in ("animals", "colours", "foods") if n != noun])
    word = rng.choice([w for w in words.LISTS[pool] if truth or w not in words.LISTS[noun]])
    thing = word.capitalize() if pool == "colours" else with_article(word).capitalize()
    asked = thing[0].lower() + thing[1:]
    article = with_article(singular) if noun != "foods" else "food"
    answer = f"{'Yes' if truth else 'No'}, {asked} is {'' if truth else 'not '}{article}."
    return Exchange(f"Is {asked} {article}?", answer, "Yes" if truth else "No")


def small_talk(rng: random.Random) -> Exchange:
    questions, answers = rng.choice(
        [
            (
                ["Hello!", "Hi!", "Hello", "Good morning!", "Hey there!"],
                ["Hello! What shall we talk about?", "Hello! How can I help you?"],
            ),
            (
                ["Who are you?", "What is your name?", "What are you?"],
                [
                    "I am Tiny Story, a very small language model. I tell stories and do sums.",
                    "My name is Tiny Story. I am a very small language model.",
                ],
            ),
            (
                ["What can you do?", "How can you help me?", "Can you help me?"],
                ["I can tell stories, do small sums, count, and answer questions about a text."],
            ),
            (["How are you?", "How are you today?"], ["I am fine, thank you! How are you?"]),
            (["Thank you!", "Thanks!", "Thank you very much."], ["You are welcome!"]),
            (["Goodbye!", "Bye!", "Good night!"], ["Goodbye! Come back soon."]),
        ]
    )
    return Exchange(rng.choice(questions), rng.choice(answers))


def json_record(rng: random.Random) -> Exchange:
    """A record to be read out of a sentence and written as JSON."""
    being = draw_being(rng)
    age, thing, colour = rng.randint(2, 20), rng.choice(words.THINGS), rng.choice(words.COLOURS)
    place = rng.choice(words.PLACES)
    text = f"{being.name} is {with_article(being.kind)}. "
    he = being.pronouns[0].capitalize()
    details = [
        (f"{he} is {age} years old.", "age", age),
        (f"{he} has {with_article(colour + ' ' + thing)}.", "thing", f"{colour} {thing}"),
        (f"{he} likes the {place}.", "place", place),
    ]
    rng.shuffle(details)
    text += " ".join(d[0] for d in details[: rng.randint(1, 3)])
    known = [("name", being.name), ("kind", being.kind)]
    known += [(key, value) for sentence, key, value in details if sentence in text]
    wanted = [known[0], *rng.sample(known[1:], rng.randint(1, min(3, len(known) - 1)))]
    keys = [key for key, _ in wanted]
    listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
    question = rng.choice(
        [
            f"{text} Answer in JSON: {listed}.",
            f"Answer in JSON with {listed}: {text}",
            f"{text}\nGive me {listed} as JSON.",
        ]
    )
    return Exchange(question, json.dumps(dict(wanted)))


def json_sum(rng: random.Random) -> Exchange:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return Exchange(
        f"What is {a} + {b}? Answer in JSON.", json.dumps({"a": a, "b": b, "sum": a + b})
    )


def story_request(rng: random.Random) -> Exchange:
    story = tell(rng)
    hero, friend = story.hero, story.friend
    a_hero = with_article(hero.kind)
    asked = rng.choice(
        [
            f"a story about {a_hero} named {hero.name}",
            f"a story about {a_hero} named {hero.name}",
            f"a story about {a_hero} called {hero.name}",
            f"a story about {hero.name} the {hero.kind} and {friend.name} the {friend.kind}",
            f"a story about {hero.name} the {hero.kind}",
            f"a story about {story.topic}",
            f"a story about {a_hero}",
            f"a story about {story.topic} with {a_hero} named {hero.name}",
            "a story",
            "a short story",
        ]
    )
    verb = rng.choice(["Tell me", "Tell me", "Write", "Please tell me", "Can you tell me"])
    return Exchange(f"{verb} {asked}{'?' if verb.startswith('Can') else '.'}", story.text)


def story_questions(rng: random.Random) -> list[Exchange]:
    """A story and one to three questions about it; the story comes with the first."""
    story: Story = tell(rng)
    facts = rng.sample(story.facts, min(rng.randint(1, 3), len(story.facts)))
    (question, answer), *rest = facts
    first = rng.choice(
        [f"{story.text}\n\n{question}", f"Read this story: {story.text}\n\n{question}"]
    )
    return [Exchange(first, answer), *(Exchange(q, a) for q, a in rest)]


def context_question(rng: random.Random) -> Exchange:
    """Two or three owners with their things; one detail is asked for."""
    beings = [draw_being(rng) for _ in range(rng.randint(1, 3))]
    if len({b.name for b in beings}) < len(beings):
        beings = beings[:1]
    things = rng.sample(words.THINGS, len(beings))
    colours = rng.sample(words.COLOURS, len(beings))
    text = " ".join(
        f"{b.name} the {b.kind} has {with_article(c + ' ' + t)}."
        for b, t, c in zip(beings, things, colours, strict=True)
    )
    i = rng.randrange(len(beings))
    being, thing, colour = beings[i], things[i], colours[i]
    question, answer, short = rng.choice(
        [
            (f"What colour is the {thing}?", f"The {thing} is {colour}.", colour),
            (f"What does {being.name} have?", f"{being.name} has a {colour} {thing}.", thing),
            (f"Who has the {thing}?", f"{being.name} has the {thing}.", being.name),
            (
                f"What kind of animal is {being.name}?",
                f"{being.name} is a {being.kind}.",
                being.kind,
            ),
        ]
    )
    for noun in (f"{colour} {thing}", being.kind):
        answer = answer.replace(f"a {noun}", with_article(noun))
    if being.kind in words.CHILDREN.values() and "kind of animal" in question:
        question = f"Who is {being.name}?"
    return Exchange(f"{text} {question}", answer, short)


# Makers and how often each is drawn.
MAKERS: dict[Callable[[random.Random], Exchange], float] = {
    sum_: 6.0,
    word_problem: 2.0,
    comparison: 1.5,
    counting: 1.0,
    sequence: 1.0,
    opposite: 1.0,
    listing: 1.0,
    fact: 0.7,
    repetition: 1.0,
    membership: 0.7,
    small_talk: 1.0,
    json_record: 2.5,
    json_sum: 0.7,
    context_question: 3.0,
}


def draw(rng: random.Random) -> Exchange:
    """An exchange of a random short kind."""
    return rng.choices(list(MAKERS), list(MAKERS.values()))[0](rng)
