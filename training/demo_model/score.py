"""Scores the demo model on held-out prompts, greedily, skill by skill.

python -m training.demo_model.score --model-dir DIR                       (transformers, in this process)
python -m training.demo_model.score --url http://127.0.0.1:8000/v1 --model demo    (any OpenAI-compatible server)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer

from .backends import Server, Transformers
from .cases import SKILL_NAMES, Case, cases
from .chat_format import assistant_text
from .grading import right

SHIPPED = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"


def report(asked: list[Case], answers: list[str], show: int) -> dict[str, dict[str, float]]:
    """Prints the table, and up to `show` wrong answers of each skill; the scores by skill."""
    scores: dict[str, dict[str, float]] = {}
    for skill in dict.fromkeys(c.skill for c in asked):
        graded = [
            (c, a, right(c.grader, a, c.expected)) for c, a in zip(asked, answers, strict=True) if c.skill == skill
        ]
        good = sum(ok for _, _, ok in graded)
        scores[skill] = {"right": good, "asked": len(graded), "percent": round(100 * good / len(graded), 1)}
        print(f"{skill:28} {good:5} / {len(graded):<5} {scores[skill]['percent']:6.1f} %")
        for case, answer, _ in [g for g in graded if not g[2]][:show]:
            print(
                f"    asked    {case.messages[-1]['content'][-160:]!r}\n    expected {str(case.expected)[:200]!r}\n    answered {answer[:200]!r}"
            )
    return scores


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="base URL of an OpenAI-compatible server, with its /v1")
    parser.add_argument("--model", default="demo", help="the name the server knows the model by")
    parser.add_argument("--api-key")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--model-dir", type=Path, default=SHIPPED, help="model (without --url) and tokenizer")
    parser.add_argument("--limit", type=int, default=100, help="prompts per skill")
    parser.add_argument("--skills", nargs="*", default=list(SKILL_NAMES), help="only these")
    parser.add_argument("--max-tokens-of-prompt", type=int, default=10**9, help="leave out longer prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the scores here")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to show per skill")
    parser.add_argument("--minimum", type=float, default=0.0, help="exit with 1 if a skill is under this percentage")
    return parser.parse_args()


def main() -> int:
    """Asks, grades, prints."""
    arguments = parse()
    tokenizer = Tokenizer.from_file(str(arguments.model_dir / "tokenizer.json"))
    if unknown := set(arguments.skills) - set(SKILL_NAMES):
        print(f"unknown skills: {', '.join(sorted(unknown))}; known are: {', '.join(SKILL_NAMES)}", file=sys.stderr)
        return 2
    asked = [case for skill in arguments.skills for case in cases(skill, arguments.limit, tokenizer, arguments.seed)]
    asked = [
        c
        for c in asked
        if sum(len(tokenizer.encode(assistant_text(m)).ids) for m in c.messages) <= arguments.max_tokens_of_prompt
    ]
    backend: Server | Transformers
    if arguments.url:
        backend = Server(
            arguments.url,
            arguments.model,
            tokenizer,
            concurrency=arguments.concurrency,
            api_key=arguments.api_key,
        )
    else:
        backend = Transformers(arguments.model_dir)
    begun, done = time.monotonic(), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{done} / {len(asked)}", end=end, file=sys.stderr, flush=True)

    answers = backend.answers(asked, progress)
    scores = report(asked, answers, arguments.show)
    print(f"{len(asked)} prompts in {time.monotonic() - begun:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(scores, indent=2) + "\n")
    return int(any(s["percent"] < arguments.minimum for s in scores.values()))


if __name__ == "__main__":
    sys.exit(main())
