"""Answering in JSON of a given small schema: the values are in a text, the shape is in the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from .episode import Context, Episode
from .words import ADJECTIVES, ANIMALS, CITIES, COLOURS, DAYS, FOODS, LANGUAGES, NOUNS, made_up_word, name, number, word

# key: (type, clause in the text, value)
_Field = tuple[str, str, Callable[[Random], Any]]
_FIELDS: dict[str, _Field] = {
    "name": ("string", "the name is {v}", name),
    "person": ("string", "it is about {v}", name),
    "age": ("integer", "{v} years old", lambda r: r.randrange(1, 100)),
    "city": ("string", "lives in {v}", lambda r: r.choice(CITIES)),
    "colour": ("string", "likes {v}", lambda r: r.choice(COLOURS)),
    "pet": ("string", "has a {v}", lambda r: r.choice(ANIMALS)),
    "food": ("string", "eats {v}", lambda r: r.choice(FOODS)),
    "day": ("string", "comes on {v}", lambda r: r.choice(DAYS)),
    "language": ("string", "speaks {v}", lambda r: r.choice(LANGUAGES)),
    "price": ("number", "costs {v} euros", lambda r: r.choice((r.randrange(1, 500), round(r.uniform(1, 99), 2)))),
    "quantity": ("integer", "{v} pieces", lambda r: r.randrange(1, 1000)),
    "product": ("string", "the product is a {v}", lambda r: r.choice(NOUNS)),
    "weight": ("number", "weighs {v} kg", lambda r: round(r.uniform(0.1, 90), 1)),
    "room": ("integer", "in room {v}", lambda r: number(r, 3)),
    "id": ("integer", "the id is {v}", number),
    "title": ("string", 'the title is "{v}"', lambda r: f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}".title()),
    "email": ("string", "the email is {v}", lambda r: f"{name(r).lower()}@{r.choice(NOUNS)}.com"),
    "count": ("integer", "the count is {v}", number),
}
# attribute: (keys a schema may use, clause, value)
_ABOUT_PEOPLE: dict[str, tuple[tuple[str, ...], str, Callable[[Random], Any]]] = {
    "age": (("age", "age", "years"), "is {v} years old", lambda r: r.randrange(1, 100)),
    "city": (("city", "city", "town", "home"), "lives in {v}", lambda r: r.choice(CITIES)),
    "colour": (("colour", "color", "favorite_color"), "likes {v}", lambda r: r.choice(COLOURS)),
    "pet": (("pet", "animal"), "has a {v}", lambda r: r.choice(ANIMALS)),
    "food": (("food", "favorite_food", "meal"), "eats {v}", lambda r: r.choice(FOODS)),
    "language": (("language", "speaks"), "speaks {v}", lambda r: r.choice(LANGUAGES)),
}
_YES_NO = ("active", "available", "paid", "open", "new", "ready", "married", "broken")
_LEADS = (
    "Answer in JSON that follows this schema: {s}\n{t}",
    "Use this JSON schema:\n{s}\n\nText: {t}",
    "{t}\n\nWrite this as JSON with the schema {s}",
    "Extract the data as JSON. Schema: {s}\nText: {t}",
    "Turn the text into JSON.\nSchema: {s}\nText: {t}",
    "Schema: {s}\n{t}\nAnswer with JSON only.",
    "{t}\nReturn JSON matching this schema: {s}",
    "Return JSON: {s}. {t}",
    "{s}\n{t}",
    "JSON schema: {s}. {t}",
    "{t} {s}",
)
_KEY_LEADS = (
    "Give me JSON with the keys {k}.\n{t}",
    "{t}\nWrite this as JSON with the keys {k}.",
    "As JSON with {k}: {t}",
    "{t} Give me JSON with {k}.",
    "Extract {k} as JSON: {t}",
    "{t} As JSON, please: {k}",
)
_SYSTEM_LEADS = (
    "Answer only in JSON that follows this schema: {s}",
    "You extract data. Always reply with JSON of this schema:\n{s}",
    "Respond in JSON. Schema: {s}",
)


def _field(rng: Random) -> tuple[str, dict[str, Any], str, Any]:
    """A property: its key, its schema, a clause that states its value, and the value."""
    kind = rng.random()
    if kind < 0.5:
        key = rng.choice(list(_FIELDS))
        type_, clause, make = _FIELDS[key]
        value = make(rng)
        return key, {"type": type_}, clause.format(v=value), value
    if kind < 0.6:
        key, value = rng.choice(_YES_NO), rng.random() < 0.5
        return key, {"type": "boolean"}, f"is {'' if value else 'not '}{key}", value
    if kind < 0.7:
        key = rng.choice(("tags", "items", "colours", "words", "things"))
        values = [word(rng) for _ in range(rng.randrange(1, 5))]
        return (
            key,
            {"type": "array", "items": {"type": "string"}},
            f"the {key} are {', '.join(values)}" if len(values) > 1 else f"the {key} are just {values[0]}",
            values,
        )
    if kind < 0.77:
        key = rng.choice(("size", "level", "mood", "kind"))
        options = {
            "size": ["small", "medium", "large"],
            "level": ["low", "middle", "high"],
            "mood": ["happy", "sad", "calm"],
            "kind": ["toy", "tool", "book"],
        }[key]
        value = rng.choice(options)
        return key, {"type": "string", "enum": options}, f"the {key} is {value}", value
    key = word(rng, 0.3)
    if rng.random() < 0.4:
        amount = number(rng)
        return key, {"type": "integer"}, f"the {key} is {amount}", amount
    text = rng.choice((name(rng), made_up_word(rng), rng.choice(NOUNS)))
    return key, {"type": "string"}, f"the {key} is {text}", text


def _people(c: Context) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """A schema about a person, and sentences about up to three people as one would write them."""
    rng = c.rng
    attributes = rng.sample(list(_ABOUT_PEOPLE), rng.randrange(1, 4))
    keys = {a: rng.choice(_ABOUT_PEOPLE[a][0]) for a in attributes}
    order = ["name", *attributes]
    if rng.random() < 0.3:
        rng.shuffle(order)
    cases: list[tuple[str, dict[str, Any]]] = []
    for _ in range(rng.choice((1, 1, 2, 3))):

        def draw() -> tuple[str, str]:
            who = name(rng)
            values = {a: _ABOUT_PEOPLE[a][2](rng) for a in attributes}
            clauses = [_ABOUT_PEOPLE[a][1].format(v=values[a]) for a in attributes]
            text = f"{who} {', '.join(clauses[:-1])}{' and ' if len(clauses) > 1 else ''}{clauses[-1]}{rng.choice(('.', '.', ''))}"
            expected = {keys.get(k, "name"): who if k == "name" else values[k] for k in order}
            return json.dumps(expected), json.dumps([text, expected])

        text, expected = json.loads(c.draw(draw))
        cases.append((text, expected))
    properties = {keys.get(k, "name"): {"type": "integer" if k == "age" else "string"} for k in order}
    return {"type": "object", "properties": properties, "required": list(properties)}, cases


def make_case(c: Context) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """A schema, a text and the object that the text holds; held out by the values together."""
    rng = c.rng

    def draw() -> tuple[str, str]:
        fields: dict[str, tuple[dict[str, Any], str, Any]] = {}
        for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5))):
            key, schema, clause, value = _field(rng)
            fields.setdefault(key, (schema, clause, value))
        expected = {key: value for key, (_, _, value) in fields.items()}
        clauses = [clause for _, clause, _ in fields.values()]
        if rng.random() < 0.3:
            rng.shuffle(clauses)
        schema = {"type": "object", "properties": {k: s for k, (s, _, _) in fields.items()}, "required": list(fields)}
        if rng.random() < 0.2:
            schema["additionalProperties"] = False
        start = rng.choice(("", "", "Listen: ", "We know this: ", f"{name(rng)} says: ", "Here it is: "))
        text = start + rng.choice((", ", "; ", ". ")).join(clauses) + rng.choice((".", ".", ""))
        text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
        return json.dumps(expected), json.dumps([schema, text, expected])

    schema, text, expected = json.loads(c.draw(draw))
    return schema, text, expected


def in_json(c: Context) -> Episode:
    """The schema comes with the question."""
    more: list[tuple[str, dict[str, Any]]] = []
    if c.rng.random() < 0.35:
        schema, ((text, expected), *more) = _people(c)
    else:
        schema, text, expected = make_case(c)
    lead = c.rng.choice(_LEADS if c.rng.random() < 0.85 else _KEY_LEADS)
    user = lead.format(s=json.dumps(schema), t=text, k=_listed(c, list(expected)))
    answer = json.dumps(expected, ensure_ascii=False)
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    for text, expected in more:
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps(expected, ensure_ascii=False)},
        ]
    return Episode("JSON", messages, "json", {"schema": schema, "value": expected})


def _listed(c: Context, keys: list[str]) -> str:
    keys = [f"the {k}" for k in keys] if c.rng.random() < 0.3 else keys
    return ", ".join(keys) if len(keys) < 2 or c.rng.random() < 0.5 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def in_json_by_system(c: Context) -> Episode:
    """The schema comes in the system message, which must be the conversation's first."""
    more: list[tuple[str, dict[str, Any]]] = []
    if c.rng.random() < 0.5:
        schema, ((text, expected), *more) = _people(c)
    else:
        schema, text, expected = make_case(c)
    system = c.rng.choice(_SYSTEM_LEADS).format(s=json.dumps(schema))
    answer = json.dumps(expected, ensure_ascii=False)
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    ]
    for text, expected in more:
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps(expected, ensure_ascii=False)},
        ]
    return Episode("JSON", messages, "json", {"schema": schema, "value": expected})
