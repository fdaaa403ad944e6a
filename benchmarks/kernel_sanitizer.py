"""Runs every Triton kernel on small shapes under NVIDIA's compute-sanitizer.

    python benchmarks/kernel_sanitizer.py [--tools memcheck racecheck initcheck] [--seconds SECONDS]

memcheck looks for accesses outside of an allocation (each tensor is one of its own here), racecheck for shared memory
written and read without a barrier in between, initcheck for device memory read before anything wrote it. Each tool runs
the checks in a process of its own, after one without any that compiles the kernels; results are compared with float64
or the twin, too. Exit status 1 if a tool reports an error or a result is wrong, 2 if there is no compute-sanitizer.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import torch  # noqa: E402
from kernel_checks import SHAPES, Case, Errors, check_rope, check_rows  # noqa: E402

from octavo_kernels.hopper_attention import CONFIGS  # noqa: E402
from octavo_kernels.paged_attention import AttentionConfig, paged_attention_invariant  # noqa: E402

TOOLS: Final = ("memcheck", "racecheck", "initcheck")
# (tokens in the step, in the cache): decodes, chunks and prompts on both sides of a tile's end, one request that rests.
STEP: Final = [(1, 1), (1, 67), (0, 9), (5, 70), (33, 33), (66, 66)]
SPLIT: Final = AttentionConfig(16, 64, 4, 2, 64, 64)


def check_attention(errors: Errors) -> None:
    """Over pages, in splits and without, over gathered keys, and invariant."""
    for name, page_size, window in (("8B", 16, None), ("3 a key head", 8, 20), ("7, one key head", 256, None)):
        case = Case(STEP, heads=SHAPES[name], page_size=page_size)
        truth = case.expected(window)
        chunks = torch.cat([torch.full((count,), count > 1) for count in case.counts]).cuda()
        errors.add("attention", torch.bfloat16, case.run(window), truth, name)
        errors.add("attention in splits", torch.bfloat16, case.run(window, (SPLIT, SPLIT)), truth, name)
        errors.add("gathered", torch.bfloat16, case.run_gathered(window)[chunks], truth[chunks], name)
        found = paged_attention_invariant(case.q, case.k, case.v, case.metadata, case.scale, window)
        errors.add("invariant attention", torch.bfloat16, found, truth, name)


def check_hopper(errors: Errors) -> None:
    """Chunks on Hopper, by groups of warps."""
    for shape in ((32, 8, 128), (7, 1, 64)):
        case = Case(STEP, heads=shape)
        chunks = torch.cat([torch.full((count,), count > 1) for count in case.counts]).cuda()
        for config in CONFIGS:
            found = case.run_hopper(config)
            errors.add("hopper", torch.bfloat16, found[chunks], case.expected()[chunks], f"{shape} {config}")


CHECKS: Final[dict[str, Callable[[Errors], None]]] = {
    "attention": check_attention,
    "hopper": check_hopper,
    "rows": lambda errors: check_rows(errors, torch.bfloat16, "cuda"),
    "rope": lambda errors: check_rope(errors, torch.bfloat16, "cuda"),
}


def run_checks() -> int:
    """What runs under a tool."""
    torch.backends.cuda.matmul.allow_tf32 = False
    errors = Errors()
    with torch.inference_mode():
        for name, check in CHECKS.items():
            begin = time.perf_counter()
            check(errors)
            torch.cuda.synchronize()
            print(f"    {name}: {time.perf_counter() - begin:.1f} s", flush=True)
    print("    " + ("WRONG: " + "; ".join(errors.failures) if errors.failures else "results are right"), flush=True)
    return int(bool(errors.failures))


def sanitizer() -> str | None:
    """The program: on the path, or where the toolkit puts it."""
    places = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (str(places[-1]) if places else None)


def run_under(program: str, tool: str, seconds: float) -> dict[str, Any]:
    # Of the slowest tool, our kernels alone. initcheck has to see who writes what.
    names = [part for kernel in OURS for part in ("--kernel-name", f"kns={kernel}")] if tool == "racecheck" else []
    command = [program, "--tool", tool, *names, "--print-limit", "20", "--error-exitcode", "9"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.perf_counter()
    done = subprocess.Popen(
        [*command, sys.executable, __file__, "--inside"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = done.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        done.kill()
        output, _ = done.communicate()
        output += f"\nstopped after {seconds:.0f} s"
    summary = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", output)
    found = int("".join(summary[-1])) if summary else None
    return {
        "errors": found,
        "exit status": done.returncode,
        "seconds": time.perf_counter() - begin,
        "output": output,
    }


# Triton's kernels are named as their functions.
OURS: Final = (
    "attention_kernel",
    "merge_kernel",
    "_gather_kernel",
    "hopper_kernel",
    "hopper_linear_kernel",
    "tiles_kernel",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each tool (default: 60)")
    parser.add_argument("--inside", action="store_true", help="run the checks here, under no tool of their own")
    arguments = parser.parse_args()
    if arguments.inside:
        return run_checks()
    program = sanitizer()
    if program is None:
        print("compute-sanitizer is neither on the path nor in /usr/local/cuda*/bin", file=sys.stderr)
        return 2
    print("without a tool (compiles):", flush=True)
    failed = run_checks()
    for tool in arguments.tools:
        report = run_under(program, tool, arguments.seconds)
        sound = report["errors"] == 0 and report["exit status"] == 0
        failed |= not sound
        print(f"{tool}: {'no errors' if sound else report['output'][-6000:]}, {report['seconds']:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
