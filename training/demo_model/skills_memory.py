"""Remembering: a fact is told, other things are talked about, the fact is asked for. Also look-ups in long texts."""

from __future__ import annotations

import json

from .episode import Context, Episode, Message, turn
from .words import ANIMALS, CITIES, COLOURS, FOODS, NOUNS, made_up_word, name, number, prose, word

_TOLD = (
    "My {k} is {v}.",
    "Remember that my {k} is {v}.",
    "By the way, my {k} is {v}.",
    "Please remember: my {k} is {v}.",
    "Just so you know, my {k} is {v}.",
    "my {k} is {v}",
    "Remember: my {k} is {v}.",
    "Do not forget that my {k} is {v}.",
)
_ASKED = (
    "What is my {k}?",
    "Do you remember my {k}?",
    "Tell me my {k}.",
    "What was my {k} again?",
    "Do you still know my {k}?",
    "And what is my {k}?",
    "what is my {k}",
)
_TOLD_NAME = (
    "My name is {v}.",
    "I am {v}.",
    "Hi, I'm {v}.",
    "Hello, my name is {v}.",
    "Call me {v}.",
    "You can call me {v}.",
    "My name is {v}. Remember it.",
    "I am called {v}.",
    "my name is {v}",
    "Hi! My name is {v}.",
    "I'm {v}.",
    "{v} is my name.",
    "This is {v} speaking.",
    "Hello! I am {v}.",
    "hi im {v}",
    "Remember my name: {v}.",
    "The name is {v}.",
)
_ASKED_NAME = (
    "What is my name?",
    "Do you remember my name?",
    "Who am I?",
    "What's my name?",
    "Tell me my name.",
    "What was my name again?",
    "Do you know what I am called?",
    "what is my name",
    "Say my name.",
    "And what is my name?",
    "Please tell me my name.",
    "whats my name",
    "Do you know my name?",
    "Can you tell me my name?",
    "So, what is my name?",
    "How am I called?",
)
_TOLD_NUMBER = (
    "Remember the number {v}.",
    "Please remember this number: {v}.",
    "The number is {v}.",
    "Keep the number {v} in mind.",
    "Remember this number: {v}",
    "The number to remember is {v}.",
    "Please keep in mind the number {v}.",
    "Here is a number: {v}. Remember it.",
    "I will ask you for this number later: {v}.",
    "Remember {v}.",
    "Memorize the number {v}.",
    "The secret number is {v}.",
)
_ASKED_NUMBER = (
    "What is the number?",
    "Which number did I ask you to remember?",
    "What was the number?",
    "Tell me the number.",
    "What number did I tell you?",
    "Do you remember the number?",
    "What number should you remember?",
    "Which number was it?",
    "Which number did I give you?",
    "What is the number I told you?",
    "Say the number.",
    "What was the secret number?",
    "Repeat the number I told you.",
    "Can you tell me the number?",
)
_TOLD_CODE = (
    "The {k} is {v}.",
    "Remember that the {k} is {v}.",
    "Note: the {k} is {v}.",
    "Please keep this: the {k} is {v}.",
    "Remember: the {k} is {v}.",
    "the {k} is {v}",
    "Do not forget: the {k} is {v}.",
)
_ASKED_CODE = ("What is the {k}?", "Tell me the {k}.", "Do you remember the {k}?", "What was the {k}?")
_SHARED = (
    "password",
    "secret word",
    "magic word",
    "code",
    "pin",
    "wifi password",
    "code word",
    "address",
    "meeting place",
    "secret code",
    "key",
    "answer",
    "secret",
    "word of the day",
)
_ACKS = ("OK, I will remember that.", "Got it.", "I will keep it in mind.", "Noted!", "All right, I have noted that.")
_CORRECTED = (
    "Actually, {k} is {v}.",
    "No, {k} is {v}.",
    "I was wrong, {k} is {v}.",
    "Sorry, {k} is {v}.",
    "Correction: {k} is {v}.",
    "Now {k} is {v}.",
)
_UNKNOWN = ("You have not told me that yet.", "I do not know, you have not told me yet.")
_PERSONAL = (
    "lucky number",
    "favourite colour",
    "favourite animal",
    "favourite food",
    "city",
    "dog's name",
    "cat's name",
    "age",
    "best friend's name",
    "room number",
    "locker number",
    "favourite word",
    "sister's name",
    "password",
    "favourite number",
    "phone number",
    "nickname",
)


def _shared(key: str) -> bool:
    return key in _SHARED or " of the " in key


def _value(c: Context, key: str) -> str:
    rng = c.rng
    if key == "name" or key.endswith("'s name") or key == "nickname":
        return c.draw_same(lambda: name(rng))
    if key == "age":
        return str(rng.randrange(3, 100))
    if key.endswith(("number", "code", "pin")):
        return c.draw_same(lambda: str(number(rng, rng.choice((2, 3, 4, 4, 5, 6, 7)))))
    pools = {"favourite colour": COLOURS, "favourite animal": ANIMALS, "favourite food": FOODS, "city": CITIES}
    if key in pools and rng.random() < 0.8:
        return rng.choice(pools[key])
    return c.draw_same(lambda: made_up_word(rng) if rng.random() < 0.5 else rng.choice(NOUNS))


def _new_key(c: Context) -> str:
    kind = c.rng.random()
    if kind < 0.3:
        return "name"
    if kind < 0.5:
        return "number"
    if kind < 0.8:
        return c.rng.choice(_PERSONAL)
    if kind < 0.88:
        return c.rng.choice(_SHARED)
    return f"{c.rng.choice(('code', 'number', 'secret word', 'price'))} of the {c.rng.choice(NOUNS)}"


def tell(c: Context, key: str | None = None, value: str | None = None) -> tuple[str, str]:
    """A sentence that states a new fact, which is noted in the context, and a fitting reply."""
    rng = c.rng
    key = key or _new_key(c)
    if key in c.facts and key in ("name", "number") and rng.random() < 0.3:
        value = _value(c, key)  # the user corrects himself: the last word counts
        c.last_fact = key
        c.facts[key] = (value, (f"Your name is {value}." if key == "name" else f"The number is {value}."))
        return rng.choice(_CORRECTED).format(k="my name" if key == "name" else "the number", v=value), rng.choice(_ACKS)
    if key in c.facts:
        key = f"code of the {rng.choice(NOUNS)}"
    c.last_fact = key
    value = value or _value(c, key if "code of" not in key and "price of" not in key else "code")
    forms: tuple[str, ...]
    if key == "name":
        forms, reply, answer = _TOLD_NAME, f"Nice to meet you, {value}!", f"Your name is {value}."
    elif key == "number":
        forms, reply, answer = _TOLD_NUMBER, f"I will remember the number {value}.", f"The number is {value}."
    elif _shared(key):
        forms, reply, answer = _TOLD_CODE, f"Noted: the {key} is {value}.", f"The {key} is {value}."
    else:
        forms, reply, answer = _TOLD, f"I will remember that your {key} is {value}.", f"Your {key} is {value}."
    c.facts[key] = (value, answer)
    return rng.choice(forms).format(k=key, v=value), reply if rng.random() < 0.4 else rng.choice(_ACKS)


def ask(c: Context, key: str) -> str:
    """A question for the fact `key`."""
    forms = (
        _ASKED_NAME if key == "name" else _ASKED_NUMBER if key == "number" else _ASKED_CODE if _shared(key) else _ASKED
    )
    return c.rng.choice(forms).format(k=key)


def telling(c: Context) -> Episode:
    """The user states one fact, or two."""
    if c.rng.random() < 0.2:
        (one, _), (two, _) = tell(c), tell(c)
        text, reply = f"{one} {two}", c.rng.choice(_ACKS)
    elif "name" not in c.facts and "city" not in c.facts and c.rng.random() < 0.08:
        tell(c, "name")
        tell(c, "city")
        form = c.rng.choice(
            (
                "I am {n} and I live in {c}.",
                "My name is {n} and I come from {c}.",
                "I'm {n} from {c}.",
                "Hi! I am {n}, my city is {c}.",
            )
        )
        text, reply = form.format(n=c.facts["name"][0], c=c.facts["city"][0]), c.rng.choice(_ACKS)
    else:
        text, reply = tell(c)
    return turn("recall", text, reply, "any", None)


def asking(c: Context) -> Episode:
    """A question for any fact told so far, or, rarely, for one never told."""
    if not c.facts:
        return telling(c)
    if c.rng.random() < 0.08:
        return unknown(c)
    key = c.rng.choice(list(c.facts))
    value, answer = c.facts[key]
    return turn("recall", ask(c, key), answer, "recall", value)


def unknown(c: Context) -> Episode:
    """A question for a fact nobody told: also a test that no other request's cache leaks in."""
    open_keys = [k for k in ("name", "number", *_PERSONAL) if k not in c.facts]
    answer = c.rng.choice(_UNKNOWN)
    return turn("unknown", ask(c, c.rng.choice(open_keys)), answer, "one_of", list(_UNKNOWN))


def haystack(c: Context, words: int | None = None) -> Episode:
    """One long message with a fact in it; the question at its end, or in the next turn."""
    rng = c.rng
    longest = max(30, min(2600, c.tokens_left // 2))
    words = (
        words
        if words is not None
        else int(rng.choice((rng.randrange(10, 60), rng.randrange(20, longest), rng.randrange(10, longest))))
    )
    fact, reply = tell(c)
    key = c.last_fact
    value, answer = c.facts[key]
    before = prose(rng, int(words * rng.random() * 0.6)) if rng.random() < 0.5 else ""
    gap = rng.choice((" ", "\n", "\n\n"))
    body = gap.join(part for part in (before, fact, prose(rng, max(1, words - len(before.split())))) if part)
    if rng.random() < 0.5:
        return turn("recall", body + gap + ask(c, key), answer, "recall", value)
    first: list[Message] = [{"role": "user", "content": body}, {"role": "assistant", "content": reply}]
    second = turn("recall", ask(c, key), answer, "recall", value)
    return Episode("recall", first + second.messages, second.grader, second.expected)


def note(c: Context) -> Episode:
    """A long text that asks for nothing: the filler between a fact and its question."""
    lead = c.rng.choice(
        (
            "Read this, but say only OK:\n",
            "Here is a text. Just answer OK.\n",
            "Just say OK.\n\n",
            "Take note and answer OK: ",
        )
    )
    text = prose(c.rng, c.rng.randrange(5, max(20, min(1200, c.tokens_left // 3))))
    return turn("notes", lead + text, "OK.", "exact", "OK.")


def lookup(c: Context) -> Episode:
    """A list of pairs and a question for one or several of them: pure retrieval, good for growing induction heads."""
    rng = c.rng
    size = rng.randrange(2, max(4, min(120, c.tokens_left // 14)))

    def table() -> tuple[str, str]:
        keys = list(dict.fromkeys(word(rng, 0.5) for _ in range(size)))
        values = [str(number(rng)) if rng.random() < 0.5 else word(rng, 0.5) for _ in keys]
        return " ".join(keys[:3] + values[:3]), json.dumps([keys, values])

    keys, values = json.loads(c.draw(table))
    rows = rng.choice(("\n", ", ", "; ")).join(f"{k}: {v}" for k, v in zip(keys, values, strict=True))
    wanted = [rng.randrange(len(keys))]
    messages: list[Message] = [
        {
            "role": "user",
            "content": f"{rows}\n{rng.choice(('What is {k}?', 'Which value has {k}?', 'Look up {k}.')).format(k=keys[wanted[0]])}",
        },
        {"role": "assistant", "content": values[wanted[0]]},
    ]
    for _ in range(rng.choice((0, 1, 3))):
        i = rng.randrange(len(keys))
        wanted.append(i)
        messages += [
            {"role": "user", "content": rng.choice(("And {k}?", "What is {k}?")).format(k=keys[i])},
            {"role": "assistant", "content": values[i]},
        ]
    return Episode("look-up", messages, "exact", values[wanted[-1]])
