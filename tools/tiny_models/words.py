"""The vocabulary of the tiny world: who lives in it, where, with which things."""

GIRLS = (
    "Ada Mia Lily Rosa Nora Ella Zoe Ivy Clara Hana Lena Maya Ruby Tess Wren Yara Juno Fern Pia "
    "Dora Olive Greta Sana Edith Kiki Molly Bea Anya Luna Poppy"
).split()
BOYS = (
    "Max Tom Ben Leo Sam Finn Oscar Hugo Jack Noah Otto Pip Ravi Theo Milo Emil Gus Ned Omar "
    "Felix Bruno Karl Alfie Toby Ivan Rolf Hal Jonas Ziggy Walt"
).split()

ANIMALS = (
    "fox rabbit bear mouse owl cat dog duck frog hedgehog squirrel turtle goat horse lamb otter "
    "pig robin beaver badger deer donkey goose hen kitten puppy mole crow snail bee"
).split()
CHILDREN = {True: "girl", False: "boy"}

COLOURS = "red blue green yellow white black brown pink orange purple silver golden".split()
TRAITS = (
    "kind brave shy clever curious gentle small quiet cheerful stubborn lazy proud careful playful "
    "patient honest hungry sleepy busy lonely"
).split()

HOMES = [
    "in a small house by the lake",
    "in a warm den under an old oak",
    "at the edge of the forest",
    "near the river",
    "on a farm at the foot of the hill",
    "in a little village by the sea",
    "in a cottage with a round door",
    "on the other side of the bridge",
    "in a tall tree near the mill",
    "behind the bakery",
    "in a quiet valley",
    "at the top of a green hill",
]
PLACES = (
    "forest garden meadow beach market park barn field cave island mill harbour orchard castle "
    "pond village hill valley library school"
).split()
# Places one is on or at, not in.
PREPOSITIONS = {
    "meadow": "on",
    "beach": "on",
    "market": "at",
    "field": "on",
    "island": "on",
    "mill": "at",
    "harbour": "at",
    "pond": "at",
    "hill": "on",
    "school": "at",
}
SPOTS = [
    "under the bed",
    "behind a big rock",
    "in the tall grass",
    "under the old bridge",
    "in a hollow log",
    "on top of the roof",
    "in the bushes",
    "behind the door",
    "at the bottom of the basket",
    "near the well",
    "in the mud by the pond",
    "between two stones",
    "in an empty nest",
    "under a pile of leaves",
]
THINGS = (
    "kite ball boat hat scarf drum book lamp bell cup key ring box basket blanket button coat "
    "spoon mitten flute map doll wagon whistle umbrella shell ribbon puzzle mirror clock"
).split()
FOODS = (
    "apple pear cake pie carrot cookie plum bun sandwich peach nut cherry pancake muffin turnip"
).split()
SKILLS = [
    "swim",
    "climb trees",
    "ride a bike",
    "skate on the ice",
    "bake bread",
    "whistle",
    "paint",
    "play the drum",
    "tie a knot",
    "read",
    "dance",
    "row a boat",
    "sing",
    "jump over the stream",
]
FEARS = [
    ("the dark", "It was only a shadow on the wall."),
    ("thunder", "It was only a loud noise far away."),
    ("deep water", "The water was calm and clear."),
    ("the big dog next door", "The dog only wanted to play."),
    ("the wind in the trees", "It was only the leaves talking to each other."),
    ("high places", "The branch was strong and wide."),
    ("the old mill", "It was only a wheel that creaked."),
    ("snow", "The snow was soft and made no sound."),
]
PROJECTS = [
    ("a tree house", ["wood", "nails", "rope"]),
    ("a boat", ["wood", "paint", "a sail"]),
    ("a snowman", ["snow", "two stones", "a carrot"]),
    ("a bridge", ["logs", "stones", "rope"]),
    ("a kite", ["paper", "sticks", "string"]),
    ("a nest", ["twigs", "moss", "feathers"]),
    ("a swing", ["a plank", "rope", "a strong branch"]),
    ("a sand castle", ["sand", "shells", "a flag"]),
    ("a little wagon", ["wheels", "planks", "nails"]),
]
OBSTACLES = [
    ("the river was too wide", "made a bridge from a fallen tree"),
    ("a big rock lay on the path", "pushed the rock aside together"),
    ("the snow was very deep", "dug a path through the snow"),
    ("the gate was locked", "found the key under a flower pot"),
    ("the fog was so thick that nobody could see", "held hands and followed the sound of a bell"),
    ("a fallen tree blocked the road", "climbed over the tree one after the other"),
    ("the bridge was broken", "tied two logs together and floated across"),
    ("it began to rain very hard", "waited under a big leaf until the rain stopped"),
]
WEATHER = [
    "The sun was shining and the sky was blue.",
    "It was a cold and windy day.",
    "The air smelled of flowers.",
    "Soft rain was falling on the roof.",
    "The first snow had fallen in the night.",
    "It was a warm day and the birds were singing.",
    "There was fog over the fields.",
    "The leaves were turning red and gold.",
]
TIMES = [
    "One day",
    "One morning",
    "One evening",
    "One summer day",
    "One winter morning",
    "One rainy afternoon",
    "Early one morning",
    "On a fine spring day",
    "Last week",
]
LATER = ["The next day", "A week later", "Some days later", "Then, one evening", "Soon after that"]
GLAD = "happy glad proud cheerful joyful".split()
SAD = "sad worried upset unhappy lonely".split()

MORALS = {
    "lost": [
        "If you look with patience, you will find what you need.",
        "A good friend helps you look.",
        "Take care of the things you love.",
    ],
    "learn": [
        "If you keep trying, you will get better.",
        "Practice makes hard things easy.",
        "Everybody falls before they learn.",
    ],
    "share": [
        "What you share comes back to you.",
        "A kind heart is never empty.",
        "Food tastes better with a friend.",
    ],
    "travel": [
        "Together, no road is too long.",
        "Every problem is smaller with a friend.",
        "Two heads are better than one.",
    ],
    "build": [
        "Good work takes time.",
        "If it breaks, build it again.",
        "Many hands make light work.",
    ],
    "fear": [
        "Being brave means trying even when you are afraid.",
        "Things look smaller when you look at them closely.",
        "A friend makes the night less dark.",
    ],
    "quarrel": [
        "Saying sorry is the first step to being friends again.",
        "A friend is worth more than any toy.",
        "It is better to share than to fight.",
    ],
    "gift": [
        "The best gifts come from the heart.",
        "Giving makes two people happy.",
        "A gift need not be big to be dear.",
    ],
    "stranger": [
        "Be kind to those who are new.",
        "A new friend may be waiting next door.",
        "One kind word can change a day.",
    ],
}

OPPOSITES = [
    ("big", "small"),
    ("hot", "cold"),
    ("up", "down"),
    ("happy", "sad"),
    ("fast", "slow"),
    ("day", "night"),
    ("open", "closed"),
    ("old", "young"),
    ("wet", "dry"),
    ("light", "dark"),
    ("loud", "quiet"),
    ("full", "empty"),
    ("strong", "weak"),
    ("early", "late"),
    ("near", "far"),
    ("hard", "soft"),
    ("high", "low"),
    ("left", "right"),
    ("yes", "no"),
    ("kind", "cruel"),
    ("brave", "afraid"),
    ("clean", "dirty"),
    ("thick", "thin"),
    ("first", "last"),
]
LISTS = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "foods": FOODS,
    "places": PLACES,
    "toys": ["ball", "kite", "drum", "doll", "wagon", "whistle", "puzzle", "boat"],
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
FACTS = [
    ("What colour is grass?", "Grass is green.", "green"),
    ("What colour is snow?", "Snow is white.", "white"),
    ("What colour is the sky?", "The sky is blue.", "blue"),
    ("What colour is coal?", "Coal is black.", "black"),
    ("What colour is a lemon?", "A lemon is yellow.", "yellow"),
    ("How many legs does a dog have?", "A dog has 4 legs.", "4"),
    ("How many legs does a hen have?", "A hen has 2 legs.", "2"),
    ("How many legs does a bee have?", "A bee has 6 legs.", "6"),
    ("How many days are in a week?", "There are 7 days in a week.", "7"),
    ("How many months are in a year?", "There are 12 months in a year.", "12"),
    ("What do bees make?", "Bees make honey.", "honey"),
    ("What do hens lay?", "Hens lay eggs.", "eggs"),
    ("Where do fish live?", "Fish live in water.", "water"),
    ("What does a cow give?", "A cow gives milk.", "milk"),
    ("What falls from the clouds?", "Rain falls from the clouds.", "rain"),
    ("What shines at night?", "The moon and the stars shine at night.", "moon"),
    ("What is ice made of?", "Ice is made of frozen water.", "water"),
    ("What do we use to cut bread?", "We cut bread with a knife.", "knife"),
]
