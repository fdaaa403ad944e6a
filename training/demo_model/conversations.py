"""Conversations: episodes of all skills in a row, with the facts told early and asked for late."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from . import skills_json, skills_memory, skills_talk, skills_text, skills_tools
from .episode import Context, Episode, Message
from .smalltalk import PERSONA_PROMPTS, SYSTEM_PROMPTS
from .words import NAMES, made_up_word, prose

Generator = Callable[[Context], Episode]
# weight of each skill: (in short conversations, in long ones)
SKILLS: dict[Generator, tuple[float, float]] = {
    skills_text.copying: (3.0, 1.5),
    skills_text.arithmetic: (8.0, 4.0),
    skills_text.spelling: (4.0, 2.0),
    skills_text.counting: (2.0, 1.5),
    skills_memory.telling: (2.0, 2.0),
    skills_memory.asking: (3.0, 5.0),
    skills_memory.haystack: (0.7, 1.0),
    skills_memory.lookup: (1.5, 1.0),
    skills_memory.unknown: (0.5, 0.3),
    skills_memory.note: (0.2, 0.5),
    skills_json.in_json: (2.0, 1.5),
    skills_talk.joke: (2.0, 1.0),
    skills_talk.explanation: (2.0, 1.0),
    skills_talk.smalltalk: (1.5, 1.0),
    skills_talk.outside: (1.5, 1.0),
    skills_talk.story: (0.5, 0.3),
}
_RETRIEVAL = (
    skills_text.copying,
    skills_memory.lookup,
    skills_memory.asking,
    skills_memory.telling,
    skills_memory.haystack,
)
_CHARACTERS_PER_TOKEN = 2.8


def size(messages: list[Message]) -> float:
    """About how many tokens the messages take."""
    return sum(
        len(str(m["content"])) + 60 * len(m.get("tool_calls", ())) for m in messages
    ) / _CHARACTERS_PER_TOKEN + 6.0 * len(messages)


def opening(c: Context) -> list[Message]:
    """A system message, or none: plain, with a name for the assistant, with a fact about the user."""
    rng = c.rng
    kind = rng.random()
    if kind < 0.55:
        return []
    text = ""
    if kind < 0.8:
        text = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.8 else prose(rng, rng.randrange(3, 60))
    if kind > 0.75:
        c.me = rng.choice(NAMES) if rng.random() < 0.7 else made_up_word(rng).capitalize()
        text = f"{rng.choice(PERSONA_PROMPTS).format(me=c.me)} {text}".strip()
    if rng.random() < 0.25:
        name = rng.choice(NAMES) if rng.random() < 0.5 else made_up_word(rng).capitalize()
        skills_memory.tell(c, "name", name)  # notes the fact
        text = f"{text} {rng.choice(('The user is called {n}.', 'The name of the user is {n}.', 'You talk to {n}.')).format(n=name)}".strip()
    return [{"role": "system", "content": text}]


def conversation(rng: Random, tokens: int, retrieval: bool = False) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages of at least about `tokens` tokens, and the tools given. `retrieval`: copying and remembering alone."""
    c = Context(rng)
    kind = rng.random()
    if kind < 0.06 and tokens <= 512:
        return skills_json.in_json_by_system(c).messages, []
    messages = opening(c)
    box = skills_tools.toolbox(c) if kind > 0.8 else {}
    long = tokens > 1000
    skills = [s for s in SKILLS if not (box and s is skills_talk.outside)]
    if retrieval:
        skills = [s for s in skills if s in _RETRIEVAL]
    weights = [SKILLS[s][long] for s in skills]
    total = size(messages) + 60.0 * len(c.tools)
    while total < tokens * 1.1:
        c.tokens_left = max(60, int(tokens - total))
        if box and rng.random() < 0.6:
            episode = skills_tools.no_call(c, box) if rng.random() < 0.15 else skills_tools.call(c, box)
        else:
            episode = rng.choices(skills, weights)[0](c)
        messages += episode.messages
        total += size(episode.messages)
    return messages, c.tools
