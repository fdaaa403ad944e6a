"""Word inventories, and a generator of made-up words so that names never seen in training work too."""

from __future__ import annotations

import random

NOUNS = """
acorn airport anchor ankle apple apron arch arrow attic autumn avocado axe badge bag bakery balcony ball balloon banana
band bank banner barn barrel basket bath beach bead beam bean bear beard bed bee bell belt bench berry bicycle bird
blanket blossom board boat bolt bone book boot bottle bottom boulder bowl box branch brass bread brick bridge broom
brother brush bubble bucket bulb bus bush butter button cabin cabinet cable cactus cake calendar camel camera candle
canoe canyon cap captain car card carpet carrot castle cat cellar chain chair chalk cheese cherry chess chicken chimney
church circle city clay cliff clock cloud clover coast coat coconut coffee coin collar color comet compass cookie copper
coral corner cotton couch cousin cow crab cradle crane crayon creek crown cube cup curtain cushion dance daisy deer desert
desk diamond dinner dish doctor dog doll dolphin donkey door dragon drawer dream dress drum duck dust eagle ear earth
elbow elephant elm engine envelope eraser evening eye fabric face falcon farm feather fence fern ferry field finger fire
fish flag flame flask flower flute fog forest fork fossil fountain fox frame friend frog fruit garage garden garlic gate
ghost giant ginger glacier glass globe glove goat gold goose grape grass guitar hail hall hammer hammock hand harbor harp
hat hawk hazel heart hedge helmet hen hill hinge honey hood hook horn horse hotel house ice igloo ink island ivory ivy
jacket jam jar jeans jewel jungle kettle key king kitchen kite kitten knee knife ladder lake lamb lamp lantern leaf leather
lemon letter library lighthouse lily lime lion lizard lobster lock log lotus lunch magnet mango map maple marble market
mask meadow medal melon milk mill mirror mitten money monkey moon morning moss mountain mouse mug museum mushroom music nail
napkin neck needle nest net night north nose notebook nut oak oar ocean office olive onion orange orchard organ otter oven
owl oyster paddle page paint palace palm pan panda paper parade parcel park parrot path peach peanut pear pearl pebble pen
pencil penguin pepper piano picnic picture pie pigeon pillow pilot pine pipe pirate planet plate plum pocket poem pond pony
porch postcard potato pumpkin puppet puppy puzzle queen quilt rabbit radio raft rain rainbow raven ribbon rice ring river
road robin robot rock rocket roof room rope rose ruler saddle sail salad salt sand sandal sandwich saucer scarf school
scissors sea seal seed shadow sheep shelf shell ship shirt shoe shovel silk silver sister skate sky sled sleeve snail snow
soap sock sofa soup spider spoon spring square squirrel stable stair star station statue stone storm stove straw stream
street sugar suitcase summer sun swan sweater table tail teacher teapot temple tent theater thunder ticket tiger tile toast
tomato tooth torch tower town toy tractor train tree truck trumpet tulip tunnel turkey turtle umbrella uncle valley van vase
velvet vest village vine violet violin volcano wagon wall walnut walrus watch water wave wax well whale wheat wheel whistle
willow wind window wing winter wolf wood wool worm wrench yard yarn zebra zipper
""".split()

ADJECTIVES = """
amber angry bitter black blue bold brave bright brown busy calm careful cheap clean clever cold cool crisp curious dark deep
dry dusty eager early empty fair fast fierce fine flat fresh friendly funny gentle giant golden good grand gray green happy
hard heavy hidden high hollow honest hot huge hungry icy jolly kind large lazy light little lonely long loud lucky mellow
merry mild modern narrow neat new noble odd old open orange pale patient plain polite pretty proud purple quick quiet rare
red rich ripe rough round royal rusty sad salty scarlet secret shallow sharp shiny short shy silent silly silver simple
sleepy slow small smart smooth soft sour steady steep sticky strange strong sunny sweet swift tall tame tender thick thin
tidy tiny tired warm weak wet white wide wild wise wooden yellow young
""".split()

VERBS_PAST = """
admired borrowed bought built carried chased cleaned climbed counted covered crossed drew dropped fixed followed forgot
found guarded heard helped hid inspected kicked kissed left lifted liked lost loved met missed moved noticed opened ordered
painted passed picked polished pulled pushed reached remembered repaired saved saw shared sketched sold stopped studied
surprised thanked threw touched visited wanted washed watched
""".split()

NAMES = """
Aaron Abby Ada Adam Agnes Ahmed Aiko Alan Alba Alice Alma Amara Amir Amy Ana Andre Anita Anna Anton Aria Arlo Asha Astrid
Axel Aya Beatrix Bella Ben Bianca Bo Boris Brenda Bruno Carla Carlos Carmen Cecil Celia Chen Chloe Clara Claude Cora Cyrus
Daisy Dana Daniel Daphne Dario David Dexter Diego Dina Dora Edgar Edith Eli Elena Elias Elsa Emil Emma Enzo Eric Esme Esther
Ethan Eva Ezra Farid Fatima Felix Fiona Flora Frank Freya Gabriel Gemma George Gina Giulia Grace Greta Gus Hana Hanna Harold
Harry Hassan Hazel Hector Helen Henry Hilda Hugo Ian Ida Igor Ines Ingrid Ira Iris Isaac Isla Ivan Ivy Jack Jada Jamal James
Jana Jasper Jean Jenna Jo John Jonas Josie Juan Judith Jules June Kai Kara Karl Kate Keiko Ken Kim Kira Kofi Lars Laura Lea
Leila Lena Leo Liam Lila Lina Linus Lola Lou Louis Lucia Lucy Luis Luna Mabel Maja Malik Marco Maria Marta Mary Mateo Matilda
Max May Mei Mia Milo Mina Mira Mona Morris Nadia Naomi Nell Nia Nico Nina Noah Nora Olga Oliver Olivia Omar Oscar Otto Owen
Pablo Paul Pearl Pedro Penny Peter Petra Pia Priya Quinn Rafael Ravi Rex Rhea Rita Robin Rosa Rose Ruby Rufus Ruth Sage Sam
Sana Sara Sasha Selma Sid Sofia Sonia Stella Sven Tara Tariq Ted Tessa Theo Tim Tina Toby Tom Tova Uma Ursula Vera Victor
Viola Walter Wanda Wendy Willa Xander Yara Yusuf Yuki Yves Zadie Zane Zara Zelda Zoe
""".split()

CITIES = """
Accra Amsterdam Athens Auckland Austin Bangkok Barcelona Beijing Bergen Berlin Bern Bogota Boston Brussels Cairo Cardiff
Chicago Cologne Copenhagen Dakar Delhi Denver Dublin Edinburgh Florence Geneva Glasgow Hamburg Hanoi Havana Helsinki Istanbul
Jakarta Kyoto Lagos Leeds Leipzig Lima Lisbon London Lyon Madrid Manila Marseille Melbourne Miami Milan Montreal Mumbai
Munich Nairobi Naples Oslo Ottawa Oxford Paris Perth Porto Prague Quito Reykjavik Riga Rome Rotterdam Salzburg Santiago
Seattle Seoul Seville Shanghai Singapore Sofia Stockholm Sydney Tallinn Tokyo Toronto Tunis Turin Utrecht Valencia Vancouver
Venice Vienna Warsaw Wellington York Zagreb Zurich
""".split()

COLOURS = "red blue green yellow orange purple pink brown black white gray silver gold teal violet crimson amber beige".split()
ANIMALS = "cat dog fox owl bear wolf lion tiger otter rabbit turtle horse whale eagle panda mouse frog duck goat robin".split()
FOODS = "bread soup pizza rice pasta salad cheese curry noodles pancakes apples mango sushi tacos cake beans toast stew".split()
_TECHNICAL = """
token tokens attention cache caching page pages paging paged model models memory server servers cluster pod pods node nodes operator
gateway kernel kernels batch request response prompt answer decode prefill scheduler block table query value weight layer head
language python kubernetes octavo llama prefix swapping joke jokes number word letter spelling counting copy hello goodbye world
computer program software internet keyboard screen strawberry blueberry pineapple hippopotamus mississippi beautiful because
friendship knowledge language different important necessary definitely tomorrow yesterday breakfast chocolate elephant
""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LANGUAGES = "French German Spanish Italian Dutch Polish Greek Turkish Korean Arabic Hindi Swedish".split()
REAL_WORDS = sorted(
    {*NOUNS, *ADJECTIVES, *VERBS_PAST, *NAMES, *CITIES, *COLOURS, *ANIMALS, *FOODS, *_TECHNICAL, *DAYS, *LANGUAGES}
)

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t tr v w y z".split()
_VOWELS = "a e i o u a e i o u ai ea ee oo ou".split()
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "k", "nd", "rt", "x"]


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables that is (almost always) no English word."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables) + rng.choice(_CODAS)


def word(rng: random.Random, made_up: float = 0.25) -> str:
    """A noun or an adjective, or, with probability `made_up`, a made-up word."""
    if rng.random() < made_up:
        return made_up_word(rng)
    return rng.choice(NOUNS) if rng.random() < 0.75 else rng.choice(ADJECTIVES)


def name(rng: random.Random) -> str:
    """A first name: half of them real, half made up."""
    return rng.choice(NAMES) if rng.random() < 0.5 else made_up_word(rng).capitalize()


def number(rng: random.Random, digits: int | None = None) -> int:
    """A number of `digits` digits (default: one to six, mostly three to five)."""
    digits = digits or rng.choice((1, 2, 2, 3, 3, 4, 4, 4, 5, 6))
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def sentence(rng: random.Random) -> str:
    """A short grammatical sentence about nothing in particular."""

    def adj() -> str:
        return rng.choice(ADJECTIVES)

    def noun() -> str:
        return rng.choice(NOUNS)

    def verb() -> str:
        return rng.choice(VERBS_PAST)

    form = rng.randrange(6)
    if form == 0:
        return f"The {adj()} {noun()} {verb()} the {noun()}."
    if form == 1:
        return f"{name(rng)} {verb()} a {adj()} {noun()} near the {noun()}."
    if form == 2:
        return f"Every {rng.choice(DAYS)} the {noun()} was {adj()} and {adj()}."
    if form == 3:
        return f"In {rng.choice(CITIES)}, {name(rng)} {verb()} the {noun()} and {verb()} the {adj()} {noun()}."
    if form == 4:
        return f"There were {rng.randrange(2, 100)} {adj()} things behind the {noun()}."
    return f"The {noun()} is {adj()}, but the {noun()} is {adj()}."


def prose(rng: random.Random, words: int) -> str:
    """About `words` words of filler, in one of several textures: prose, a repeated sentence, words, numbers."""
    texture = rng.random()
    if texture < 0.2:
        one = sentence(rng)
        return " ".join([one] * max(1, words // len(one.split())))
    if texture < 0.4:
        return " ".join(word(rng) for _ in range(words))
    if texture < 0.5:
        return ", ".join(str(number(rng)) for _ in range(max(1, words // 3)))
    parts: list[str] = []
    count = 0
    while count < words:
        parts.append(sentence(rng))
        count += len(parts[-1].split())
    return " ".join(parts)
