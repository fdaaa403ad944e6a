"""Jokes, explanations, small talk, little stories, and the plain no."""

from __future__ import annotations

from typing import Any

from .episode import Context, Episode, turn
from .explanations import AGAIN, QUESTIONS, TOPICS
from .jokes import ABOUT, ABOUT_MORE, JOKES, MORE, NO_JOKE_ABOUT, REQUESTS, SEVERAL, SUBJECTS
from .smalltalk import OUTSIDE, OUTSIDE_HELD_OUT, REFUSALS, SMALLTALK
from .words import ADJECTIVES, ANIMALS, CITIES, FOODS, LANGUAGES, NOUNS, made_up_word, name

_PLAIN_NOUNS = [n for n in NOUNS if n != "page"]  # what a page is can be explained
_HEROES = "dragon robot penguin squirrel princess knight pirate wizard unicorn octopus snail bee elephant monkey pony sheep king queen girl boy".split()
_OTHER_SUBJECTS = [n for n in NOUNS if n not in SUBJECTS]
_OPENERS = (
    "",
    "",
    "",
    "",
    "",
    "Please: ",
    "Hey, ",
    "Hi! ",
    "Hello. ",
    "Now ",
    "OK, ",
    "So, ",
    "Well, ",
    "One question: ",
    "And now: ",
    "Great. ",
)


def asked(c: Context, text: str) -> str:
    """`text` as different people type it: with an opener, without capitals, without a full stop."""
    opener = c.rng.choice(_OPENERS)
    if opener and not opener.endswith(("! ", ". ", ": ")):
        text = text[0].lower() + text[1:] if not text[:2].isupper() else text
    text = opener + text
    style = c.rng.random()
    if style < 0.12:
        text = text.lower()
    if style < 0.2 or style > 0.9:
        text = text.rstrip(".?!")
    if 0.5 < style < 0.55:
        text = f"{text.rstrip('.?!')}{c.rng.choice((' please', ', please.', ' pls', ' thanks', '??', ' :)', '...'))}"
    return text


def _next_jokes(c: Context, count: int) -> list[str]:
    """The first joke of a conversation is any; the next ones follow in the table's order, so that none comes twice.

    "One that was not told yet" alone is too vague a rule for a small model: decoding greedily, it told the same again.
    """
    order = list(JOKES)
    start = order.index(c.last_joke) + 1 if c.last_joke else c.rng.randrange(len(order))
    return [order[(start + i) % len(order)] for i in range(count)]


def _told(c: Context, text: str, answer: str, last: str, grader: str, expected: Any) -> Episode:
    c.last_joke = last
    return turn("jokes", text, answer, grader, expected)


def joke(c: Context) -> Episode:
    """A joke, several of them, or one on a subject."""
    kind = c.rng.random()
    if kind < 0.28:
        subject = c.rng.choice(SUBJECTS)
        forms = ABOUT_MORE if c.last_joke and c.rng.random() < 0.5 else ABOUT
        text = c.draw_same(lambda: asked(c, c.rng.choice(forms).format(s=subject)))
        answer = c.rng.choice(
            [j for j in JOKES if subject in JOKES[j] and j != c.last_joke] or [j for j in JOKES if subject in JOKES[j]]
        )
        return _told(c, text, answer, answer, "joke", subject)
    if kind < 0.34:
        count = c.rng.choice((2, 2, 3, 3, 4, 5))
        number = c.rng.choice((str(count), ("two", "three", "four", "five")[count - 2]))
        text = c.draw_same(lambda: asked(c, c.rng.choice(SEVERAL).format(n=number)))
        jokes = _next_jokes(c, count)
        return _told(c, text, "\n".join(f"{i}. {j}" for i, j in enumerate(jokes, 1)), jokes[-1], "jokes", count)
    (answer,) = _next_jokes(c, 1)
    if kind < 0.4:
        subject = c.draw_same(lambda: c.rng.choice(_OTHER_SUBJECTS))
        text = asked(c, c.rng.choice(ABOUT).format(s=subject))
        return _told(
            c, text, NO_JOKE_ABOUT.format(s=subject) + answer, answer, "joke_instead", NO_JOKE_ABOUT.format(s=subject)
        )
    phrases = MORE if c.last_joke and c.rng.random() < 0.6 else REQUESTS
    text = "Tell me a joke" if kind > 0.93 and not c.held_out else c.draw_same(lambda: asked(c, c.rng.choice(phrases)))
    return _told(c, text, answer, answer, "joke", None)


def explanation(c: Context) -> Episode:
    """One of the topics, under one of its names."""
    key = c.rng.choice(list(TOPICS) + ["token", "attention", "kv_cache", "paging"] * 2)
    topic = TOPICS[key]
    text = c.draw_same(lambda: asked(c, c.rng.choice(QUESTIONS).format(x=c.rng.choice(topic.names))))
    first, again = c.rng.sample(topic.answers, 2)
    episode = turn("explanations", text, first, "contains_all", list(topic.must))
    if not c.held_out and c.rng.random() < 0.15:
        more = c.rng.choice(AGAIN)
        episode.messages += [{"role": "user", "content": more}, {"role": "assistant", "content": again}]
    return episode


def smalltalk(c: Context) -> Episode:
    """Greetings and the like; who the model is follows the system prompt."""
    intent = c.rng.choice([*SMALLTALK, "who", "who", "hello", "can"])

    def say() -> str:
        text = asked(c, c.rng.choice(SMALLTALK[intent][0]))
        return text if intent != "hello" or c.rng.random() < 0.8 else text + f", {c.me}"

    text = c.draw_same(say)
    answers = [a.format(me=c.me) for a in SMALLTALK[intent][1]]
    return turn("small talk", text, c.rng.choice(answers), "one_of", answers)


def outside(c: Context) -> Episode:
    """Something the model cannot do: it says so and says what it can. Some wordings are held out altogether."""
    patterns = OUTSIDE_HELD_OUT if c.held_out and c.rng.random() < 0.5 else OUTSIDE

    def say() -> str:
        rng = c.rng
        values = {
            "n": rng.choice(_PLAIN_NOUNS),
            "c": rng.choice(CITIES),
            "p": name(rng),
            "w": made_up_word(rng).capitalize(),
            "w2": made_up_word(rng),
        }
        more = {"f": rng.choice(FOODS), "l": rng.choice(LANGUAGES), "y": str(rng.randrange(1800, 2030))}
        return asked(c, rng.choice(patterns).format(**values, **more))

    return turn("out of scope", c.draw_same(say), c.rng.choice(REFUSALS), "refusal", None)


_STORY_REQUESTS = (
    "Tell me a story about a {a}.",
    "Tell me a short story about a {a}.",
    "A story about a {a}, please.",
    "Write a little story about a {a}.",
    "Do you know a story about a {a}?",
    "Can you tell me a bedtime story about a {a}?",
    "Make up a story with a {a}.",
)


def story(c: Context) -> Episode:
    """A little story of five sentences about an animal."""
    rng = c.rng
    animal = rng.choice(ANIMALS if rng.random() < 0.5 else _HEROES if rng.random() < 0.6 else _PLAIN_NOUNS)
    text = (
        "Tell me a story."
        if rng.random() < 0.1 and not c.held_out
        else c.draw_same(
            lambda: asked(
                c,
                rng.choice(_STORY_REQUESTS).format(a=f"{rng.choice([*ADJECTIVES[:40], '', '', ''])} {animal}".strip()),
            )
        )
    )
    who, friend = rng.sample(
        ["Pip", "Milo", "Luna", "Toby", "Rosa", "Bruno", "Hazel", "Nina", "Otto", "Ida", "Felix", "Mabel"], 2
    )
    adjective, thing = (
        rng.choice(("small", "curious", "brave", "clever", "shy", "merry")),
        rng.choice(("kite", "lantern", "map", "drum", "boat", "shell", "key", "clock")),
    )
    other = rng.choice([a for a in ANIMALS if a != animal])
    home = rng.choice(
        ("by a quiet lake", "at the edge of a forest", "in an old garden", "on a windy hill", "near the harbor")
    )
    article = "an" if adjective[0] in "aeiou" else "a"
    article_other = "an" if other[0] in "aeiou" else "a"
    middle = rng.choice(
        (
            f"One morning {who} found a {thing} and wanted to know whose it was.",
            f"One day {who} lost a {thing} and looked for it everywhere.",
            f"One evening the wind blew a {thing} right to the door.",
        )
    )
    help_ = rng.choice(
        (
            f"{article_other.capitalize()} {other} named {friend} came along and offered to help.",
            f"Luckily {friend}, {article_other} {other}, knew what to do.",
        )
    )
    end = rng.choice(
        (
            f"Together they shared the {thing}, and from that day they were best friends.",
            f"They walked until the stars came out, and the {thing} led them safely home.",
            f"In the end they laughed, drank tea and put the {thing} above the fireplace.",
        )
    )
    return turn(
        "stories",
        text,
        f"Once upon a time, {article} {adjective} {animal} named {who} lived {home}. {middle} {help_} {end}",
        "story",
        animal,
    )
