"""Runs every Triton kernel on small shapes under NVIDIA's compute-sanitizer.

    python benchmarks/kernel_sanitizer.py [--tools memcheck racecheck …] [--seconds SECONDS] [--output DIRECTORY]

memcheck looks for accesses outside of an allocation (each tensor is one of its own here), racecheck for shared memory
written and read without a barrier in between, initcheck for device memory read before anything wrote it, synccheck for
barriers that not all who should come to. Each tool runs the checks in a process of its own, after one without any that
compiles the kernels; results are compared with float64 or the twin, too. Of racecheck's reports one class is left out,
and only where a control shows it to be the tool's: see `sanitizer_reports`. Exit status 1 if anything else is reported
or a result is wrong, 2 if there is no compute-sanitizer.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import torch

# First: it finds the source roots, which the others import from.
from sanitizer_checks import CHECKS, kernel_names  # isort: split

import racecheck_controls
import sanitizer_reports
from kernel_checks import Errors, warm

TOOLS: Final = ("memcheck", "racecheck", "initcheck", "synccheck")
CONTROLS: Final = ("apart_kernel", "racing_kernel")


def run_checks(controls: bool) -> int:
    """What runs under a tool; `controls` as well if the tool is racecheck."""
    torch.backends.cuda.matmul.allow_tf32 = False
    errors = Errors()
    with torch.inference_mode():
        for name, check in CHECKS.items():
            begin = time.perf_counter()
            check(errors)
            torch.cuda.synchronize()
            print(f"    {name}: {time.perf_counter() - begin:.1f} s", flush=True)
    if controls and not racecheck_controls.run():
        errors.failures.append("the control without a race")
    print("    " + ("WRONG: " + "; ".join(errors.failures) if errors.failures else "results are right"), flush=True)
    return int(bool(errors.failures))


def sanitizer() -> str | None:
    """The program: on the path, or where the toolkit puts it."""
    places = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (str(places[-1]) if places else None)


def run_under(program: str, tool: str, seconds: float) -> tuple[int, str]:
    """The exit status, 9 if the tool reported anything, and what was printed."""
    command = [program, "--tool", tool, "--print-limit", "10000", "--error-exitcode", "9"]
    if tool in ("racecheck", "synccheck"):  # the slowest: our kernels alone. initcheck has to see who writes what
        for kernel in (*kernel_names(), *CONTROLS):
            command += ["--kernel-name", f"kns={kernel}"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
    inside = [sys.executable, __file__, "--inside", tool]
    with subprocess.Popen(
        [*command, *inside], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as run:  # fmt: skip
        try:
            output, _ = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # the tool, and the program under it
            output, _ = run.communicate()
            output += f"\nstopped after {seconds:.0f} s"
    return run.returncode, output


def failures_of(tool: str, status: int, output: str) -> list[str]:
    """What is wrong by a tool's run."""
    if tool == "racecheck" and status in (0, 9):
        return sanitizer_reports.races(output)
    return [] if status == 0 and "ERROR SUMMARY: 0 errors" in output else [output[-3000:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--seconds", type=float, default=90.0, help="for each tool (default: 90)")
    parser.add_argument("--output", type=Path, help="where all that the tools print goes")
    parser.add_argument("--inside", choices=TOOLS, help="run the checks here, as under this tool")
    arguments = parser.parse_args()
    if arguments.inside:
        return run_checks(arguments.inside == "racecheck")
    program = sanitizer()
    if program is None:
        print("compute-sanitizer is neither on the path nor in /usr/local/cuda*/bin", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    warm(lambda c=check: c(Errors()) for check in CHECKS.values())  # type: ignore[misc]
    print(f"compiled in {time.perf_counter() - begin:.0f} s; without a tool:", flush=True)
    failed = run_checks(controls=True)
    for tool in arguments.tools:
        begin = time.perf_counter()
        status, output = run_under(program, tool, arguments.seconds)
        if arguments.output:
            (arguments.output / f"{tool}.txt").write_text(output, encoding="utf-8")
        failures = failures_of(tool, status, output)
        failed |= bool(failures)
        said = "; ".join(failures) if failures else "nothing found"
        print(f"{tool}: {said}, {time.perf_counter() - begin:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
