"""`guidellm`, a load tool: synthetic prompts, four streams at a time, over chats and over completions."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import Checks, arguments, need

options = arguments()
check = Checks("guidellm")


def run(kind: str, profile: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(Path(sys.executable).parent / "guidellm"), "run", "--disable-console"]
        backend = f"kind=openai_http,target={options.url},model={options.model},request_format={kind}"
        command += ["--backend", backend, "--profile", profile, "--constraint", "kind=max_requests,count=20"]
        command += ["--tokenizer", f"kind=hf_auto,model={options.directory}"]
        command += ["--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32"]
        command += ["--output", f"kind=json,path={report}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
        if ended.returncode:
            raise RuntimeError(ended.stderr[-300:] or ended.stdout[-300:])
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    rate = benchmark["metrics"]["output_tokens_per_second"]["successful"]["mean"]
    need(totals["successful"] >= 20 and totals["errored"] == 0, totals)
    return f"{totals['successful']} requests, none failed; {rate:.0f} output tokens a second"


check("chat, 4 at a time", lambda: run("/v1/chat/completions", "kind=concurrent,streams=4"))
check("completions, 4 at a time", lambda: run("/v1/completions", "kind=concurrent,streams=4"))
check("chat, a Poisson process", lambda: run("/v1/chat/completions", "kind=poisson,rate=4"))
check("responses, 4 at a time", lambda: run("/v1/responses", "kind=concurrent,streams=4"))
check.end()
