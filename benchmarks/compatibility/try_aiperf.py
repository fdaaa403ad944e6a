"""`aiperf`, a load tool: synthetic prompts, four streams at a time."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import Checks, arguments, need

options = arguments()
check = Checks("aiperf")


def run(kind: str, *more: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "aiperf"), "profile", "-m", options.model, "--url", options.url]
        command += ["--endpoint-type", kind, "--tokenizer", str(options.directory), "--concurrency", "4"]
        command += ["--request-count", "20", "--isl", "64", "--artifact-dir", folder, "--ui", "none", *more]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
        reports = list(Path(folder).glob("**/profile_export_aiperf.json"))
        if ended.returncode or not reports:
            raise RuntimeError((ended.stderr or ended.stdout)[-300:])
        report = json.loads(reports[0].read_text())
    need(not report.get("error_summary"), report.get("error_summary"))
    count = report["request_count"]["avg"]
    need(count == 20, report["request_count"])
    rate = report.get("output_token_throughput", {}).get("avg")
    return f"{count:.0f} requests, none failed" + (f"; {rate:.0f} output tokens a second" if rate else "")


STREAM = ("--streaming", "--osl", "32", "--extra-inputs", "ignore_eos:true")
check("chat, streamed", lambda: run("chat", *STREAM))
check(
    "chat, streamed, usage in every chunk",
    lambda: run("chat", *STREAM, "--use-server-token-count", "--per-chunk-usage"),
)
check("chat, whole", lambda: run("chat", "--osl", "32"))
# It counts an answer without a text as an error, and after some prompts the demo model ends at once: its end is shown.
check("completions, streamed", lambda: run("completions", *STREAM, "--extra-inputs", "skip_special_tokens:false"))
check("responses, streamed", lambda: run("responses", "--streaming", "--osl", "32"))
check("embeddings", lambda: run("embeddings"))
check.end()
