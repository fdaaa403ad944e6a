"""Sections of a benchmark on a GPU, one guarded from the other: what breaks in one hides no other's results."""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def run_section(
    report: dict[str, Any],
    name: str,
    section: Callable[[], dict[str, Any]],
    *,
    inference: bool = True,
    file: Path | None = None,
) -> bool:
    """Runs a section into `report[name]`, and the report so far into the file. Whether it found nothing wrong.

    What it found wrong is in its "failures", and so is the exception of one that broke. `inference`: whether it runs in
    torch's inference mode; a section that starts an engine does not.
    """
    begin = time.perf_counter()
    print(f"== {name}", flush=True)
    try:
        torch.cuda.empty_cache()  # of what was before, broken or not
        with torch.inference_mode(inference):
            report[name] = section()
        torch.cuda.synchronize()  # an error that is still under way is this section's
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        report[name] = {"failures": [repr(error)[:2000]]}
    failures = report[name].get("failures", [])
    said = f"FAILED {failures[:8]}" if failures else "ok"
    print(f"== {name}: {said}, {time.perf_counter() - begin:.0f} s", flush=True)
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return not failures
