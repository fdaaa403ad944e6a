"""`llm`, the command line, with a model of `extra-openai-models.yaml`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import QUESTION, Checks, arguments

options = arguments()
check = Checks("llm")
folder = tempfile.TemporaryDirectory()
(Path(folder.name) / "extra-openai-models.yaml").write_text(
    f"- model_id: octavo\n  model_name: {options.model}\n  api_base: {options.url}/v1\n  api_key_name: octavo\n"
    "  supports_schema: true\n  supports_tools: true\n"
)
(Path(folder.name) / "keys.json").write_text(f'{{"octavo": "{options.key}"}}')


def run(*words: str) -> str:
    command = [str(Path(sys.executable).parent / "llm"), "-m", "octavo", *words, QUESTION]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "LLM_USER_PATH": folder.name}
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return ended.stdout


check("prompt, streamed", run)
check("prompt, whole", lambda: run("--no-stream"))
check("options", lambda: run("-o", "temperature", "0", "-o", "max_tokens", "10"))
check("a schema", lambda: run("--schema", "name: a short name, large bool", "-o", "max_tokens", "200"))
check("a tool at hand", lambda: run("--functions", 'def weather(city: str) -> str:\n    "Of a city."\n    return city'))
check.end()
