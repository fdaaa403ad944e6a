"""The jokes, in our own wording, each with the subjects one may ask for. One joke a line: subjects | joke."""

from __future__ import annotations

_TABLE = """
page book paper | Why did the page go to the doctor? It felt a little torn.
page book library | Why did the book join the gym? It wanted a stronger spine.
cache memory computer | Why did the cache break up with the disk? It needed someone who answers faster.
cache memory fridge | What is a cache's favourite meal? Leftovers, served instantly.
token money word | Why did the token refuse to pay for lunch? It was already being counted.
token language model | What did one token say to the next? I predicted you would be here.
gpu computer heat | Why did the GPU bring a fan to the party? Things were about to get heated.
gpu computer work | Why is a GPU good at parties? It can hold ten thousand conversations at once.
kubernetes pod whale | Why do pods never feel lonely? There is always a replica around.
kubernetes pod sailor | Why did the pod cross the cluster? It was evicted from the other side.
server waiter restaurant | Why did the server take a nap? It had too many requests and not enough rest.
programmer light computer | How many programmers does it take to change a light bulb? None, they mark it as working in the dark.
programmer coffee work | Why do programmers love coffee? Because without it nothing compiles.
programmer party bug | Why was the programmer calm at the picnic? He was used to bugs.
computer cold winter | Why was the computer cold? Somebody left its windows open.
computer snack food | What does a computer eat at midnight? Just a few bytes.
robot holiday work | Why did the robot take a holiday? It needed to recharge.
robot dance music | Why was the robot a bad dancer? It kept doing the same loop.
attention school teacher | Why was the attention layer top of its class? It listened to everyone and weighed every word.
model memory name | Why did the language model carry an umbrella? It saw a high chance of rain in the next token.
temperature model weather | Why did the model put on a sweater? Someone set its temperature to zero.
octopus sea fish | Why did the octopus win every card game? It always had a better hand, or eight.
octopus kubernetes sea | Why did the octopus learn Kubernetes? Finally, a job for all of its arms.
fish sea school | Why are fish so clever? They spend their whole lives in schools.
fish music sea | Why did the fish refuse to play the piano? You cannot tune a fish.
cat computer mouse | Why did the cat sit on the laptop? It wanted to keep an eye on the mouse.
cat music animal | What is a cat's favourite song? Anything with a good purr-cussion section.
dog tree animal | Why did the dog sit under the tree? It liked the sound of the bark.
dog clock time | Why did the dog bring a clock to bed? It wanted to be a watch dog.
cow music animal | Where do cows go on Friday night? To the moo-vies.
chicken road animal | Why did the chicken stop in the middle of the road? It wanted to lay it on the line.
bee hair animal | Why do bees have sticky hair? They use honeycombs.
owl night animal | Why did the owl start a podcast? It had a lot of questions, mostly who.
snail car slow | Why did the snail paint an S on its car? So that people would say, look at that S-car go.
bread money baker | Why did the baker work so late? He really needed the dough.
egg food breakfast | Why did the egg hide from the cook? It was a little chicken.
tomato food salad | Why did the tomato turn red? It saw the salad dressing.
cheese food sad | What do you call cheese that is not yours? Nacho cheese.
coffee morning food | Why did the coffee call the police? It got mugged.
banana doctor food | Why did the banana see a doctor? It was not peeling well.
ghost night school | Why are ghosts such bad liars? You can see right through them.
skeleton party bone | Why did the skeleton stay at home? It had no body to go with.
math book number | Why was the math book so sad? It had too many problems.
number math six | Why was six afraid of seven? Because seven ate nine.
clock time food | Why did the clock go back for seconds? It was still hungry.
bicycle tired road | Why did the bicycle fall over? It was two tired.
moon space money | How does the moon cut its hair? Eclipse it.
space planet party | How do you throw a party in space? You planet.
sun school light | Why did the sun skip college? It already had a million degrees.
cloud computer weather | Why did the cloud never finish its work? It kept drifting off.
mountain funny rock | Why are mountains so funny? They are hill areas.
pirate letter sea | What is a pirate's favourite letter? You would think it is R, but it is the C.
pencil school paper | Why did the pencil get a prize? It had a very good point.
"""


def _parse() -> dict[str, tuple[str, ...]]:
    rows = (line.split(" | ") for line in _TABLE.strip().splitlines())
    return {joke: tuple(subjects.split()) for subjects, joke in rows}


JOKES: dict[str, tuple[str, ...]] = _parse()
SUBJECTS: tuple[str, ...] = tuple(sorted({subject for subjects in JOKES.values() for subject in subjects}))

REQUESTS = (
    "Tell me a joke",
    "Tell me a joke.",
    "Tell me a good joke.",
    "Tell a joke",
    "Do you know a joke?",
    "I want to hear a joke.",
    "Make me laugh.",
    "Can you tell me a joke?",
    "Say something funny.",
    "A joke, please.",
    "Give me a joke.",
    "Know any jokes?",
    "I need a laugh.",
    "Got a joke for me?",
    "Tell me something funny.",
    "Cheer me up with a joke.",
    "Joke please!",
    "Do you have a joke?",
    "Let me hear a joke.",
    "How about a joke?",
    "Tell us a joke.",
    "Entertain me.",
    "Tell me a short joke.",
    "Tell me your favourite joke.",
    "Could you tell me a joke?",
    "Would you tell me a joke?",
    "Any good jokes today?",
    "Be funny.",
    "Hey, tell me a joke",
    "joke",
    "can u tell me a joke",
    "tell me something that makes me smile",
    "Do you know a good one?",
)
MORE = (
    "Another one.",
    "Another joke, please.",
    "Tell me another one.",
    "One more.",
    "One more joke!",
    "Tell me another joke.",
    "Ha, another!",
    "Do you know another one?",
    "Give me another joke.",
    "Haha, one more please.",
    "More!",
)
ABOUT = (
    "Tell me a joke about a {s}.",
    "Do you know a joke about {s}?",
    "A joke about a {s}, please.",
    "Give me a joke about a {s}.",
    "Make a joke about a {s}.",
    "I want a joke about a {s}.",
    "Can you tell me a joke about a {s}?",
    "Know a joke with a {s}?",
    "Tell me a {s} joke.",
    "tell me a joke about {s}s",
    "Do you know any jokes about {s}s?",
    "A {s} joke!",
)
SEVERAL = (
    "Tell me {n} jokes.",
    "Give me {n} jokes.",
    "I want to hear {n} jokes.",
    "{n} jokes, please.",
    "Do you know {n} jokes?",
    "Can you tell me {n} jokes?",
)
NO_JOKE_ABOUT = "I know no joke about {s}, but here is another one: "
ABOUT_MORE = (
    "And about {s}?",
    "Now one about a {s}.",
    "One about {s}, please.",
    "tell me one about {s}s",
    "and about {s}",
    "And one about a {s}?",
    "Do you have one about a {s}?",
)
