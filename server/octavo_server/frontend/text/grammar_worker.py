"""A process that compiles grammars, each in a child of its own: what a request brings may take any time and memory.

Started by `grammars.py`. JSON lines over pipes. The first line is `{"model", "cpu_seconds"}`, answered by `{}` or
`{"invalid": reason}`; each further one a `GrammarSource` without its field, answered by `{"grammar": text}`,
`{"refused": reason}`, or `{"failed": reason}` where it is not the grammar's doing. The tokenizer, which takes long to
make, stays with the parent: a child that is killed costs a fork. Time is the CPU's: how busy the machine is must not
decide whether a grammar is good.
"""

import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from octavo_common.json_fields import ModelConfigError
from octavo_server.frontend.text.output_parsers.lark import NO_FORCING
from octavo_server.frontend.text.quiet import say_no_more
from octavo_server.grammar_compiler import (
    LIMITS,
    TRIAL_LIMITS,
    GrammarError,
    compile_grammar,
    one_line,
    read_tokenizer,
    try_answer,
)

CHILD_BYTES: Final = 2**29  # of address space, beyond what the parent has
KEPT_BYTES: Final = 32 * 2**20  # that a grammar may take once it is compiled
PIPE_BYTES: Final = 2**20
TRIED_TOKENS: Final = 256  # of an answer at random
TRIED_SECONDS: Final = 0.5  # of CPU time, where they take long
_OF_LINES: Final = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?| \d+ \| .*$")
_PAGE: Final = resource.getpagesize()


def main() -> None:
    """Until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = open(sys.stdin.fileno(), "rb", buffering=PIPE_BYTES, closefd=False)  # noqa: SIM115 (for its life)
    start = json.loads(lines.readline())
    try:
        tokenizer = read_tokenizer(Path(start["model"]))
    except (ModelConfigError, ValueError) as error:
        _answer(invalid=one_line(str(error)))
        return
    say_no_more()
    _answer()
    for line in lines:
        child = os.fork()
        if child == 0:
            _compile(line, tokenizer, start["cpu_seconds"])
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL:  # not by anything here
                _answer(failed="the process that was to do it was killed")
            else:
                _answer(refused=_why_killed(number))
        elif os.WEXITSTATUS(status) != 0:
            _answer(refused="it cannot be compiled")


def serialize(source: dict[str, Any], tokenizer: LLTokenizer, head: str = NO_FORCING) -> str:
    """A source as llguidance takes it. head: how text that must come is dealt with.

    Raises:
        GrammarError: the grammar is in no language that is known here.
    """
    kind, text, reasoning = source["kind"], source["text"], source["reasoning"]
    if kind == "json":
        answer = {"name": "answer", "json_schema": json.loads(text)}
    elif kind == "regex":
        answer = {"name": "answer", "lark_grammar": _lark_of_regex(text)}
    else:
        lark = text if kind in ("lark", "choice") else _lark(text)
        answer = {"name": "answer", "lark_grammar": head + lark.removeprefix(NO_FORCING) if kind == "lark" else lark}
    if kind == "lark" and reasoning is None:
        return json.dumps({"grammars": [answer]}, ensure_ascii=False)  # which says so itself
    start = "start: @answer\n" if reasoning is None else _thoughts_first(reasoning, tokenizer)
    outer = {"lark_grammar": f"{head}\n{start}"}
    return json.dumps({"grammars": [outer, answer]}, ensure_ascii=False)


def _lark_of_regex(regex: str) -> str:
    made: dict[str, Any] = json.loads(LLMatcher.grammar_from_regex(regex))
    lark: str = made["grammars"][0]["lark_grammar"]
    return lark


def _lark(text: str) -> str:
    try:
        return any_to_lark(text)
    except Exception as error:  # whatever the converter stumbles over
        raise GrammarError(f"neither Lark (with a rule `start:`) nor GBNF (with `root ::=`): {error}") from error


def _thoughts_first(reasoning: dict[str, Any], tokenizer: LLTokenizer) -> str:
    """Lark: thoughts up to their end, then `@answer`. A marker that is a token of its own is in no regex's language."""
    start, end = (_token_of(reasoning[name], tokenizer) for name in ("start", "end"))
    if end is None:
        thoughts, rule = "thoughts", f"thoughts[suffix={json.dumps(reasoning['end'])}]: /(.|\\n)*/\n"
    else:
        thoughts, rule = f"thoughts <[{end}]>", "thoughts: /(.|\\n)*/\n"
    if not reasoning["is_open"]:
        opening = json.dumps(reasoning["start"]) if start is None else f"<[{start}]>"
        thoughts = f"({opening} {thoughts} space)?"
    else:
        thoughts += " space"
    return f"start: {thoughts} @answer\nspace: /[ \\t\\r\\n]{{0,8}}/\n{rule}"


def _token_of(marker: str, tokenizer: LLTokenizer) -> int | None:
    tokens = tokenizer.tokenize_str(marker, parse_special=True)
    return tokens[0] if len(tokens) == 1 and tokenizer.is_special_token(tokens[0]) else None


def _compile(line: bytes, tokenizer: LLTokenizer, cpu_seconds: float) -> None:
    """In the child, which it ends. A signal ends it where it takes too long."""
    status = 1
    try:
        mapped, resident = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + CHILD_BYTES, mapped + CHILD_BYTES))
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            source = json.loads(line)
            grammar = serialize(source, tokenizer)
            bounds = LIMITS if source["kind"] == "json" else TRIAL_LIMITS
            matcher = compile_grammar(tokenizer, grammar, bounds)
            taken = _memory()[1] - resident
            if taken > KEPT_BYTES:
                raise GrammarError(f"it takes {taken >> 20} MiB of memory; allowed are {KEPT_BYTES >> 20}")
            del matcher  # the trial has its own
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            _try(source, tokenizer, bounds)
            reply = {"grammar": grammar}
        except MemoryError:
            reply = {"refused": _why_killed(signal.SIGABRT)}
        except (GrammarError, ValueError, RecursionError) as error:
            reply = {"refused": _reason(json.loads(line)["kind"], error)}
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _answer(**reply)
        status = 0
    finally:
        os._exit(status)


def _reason(kind: str, error: Exception) -> str:
    """Of a grammar that was made here, without its lines and where it is wrong."""
    said = one_line(str(error)) or type(error).__name__
    return said if kind == "grammar" else _OF_LINES.sub("", said)


def _try(source: dict[str, Any], tokenizer: LLTokenizer, bounds: LLParserLimits) -> None:
    """Some grammars compile and are too much all the same, once an answer goes on.

    It gets far where text that must come is forced, and llguidance goes over it at once; without thoughts, which are
    free and have no end.
    """
    forcing = serialize({**source, "reasoning": None}, tokenizer, "%llguidance {}")
    matcher = compile_grammar(tokenizer, forcing, bounds)
    try_answer(matcher, tokenizer.eos_tokens, TRIED_TOKENS, TRIED_SECONDS)


def _memory() -> tuple[int, int]:
    """Bytes of this process: (mapped, resident)."""
    mapped, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(mapped) * _PAGE, int(resident) * _PAGE


def _why_killed(number: int) -> str:
    if number == signal.SIGPROF:
        return "it takes too long to compile: make it smaller, or its bounds and alternatives fewer"
    return "it takes too much memory to compile: make it smaller, or its bounds and alternatives fewer"


def _answer(**fields: str) -> None:
    sys.stdout.buffer.write(json.dumps(fields).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
