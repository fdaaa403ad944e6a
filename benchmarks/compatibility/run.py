"""Published client programs, unmodified, against a server: each in an environment of its own.

    python benchmarks/compatibility/run.py --url http://127.0.0.1:8000 [--environments DIR] [--json FILE] [NAME ...]

Environments are made where they are missing (`pip install` of what stands below). A line for each thing that was tried;
at the end, a table in Markdown. Begin the server with `octavo serve demo`; load tools need the tokenizer's directory.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
DEMO: Final = HERE.parent.parent / "server/octavo_server/demo_model"
PACKAGES: Final = {
    "openai": ["openai"],
    "litellm": ["litellm", "mcp"],  # it imports mcp wherever tools are given
    "langchain": ["langchain-openai"],
    "guidellm": ["guidellm", "torch==2.13.0"],
    "aiperf": ["aiperf"],
    "instructor": ["instructor", "jsonref"],
    "pydantic_ai": ["pydantic-ai-slim[openai]"],
    "openai_agents": ["openai-agents"],
    "llama_index": ["llama-index-llms-openai-like", "llama-index-embeddings-openai-like"],
    "llm": ["llm"],
}


def environment(folder: Path, name: str) -> Path:
    """The program's Python."""
    python = folder / name / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
    return python


def attempt(python: Path, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a program's script found."""
    command = [str(python), str(HERE / f"try_{name}.py"), "--url", options.url, "--model", options.model]
    command += ["--key", options.key, "--directory", str(options.directory)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"program"')]
    if not lines:
        raise RuntimeError(f"{name}: {ended.stderr[-2000:]}")
    print("\n".join(lines), flush=True)
    return [json.loads(line) for line in lines]


def main() -> None:
    """The command line; exit status 1 if anything fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(PACKAGES), help=", ".join(PACKAGES))
    parser.add_argument("--url", required=True, help="without /v1")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--key", default="none")
    parser.add_argument("--directory", type=Path, default=DEMO, help="of the model's tokenizer")
    parser.add_argument("--environments", type=Path, default=Path("/tmp/octavo-clients"))
    parser.add_argument("--json")
    options = parser.parse_args()
    with urllib.request.urlopen(f"{options.url}/ready", timeout=10):  # nobody there: said once, and not by each program
        pass
    found = [row for name in options.names for row in attempt(environment(options.environments, name), name, options)]
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    print(table(found))
    sys.exit(any(row["outcome"] == "fails" for row in found))


def table(found: list[dict[str, Any]]) -> str:
    """In Markdown, a row for each program."""
    lines = ["", "| program | version | tried | outcome | on |", "| --- | --- | --- | --- | --- |"]
    for program in dict.fromkeys((row["program"], row["version"]) for row in found):
        rows = [row for row in found if (row["program"], row["version"]) == program]
        failures = [f"**{row['what']}**: {row['detail'][:160]}" for row in rows if row["outcome"] == "fails"]
        tried = "; ".join(row["what"] for row in rows)
        outcome = "; ".join(failures) or "all of it works"
        lines.append(f"| `{program[0]}` | {program[1]} | {tried} | {outcome} | {date.today()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
