"""Calling a given tool, saying what came back, and not calling one that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

from .episode import Context, Episode, Message, turn
from .smalltalk import NO_TOOL
from .words import CITIES, COLOURS, DAYS, FOODS, LANGUAGES, NOUNS, made_up_word, name, number, word

Arguments = dict[str, Any]
Tool = dict[str, Any]


class Known(NamedTuple):
    """A tool: what it does, its parameters with values, ways to ask for it, and what it may answer with a sentence for it."""

    description: str
    parameters: dict[str, tuple[str, Callable[[Random], Any]]]
    asks: tuple[str, ...]
    result: Callable[[Random, Arguments], tuple[Any, str]]
    shown: Mapping[str, str] = MappingProxyType({})  # parameter -> the name it has in this conversation


def _weather(r: Random, a: Arguments) -> tuple[Any, str]:
    degrees, sky = r.randrange(-10, 40), r.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "clear"))
    return {"temperature": degrees, "sky": sky}, f"It is {degrees} degrees and {sky} in {a['city']}."


def _time(r: Random, a: Arguments) -> tuple[Any, str]:
    clock = f"{r.randrange(24):02}:{r.randrange(60):02}"
    return {"time": clock}, f"It is {clock} in {a['city']}."


def _number_result(key: str, text: str) -> Callable[[Random, Arguments], tuple[Any, str]]:
    def make(r: Random, a: Arguments) -> tuple[Any, str]:
        value = number(r)
        return {key: value}, text.format(v=value, **a)

    return make


def _done(text: str) -> Callable[[Random, Arguments], tuple[Any, str]]:
    return lambda r, a: ({"status": r.choice(("ok", "done"))}, text.format(**a))


def _noun(r: Random) -> str:
    return word(r)


KNOWN: dict[str, Known] = {
    "get_weather": Known(
        "Get the current weather of a city",
        {"city": ("string", lambda r: r.choice(CITIES) if r.random() < 0.7 else made_up_word(r).capitalize())},
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "Weather in {city}?",
            "Tell me the weather in {city}.",
            "What's the weather like in {city}?",
        ),
        _weather,
    ),
    "get_time": Known(
        "Get the local time of a city",
        {"city": ("string", lambda r: r.choice(CITIES))},
        ("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?"),
        _time,
    ),
    "multiply": Known(
        "Multiply two numbers",
        {"a": ("integer", number), "b": ("integer", number)},
        ("Multiply {a} and {b}.", "Use the tool to multiply {a} by {b}."),
        _number_result("result", "{a} times {b} is {v}."),
    ),
    "get_population": Known(
        "Get the population of a city",
        {"city": ("string", lambda r: r.choice(CITIES))},
        ("How many people live in {city}?", "What is the population of {city}?"),
        _number_result("population", "{v} people live in {city}."),
    ),
    "get_stock_price": Known(
        "Get the price of a stock",
        {"symbol": ("string", lambda r: made_up_word(r)[:4].upper())},
        ("What is the stock price of {symbol}?", "How much is {symbol} stock?", "Price of {symbol}?"),
        _number_result("price", "{symbol} costs {v}."),
    ),
    "send_email": Known(
        "Send an email",
        {
            "to": ("string", lambda r: f"{name(r).lower()}@{r.choice(NOUNS)}.com"),
            "subject": ("string", lambda r: f"{word(r)} {word(r)}"),
        },
        ("Send an email to {to} with the subject {subject}.", "Write a mail to {to}, subject {subject}."),
        _done("I have sent the email to {to}."),
    ),
    "set_timer": Known(
        "Set a timer",
        {"minutes": ("integer", lambda r: r.randrange(1, 120))},
        ("Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.", "Timer: {minutes} minutes."),
        _done("The timer is set for {minutes} minutes."),
    ),
    "translate": Known(
        "Translate a word",
        {"text": ("string", _noun), "language": ("string", lambda r: r.choice(LANGUAGES))},
        ("Translate {text} into {language}.", "What is {text} in {language}?", "How do you say {text} in {language}?"),
        lambda r, a: (lambda w: ({"translation": w}, f"{a['text']} in {a['language']} is {w}."))(made_up_word(r)),
    ),
    "search": Known(
        "Search the web",
        {"query": ("string", lambda r: f"{word(r)} {word(r)}")},
        ("Search for {query}.", "Look up {query} on the web.", "Find something about {query}."),
        _number_result("hits", "I found {v} results for {query}."),
    ),
    "play_music": Known(
        "Play a song",
        {"song": ("string", lambda r: f"{word(r)} {word(r)}".title())},
        ("Play {song}.", "Play the song {song}.", "I want to hear {song}."),
        _done("Now playing {song}."),
    ),
    "set_light": Known(
        "Set the light of a room to a colour",
        {
            "room": (
                "string",
                lambda r: r.choice(("kitchen", "hall", "office", "garage", "attic", "cellar", "garden")),
            ),
            "colour": ("string", lambda r: r.choice(COLOURS)),
        },
        ("Set the light in the {room} to {colour}.", "Make the {room} light {colour}."),
        _done("The light in the {room} is {colour} now."),
    ),
    "order_food": Known(
        "Order food",
        {"dish": ("string", lambda r: r.choice(FOODS)), "count": ("integer", lambda r: r.randrange(1, 20))},
        ("Order {count} {dish}.", "I would like to order {count} {dish}, please."),
        _done("I have ordered {count} {dish}."),
    ),
    "create_event": Known(
        "Create a calendar event",
        {"title": ("string", _noun), "day": ("string", lambda r: r.choice(DAYS))},
        ("Create an event called {title} on {day}.", "Put {title} in my calendar for {day}."),
        _done("{title} is in your calendar for {day}."),
    ),
    "convert": Known(
        "Convert euros to another currency",
        {
            "euros": ("integer", number),
            "currency": ("string", lambda r: r.choice(("dollars", "yen", "pounds", "francs", "pesos"))),
        },
        ("How much are {euros} euros in {currency}?", "Convert {euros} euros to {currency}."),
        _number_result("amount", "{euros} euros are {v} {currency}."),
    ),
}
_VERBS = "get find open close start stop check book rent count paint move clean lock unlock order cancel update delete print".split()


def _made_up(rng: Random) -> tuple[str, Known]:
    """A tool nobody has seen: its name, its parameters and its use are drawn, the request says their words."""
    verb, noun = rng.choice(_VERBS), word(rng, 0.2)
    keys = list(dict.fromkeys(word(rng, 0.2) for _ in range(rng.choice((1, 1, 2, 3)))))
    makers: list[tuple[str, Callable[[Random], Any]]] = [("string", _noun), ("string", name), ("integer", number)]
    parameters = {k: rng.choice(makers) for k in keys}
    told = " and ".join(f"{k} {{{k}}}" for k in keys)
    asks = (
        f"{verb.capitalize()} the {noun} with {told}.",
        f"Please {verb} the {noun}, {told}.",
        f"Can you {verb} the {noun} for {told}?",
    )
    return f"{verb}_{noun}", Known(
        f"{verb.capitalize()} the {noun}",
        parameters,
        asks,
        _number_result("result", f"The result for the {noun} is {{v}}."),
    )


def describe(rng: Random, tool: str, known: Known) -> Tool:
    """The tool as an OpenAI request gives it: clients differ in how much they say."""
    properties: dict[str, Any] = {known.shown.get(k, k): {"type": t} for k, (t, _) in known.parameters.items()}
    required = list(properties)
    if rng.random() < 0.4:
        for key, schema in properties.items():
            schema["description"] = rng.choice(
                (
                    f"The {key}",
                    f"The {key} to use",
                    f"{key.capitalize()}, e.g. {word(rng)}",
                    f"The {key}, for example {word(rng)}",
                )
            )
    optional = rng.random() < 0.3
    if optional:  # never filled in, because no request speaks of it
        key, schema = rng.choice(_OPTIONAL)
        properties[key] = dict(schema)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if optional or rng.random() < 0.8:
        parameters["required"] = required
    function: dict[str, Any] = {"name": tool, "parameters": parameters}
    if rng.random() < 0.85:
        function = {"name": tool, "description": known.description, "parameters": parameters}
    return {"type": "function", "function": function}


_OPTIONAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ("verbose", {"type": "boolean"}),
    ("limit", {"type": "integer"}),
    ("format", {"type": "string", "enum": ["short", "long"]}),
)
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "city": ("location", "place", "town", "where", "city_name"),
    "a": ("x", "first", "left"),
    "b": ("y", "second", "right"),
    "to": ("recipient", "address", "receiver"),
    "subject": ("title", "topic", "text"),
    "minutes": ("duration", "time", "length"),
    "text": ("word", "input", "source"),
    "language": ("target", "target_language", "to"),
    "query": ("q", "text", "search_terms"),
    "song": ("title", "name", "track"),
    "room": ("place", "location"),
    "colour": ("color", "value"),
    "dish": ("food", "item", "meal"),
    "count": ("amount", "quantity", "number"),
    "title": ("name", "event"),
    "day": ("date", "when", "weekday"),
    "euros": ("amount", "value"),
    "currency": ("target", "to"),
    "symbol": ("ticker", "stock", "name"),
}


def _renamed(rng: Random, tool: str, known: Known) -> tuple[str, Known]:
    """The same tool under another name with other parameter names: the model must read the list, not know it by heart."""
    subject = tool.split("_", 1)[-1]
    name_ = rng.choice(
        (
            f"get_current_{subject}",
            subject,
            f"fetch_{subject}",
            f"{tool}_now",
            f"my_{tool}",
            f"do_{tool}",
            f"{subject}_{word(rng)}",
            f"{word(rng)}_{tool}",
            f"{tool}_v2",
        )
    )
    shown = {k: rng.choice((*_OTHER_NAMES[k], word(rng))) if rng.random() < 0.7 else k for k in known.parameters}
    if len(set(shown.values())) < len(shown):
        shown = {}
    return name_, known._replace(shown=shown)


def toolbox(c: Context) -> dict[str, Known]:
    """One to four tools, put into the context."""
    rng = c.rng
    box: dict[str, Known] = {}
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        tool, known = (lambda t: (t, KNOWN[t]))(rng.choice(list(KNOWN))) if rng.random() < 0.55 else _made_up(rng)
        if known.description in {k.description for k in box.values()}:
            continue  # two tools for the same thing would leave the choice open
        if tool in KNOWN and rng.random() < 0.6:
            tool, known = _renamed(rng, tool, known)
        box[tool] = known
    c.tools = [describe(rng, tool, known) for tool, known in box.items()]
    return box


def call(c: Context, box: dict[str, Known], with_result: bool | None = None) -> Episode:
    """A request that one of the tools fits; sometimes up to the sentence after the tool has answered."""
    rng = c.rng
    tool = rng.choice(list(box))
    known = box[tool]

    def draw() -> tuple[str, str]:
        arguments = {k: make(rng) for k, (_, make) in known.parameters.items()}
        return tool + json.dumps(arguments), json.dumps(arguments)

    # a tool with few possible calls (a city) is held out by the city and the rest of the box
    arguments: Arguments = json.loads(c.draw(draw))
    user = rng.choice(known.asks).format(**arguments)
    if rng.random() < 0.25:
        user = user[:-1] + rng.choice((" now", " today", " please", ", please", " right now", " for me")) + user[-1]
    shown = {known.shown.get(k, k): v for k, v in arguments.items()}
    calls = [{"type": "function", "function": {"name": tool, "arguments": shown}}]
    messages: list[Message] = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    if not (rng.random() < 0.6 if with_result is None else with_result):
        return Episode("tool calls", messages, "tool_call", {"name": tool, "arguments": shown})
    result, said = known.result(rng, arguments)
    content = json.dumps(result)
    if rng.random() < 0.25:  # some tools answer in plain words
        content = rng.choice((f"{word(rng)} {number(rng)}", f"{number(rng)} {word(rng)}", word(rng), str(number(rng))))
        said = f"The tool says: {content}."
    messages += [{"role": "tool", "content": content}, {"role": "assistant", "content": said}]
    return Episode("tool results", messages, "exact", said)


def no_call(c: Context, box: dict[str, Known]) -> Episode:
    """A request for which another tool would be needed: no call, a plain word."""
    rng = c.rng
    offered = {known.description for known in box.values()}

    def draw() -> str:
        _, known = rng.choice([(t, k) for t, k in KNOWN.items() if k.description not in offered])
        return rng.choice(known.asks).format(**{k: make(rng) for k, (_, make) in known.parameters.items()})

    return turn("no fitting tool", c.draw_same(draw), rng.choice(NO_TOOL), "one_of", list(NO_TOOL))
