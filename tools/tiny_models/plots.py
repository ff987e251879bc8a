"""What happens: each plot adds its sentences and facts, and returns its topic as a template."""

from collections.abc import Callable

from tools.tiny_models import words
from tools.tiny_models.teller import Teller, with_article


def _lost(t: Teller) -> str:
    thing, colour = t.rng.choice(words.THINGS), t.rng.choice(words.COLOURS)
    spots = t.rng.sample(words.SPOTS, 2)
    t.define(
        thing=thing,
        colour=colour,
        a_thing=with_article(f"{colour} {thing}"),
        spot=spots[0],
        wrong_spot=spots[1],
    )
    t.say(
        "{hero} had {a_thing} that {he} loved very much.",
        "{His} favourite thing was {a_thing}.",
        "{hero} never went anywhere without {his} {colour} {thing}.",
    )
    t.fact("What colour was the {thing}?", "The {thing} was {colour}.")
    t.say(
        "{time}, the {thing} was gone.",
        "{time}, {hero} could not find the {thing}.",
        "{time}, {hero} came home from the {place} without the {thing}.",
    )
    t.fact("What did {hero} lose?", "{hero} lost the {colour} {thing}.")
    t.say(
        '{hero} felt {sad}. "Where is my {thing}?" {he} cried.',
        '"Oh no! I have lost my {thing}!" said {hero}. {He} was {sad}.',
        "{He} was {sad} and began to cry.",
    )
    t.say(
        "{hero} looked {wrong_spot}, but the {thing} was not there.",
        "First {he} looked {wrong_spot}. There was no {thing}.",
        chance=0.7,
    )
    t.say(
        'Then {friend} the {fkind} came by. "I will help you look," said {friend}.',
        '{He} asked {friend} the {fkind} for help. "Of course," said {friend}.',
        '{His} friend {friend}, {a_ftrait} {fkind}, asked, "What is wrong?" {hero} told {fhim}'
        " about the {thing}.",
    )
    t.fact("Who helped {hero}?", "{friend} the {fkind} helped {hero}.")
    t.say(
        "Together they looked {spot}. And there it was, the {colour} {thing}!",
        "They looked everywhere. At last {friend} found the {colour} {thing} {spot}.",
        '"Look!" said {friend}. The {colour} {thing} was {spot}.',
    )
    t.fact("Where was the {thing}?", "The {thing} was {spot}.")
    t.say(
        '"Thank you, {friend}!" said {hero}.',
        "{hero} hugged {friend} and thanked {fhim}.",
        '"You are a true friend," said {hero}.',
    )
    return "a lost {thing}"


def _learn(t: Teller) -> str:
    t.define(skill=t.rng.choice(words.SKILLS), count=t.rng.choice(["two", "three", "five", "ten"]))
    t.say(
        "{hero} wanted to learn to {skill}.",
        "More than anything, {he} wanted to {skill}.",
        "{hero} had one big wish. {He} wished to {skill}.",
    )
    t.fact("What did {hero} want to learn?", "{hero} wanted to learn to {skill}.")
    t.say(
        "{time}, {he} tried for the first time, but it did not go well.",
        "{time}, {he} went to the {place} and tried. {He} failed.",
        "{He} tried and tried, but it was too hard.",
    )
    t.say(
        "The others laughed, and {hero} was {sad}.",
        "{hero} felt {sad} and wanted to give up.",
        '"I will never learn to {skill}," said {hero}. {He} was {sad}.',
    )
    t.say(
        '{friend} the {fkind} saw it. "Do not give up," said {friend}. "I will show you how."',
        'Then {a_ftrait} {fkind} named {friend} came by. "Try again, a little slower," said'
        " {friend}.",
        'That evening {hero} asked {friend} the {fkind} for help. {Fhe} said, "Let us practice'
        ' together."',
    )
    t.fact("Who helped {hero}?", "{friend} the {fkind} helped {hero}.")
    t.say(
        "So {hero} practiced every day for {count} weeks.",
        "They practiced together for {count} days.",
        "{hero} tried again the next day, and the day after that, for {count} days.",
    )
    t.say(
        'At last {he} could {skill}! "I did it!" shouted {hero}.',
        "Then, one morning, it worked. {hero} could {skill}!",
        "In the end {hero} could {skill} better than anybody. {friend} clapped {fhis} hands.",
    )
    return "learning to {skill}"


def _share(t: Teller) -> str:
    t.define(food=t.rng.choice(words.FOODS))
    t.define(a_food=with_article(t.fields["food"]))
    t.say(
        "{time}, {hero} had {a_food} for lunch.",
        "{time}, {hero} found {a_food} {in_place}.",
        "{time}, {his} mother gave {him} {a_food}.",
    )
    t.fact("What did {hero} have to eat?", "{hero} had {a_food}.")
    t.say(
        "{He} sat down under a tree to eat.",
        "It smelled so good! {He} could not wait to eat it.",
        "{He} was just about to take a bite.",
    )
    t.say(
        "Then {a_fkind} named {friend} came along. {Fhe} looked tired and hungry.",
        "Just then {he} saw {friend} the {fkind}, who had nothing to eat.",
        '"I have not eaten all day," said a small voice. It was {friend} the {fkind}.',
    )
    t.fact("Who was hungry?", "{friend} the {fkind} was hungry.")
    t.say(
        "{hero} wanted to keep the {food}. But {friend} looked so {sad}.",
        "{hero} thought about it for a moment.",
        chance=0.6,
    )
    t.say(
        '"Here, have half of my {food}," said {hero}.',
        "{hero} broke the {food} in two and gave one half to {friend}.",
        '"Let us share the {food}," said {hero}. They sat down and ate together.',
    )
    t.say(
        '"Thank you! You are very kind," said {friend}.',
        '{friend} smiled. "Thank you," {fhe} said.',
    )
    t.say(
        'The next day, {friend} came back with a big basket full of food. "This is for you,"'
        " {fhe} said.",
        "A week later {hero} was hungry, and {friend} shared {fhis} supper with {him}.",
        "Later, when it rained, {friend} let {hero} sleep in {fhis} warm home.",
    )
    return "sharing {a_food}"


def _travel(t: Teller) -> str:
    problem, answer = t.rng.choice(words.OBSTACLES)
    t.define(problem=problem, answer=answer)
    t.say(
        '{hero} wanted to see the {place}. "I have never been there," {he} said.',
        "{time}, {hero} set out for the {place}.",
        "{time}, {hero} had to bring a letter to the {place}.",
    )
    t.fact("Where did {hero} go?", "{hero} went to the {place}.")
    t.say(
        "{His} friend {friend} the {fkind} came too.",
        '"May I come with you?" asked {friend} the {fkind}. "Yes, please," said {hero}.',
        "On the way {he} met {friend}, {a_ftrait} {fkind}, and they walked on together.",
    )
    t.fact("Who went with {hero}?", "{friend} the {fkind} went with {hero}.")
    t.say(
        "They walked for a long time and sang songs.",
        "The road was long, but they were happy.",
        "They walked over hills and past farms.",
        chance=0.7,
    )
    t.say(
        "But then {problem}.",
        "After a while they had to stop, because {problem}.",
        "Half way there, {problem}.",
    )
    t.fact("What was the problem?", "The problem was that {problem}.")
    t.say(
        '"What shall we do now?" asked {hero}.',
        '"We must go back," said {hero}. {He} was {sad}.',
        "{hero} sat down and felt {sad}.",
    )
    t.say(
        '"I have an idea!" said {friend}.',
        '{friend} thought hard. "I know what to do," {fhe} said.',
        "But {friend} did not give up.",
    )
    t.say("They {answer}.", "So they {answer}.", "Together they {answer}.")
    t.say(
        "In the evening they came to the {place}. It was beautiful.",
        'At last they reached the {place}. "We made it!" they shouted.',
        "Before night they stood in front of the {place}, tired but happy.",
    )
    return "a trip to the {place}"


def _build(t: Teller) -> str:
    project, parts = t.rng.choice(words.PROJECTS)
    t.define(project=project, a=parts[0], b=parts[1], c=parts[2], short=project.split(" ", 1)[1])
    t.say(
        "{time}, {hero} wanted to build {project}.",
        '{time}, {he} had an idea. "I will build {project}!" {he} said.',
    )
    t.fact("What did {hero} build?", "{hero} built {project}.")
    t.say("{He} needed {a}, {b} and {c}.", "{He} went to the {place} and found {a}, {b} and {c}.")
    t.fact("What did {hero} need?", "{hero} needed {a}, {b} and {c}.")
    t.say(
        "{He} worked all day.",
        "{He} started at once and worked very fast.",
        "It was hard work, but {hero} did not stop.",
    )
    t.say(
        "But in the night a storm came, and the {short} fell apart.",
        "But {he} worked too fast, and the {short} broke.",
        "But the wind was strong, and the {short} fell down.",
    )
    t.say(
        '{hero} was {sad}. "All my work is lost," {he} said.', "{He} looked at it and felt {sad}."
    )
    t.say(
        '{friend} the {fkind} heard {him} cry. "Let us build it again," said {friend}.',
        'Then {friend} the {fkind} came to help. "This time we take our time," {fhe} said.',
        '{His} friend {friend}, {a_ftrait} {fkind}, said, "Two can do it better than one."',
    )
    t.fact("Who helped {hero}?", "{friend} the {fkind} helped {hero}.")
    t.say(
        "{hero} held the {a} and {friend} brought the {b}.".replace("the {b}", "{b}").replace(
            "the {a}", "{a}"
        ),
        "They worked side by side, slowly and with care.",
    )
    t.say(
        "When it was done, the {short} was stronger than before.",
        "Soon the new {short} was ready, and it was the best far and wide.",
    )
    return "building {project}"


def _fear(t: Teller) -> str:
    fear, truth = t.rng.choice(words.FEARS)
    thing, colour = t.rng.choice(words.THINGS), t.rng.choice(words.COLOURS)
    t.define(
        fear=fear,
        truth=truth,
        thing=thing,
        colour=colour,
        a_thing=with_article(f"{colour} {thing}"),
    )
    t.say(
        "{hero} was afraid of {fear}.",
        "There was one thing {he} did not like. {He} was afraid of {fear}.",
    )
    t.fact("What was {hero} afraid of?", "{hero} was afraid of {fear}.")
    t.say(
        "{He} never told anybody about it.",
        "The others did not understand, and {hero} was {sad}.",
        chance=0.6,
    )
    t.say(
        '{time}, {friend} the {fkind} asked, "Why do you not come and play?"',
        "{time}, {friend} the {fkind} found {him} hiding in a corner.",
        "{time}, {he} told {friend}, {a_ftrait} {fkind}.",
    )
    t.say('"I am afraid of {fear}," said {hero} in a small voice.', '"I am scared," said {hero}.')
    t.say(
        '"Everybody is afraid sometimes," said {friend}.',
        '{friend} did not laugh. "I was afraid too, once," {fhe} said.',
    )
    t.say(
        '{Fhe} gave {hero} {a_thing}. "Hold this, and you will be brave."',
        '"Take my {colour} {thing}," said {friend}. "It will help you."',
    )
    t.fact("What did {friend} give to {hero}?", "{friend} gave {hero} {a_thing}.")
    t.fact("What colour was the {thing}?", "The {thing} was {colour}.")
    t.say(
        "{hero} held the {thing} tight and took one step. Then another. {truth}",
        "With the {thing} in {his} hand, {hero} went to look. {truth}",
    )
    t.say(
        '"I am not afraid any more!" said {hero}.',
        '"It is not so bad," said {hero}, and {he} laughed.',
    )
    return "being afraid of {fear}"


def _quarrel(t: Teller) -> str:
    thing, colour = t.rng.choice(words.THINGS), t.rng.choice(words.COLOURS)
    t.define(thing=thing, colour=colour, a_thing=with_article(f"{colour} {thing}"))
    t.say(
        "{His} best friend was {friend}, {a_ftrait} {fkind}.",
        "{He} often played with {friend} the {fkind}.",
    )
    t.fact("Who was the friend of {hero}?", "The friend of {hero} was {friend} the {fkind}.")
    t.say(
        "{time}, they found {a_thing} {in_place}.",
        "{time}, there was {a_thing} lying {in_place}.",
    )
    t.fact("What did they find?", "They found {a_thing}.")
    t.fact("What colour was the {thing}?", "The {thing} was {colour}.")
    t.say(
        '"It is mine!" said {hero}. "No, it is mine!" said {friend}.',
        'Both of them wanted the {thing}. "I saw it first!" shouted {friend}.',
    )
    t.say(
        "They pulled and pulled, until the {thing} broke.",
        "They both pulled at the {thing}, and it fell into the mud.",
    )
    t.say(
        "{hero} went home angry.",
        "{friend} ran away and {hero} was alone.",
        "They did not speak for three days.",
    )
    t.say(
        "But soon {hero} felt {sad}. It was no fun to play alone.",
        "That night {hero} could not sleep. {He} was {sad}.",
    )
    t.say(
        'The next morning {he} went to {friend}. "I am sorry," said {hero}. "I am sorry too,"'
        " said {friend}.",
        '{He} knocked on the door of {friend}. "I am sorry," {he} said. {friend} smiled and'
        " hugged {him}.",
    )
    t.say(
        "They repaired the {thing} together and took turns.",
        "They cleaned the {colour} {thing} and played with it together.",
    )
    return "two friends and {a_thing}"


def _gift(t: Teller) -> str:
    thing, colour = t.rng.choice(words.THINGS), t.rng.choice(words.COLOURS)
    t.define(
        thing=thing,
        colour=colour,
        a_thing=with_article(f"{colour} {thing}"),
        coins=str(t.rng.randint(2, 9)),
    )
    t.say(
        "It was almost the birthday of {friend} the {fkind}.",
        "{friend} the {fkind} was going to have a birthday party.",
    )
    t.fact("Whose birthday was it?", "It was the birthday of {friend} the {fkind}.")
    t.say(
        "{hero} wanted to give {fhim} a gift, but {he} had only {coins} coins.",
        "{hero} counted {his} money. {He} had {coins} coins, and that was not much.",
    )
    t.fact("How many coins did {hero} have?", "{hero} had {coins} coins.")
    t.say(
        "{He} went to the market, but everything cost too much. {hero} was {sad}.",
        '"That is not enough for a gift," {he} thought, and {he} was {sad}.',
    )
    t.say(
        "Then {hero} had an idea. {He} would make {a_thing} with {his} own hands.",
        '"I will make something myself," said {hero}. {He} began to make {a_thing}.',
    )
    t.fact("What was the gift?", "The gift was {a_thing}.")
    t.fact("What colour was the {thing}?", "The {thing} was {colour}.")
    t.say(
        "{He} worked on it every evening.",
        "It took three long days.",
        "{He} painted it {colour} and put it in a box.",
    )
    t.say(
        'At the party, {friend} opened the box. "What a beautiful {thing}!" {fhe} said.',
        "When {friend} saw the {colour} {thing}, {fhe} jumped for joy.",
    )
    t.say(
        '"It is the best gift of all," said {friend}.',
        '{friend} hugged {hero}. "You made it for me!"',
    )
    return "a birthday gift"


def _stranger(t: Teller) -> str:
    t.define(game=t.rng.choice(["hide and seek", "ball", "chess", "tag", "a song"]))
    t.say(
        "{time}, a new neighbour came to the {place}. It was {a_ftrait} {fkind} named {friend}.",
        "{time}, {hero} saw somebody new {in_place}. It was {a_fkind} named {friend}.",
    )
    t.fact("Who was new?", "{friend} the {fkind} was new.")
    t.say(
        "Nobody talked to {friend}. {Fhe} sat alone and looked {sad}.",
        "{friend} did not know anybody. {Fhe} felt {sad}.",
    )
    t.say(
        '"Why is {fhe} alone?" {hero} asked. "{Fhe} is different," said the others.',
        "{hero} was a little shy, but {he} walked up to {friend}.",
        chance=0.8,
    )
    t.say(
        '"Hello, my name is {hero}," said {hero}. "Do you want to play {game}?"',
        '"Hi! I am {hero}," {he} said. "Come and play {game} with me."',
    )
    t.fact("What did they play?", "They played {game}.")
    t.say(
        '{friend} looked up and smiled. "I would love to," {fhe} said.',
        '"Really? With me?" asked {friend}. "With you!" said {hero}.',
    )
    t.say("They played until the sun went down.", "They laughed and played all afternoon.")
    t.say(
        "The next day, the others came to play too.",
        "Soon {friend} had many friends, but {hero} was the first.",
    )
    return "a new friend"


PLOTS: dict[str, Callable[[Teller], str]] = {
    "lost": _lost,
    "learn": _learn,
    "share": _share,
    "travel": _travel,
    "build": _build,
    "fear": _fear,
    "quarrel": _quarrel,
    "gift": _gift,
    "stranger": _stranger,
}
