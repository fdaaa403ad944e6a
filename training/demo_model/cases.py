"""The held-out prompts that `score.py` asks, by skill; the same ones for the same seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from tokenizers import Tokenizer

from . import skills_json, skills_memory, skills_talk, skills_text, skills_tools
from .chat_format import render
from .conversations import SKILLS
from .episode import Context, Episode, Message
from .words import prose

DISTANCES = (0, 50, 200, 500, 1000, 1500, 2000, 3000, 4000, 6000, 7800)
_FILLER = [
    s
    for s in SKILLS
    if s not in (skills_memory.telling, skills_memory.asking, skills_memory.haystack, skills_memory.unknown)
]


@dataclass
class Case:
    """A prompt and how its answer is graded."""

    skill: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    grader: str
    expected: Any


def _case(skill: str, history: list[Message], episode: Episode, tools: list[dict[str, Any]]) -> Case:
    return Case(skill, history + episode.messages[:-1], tools, episode.grader, episode.expected)


def _length(tokenizer: Tokenizer, messages: list[Message]) -> int:
    return len(tokenizer.encode(render(messages)).ids)


def recall_at(rng: Random, tokenizer: Tokenizer, distance: int) -> Episode:
    """A fact, about `distance` tokens of other things (turns, or one long text), and the question for the fact."""
    c = Context(rng, held_out=True)
    key = rng.choice(("name", "number"))
    fact, _ = skills_memory.tell(c, key)
    value, answer = c.facts[key]
    filler = Context(Random(rng.random()))
    if distance and rng.random() < 0.5:
        text = prose(rng, distance)
        ids = tokenizer.encode(text).ids[:distance]
        body = f"{fact}\n{tokenizer.decode(ids)}\n"
        messages: list[Message] = [{"role": "user", "content": body + skills_memory.ask(c, key)}]
    else:
        messages = [{"role": "user", "content": fact}, {"role": "assistant", "content": "Got it."}]
        told = _length(tokenizer, messages)
        while (gap := _length(tokenizer, messages) - told) < distance:
            filler.tokens_left = max(30, (distance - gap) // 2)
            episode = rng.choice(_FILLER)(filler)
            if gap + _length(tokenizer, episode.messages) <= distance + 60:
                messages += episode.messages
        messages.append({"role": "user", "content": skills_memory.ask(c, key)})
    messages.append({"role": "assistant", "content": answer})
    return Episode("recall", messages, "recall", value)


def _in_conversation(rng: Random) -> tuple[list[Message], Episode]:
    """Some turns of any skills, then a held-out prompt of any skill."""
    c = Context(rng)
    history: list[Message] = []
    for _ in range(rng.randrange(2, 7)):
        c.tokens_left = 400
        history += rng.choice(list(SKILLS))(c).messages
    c.held_out = True
    skills = [s for s in SKILLS if s not in (skills_memory.telling, skills_memory.haystack)]
    episode = rng.choice(skills)(c)
    while episode.grader == "any":
        episode = rng.choice(skills)(c)
    return history, episode


def _with_tools(rng: Random, kind: str) -> tuple[Episode, list[dict[str, Any]]]:
    c = Context(rng, held_out=True)
    box = skills_tools.toolbox(c)
    if kind == "no fitting tool":
        return skills_tools.no_call(c, box), c.tools
    return skills_tools.call(c, box, with_result=kind == "tool results"), c.tools


_ALONE: dict[str, Callable[[Context], Episode]] = {
    "jokes": skills_talk.joke,
    "explanations": skills_talk.explanation,
    "stories": skills_talk.story,
    "small talk": skills_talk.smalltalk,
    "out of scope": skills_talk.outside,
    "arithmetic": skills_text.arithmetic,
    "spelling": skills_text.spelling,
    "counting": skills_text.counting,
    "copying": skills_text.copying,
    "look-up": skills_memory.lookup,
    "never told": skills_memory.unknown,
    "JSON, schema from user": skills_json.in_json,
    "JSON, schema from system": skills_json.in_json_by_system,
}
SKILL_NAMES = (
    *_ALONE,
    "tool calls",
    "tool results",
    "no fitting tool",
    "mixed conversation",
    *(f"recall at {d}" for d in DISTANCES),
)


def cases(skill: str, count: int, tokenizer: Tokenizer, seed: int = 0) -> Iterator[Case]:
    """`count` cases of a skill."""
    rng = Random(zlib.crc32(f"{skill} {seed}".encode()))
    for _ in range(count):
        if skill in _ALONE:
            c = Context(rng, held_out=True, tokens_left=1500)
            yield _case(skill, [], _ALONE[skill](c), [])
        elif skill == "mixed conversation":
            history, episode = _in_conversation(rng)
            yield _case(skill, history, episode, [])
        elif skill.startswith("recall at "):
            yield _case(skill, [], recall_at(rng, tokenizer, int(skill.split()[-1])), [])
        else:
            episode, tools = _with_tools(rng, skill)
            yield _case(skill, [], episode, tools)
