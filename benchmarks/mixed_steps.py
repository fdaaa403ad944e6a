"""Time to the first token on an idle engine, of steps in which a prompt is read beside decodes, and of the host.

    python benchmarks/mixed_steps.py [--model 8b|0.6b] [--lengths N ...] [--launches N ...] [--hosts N ...]

Random weights, greedy. Needs what `gpu_session.py` needs. With graphs, and for the lengths of --launches without: the
graphs of the same engine are taken away. --hosts: requests that decode, for what a step takes of the host.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

from decode_steps import capture_rest, random_engine, timed  # noqa: E402
from kernel_models import MODELS  # noqa: E402

from octavo_server.engine.core import EngineCore  # noqa: E402
from octavo_server.ipc import AddRequest, SamplingParams  # noqa: E402

LENGTHS = (128, 512, 1024, 2048, 4096)
DECODES, PROMPT, CONTEXT = 32, 512, 600
REPEAT = 7


def prompt(length: int, salt: int) -> list[int]:
    return [(31 * salt + 7 * position) % 1000 + 10 for position in range(length)]


def ask(engine: EngineCore, name: str, length: int, max_tokens: int) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    engine.add(AddRequest(0, name, prompt(length, hash(name) % 997), sampling, 0.0))


def median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1000, 2)


def first_token(engine: EngineCore, length: int) -> dict[str, float]:
    """ms from a request to its token, and of these in launches; nothing else runs."""
    launches: list[float] = []
    seconds: list[float] = []
    launch = engine.runner.launch
    engine.runner.launch = timed(launch, launches)  # type: ignore[method-assign]
    for index in range(REPEAT):
        begin = time.perf_counter()
        ask(engine, f"first {length} {index}", length, 1)
        while not any(output.token_ids for output in engine.step()):
            continue
        seconds.append(time.perf_counter() - begin)
        while engine.has_work:
            engine.step()
    del engine.runner.launch  # type: ignore[attr-defined]
    return {"ms": median_ms(seconds[1:]), "launch": median_ms([each for each in launches if each > 1e-4])}


def beside_decodes(engine: EngineCore, decodes: int) -> dict[str, float]:
    """ms of each step behind the other, in steady state: a prompt joins in every second one."""
    for index in range(decodes):
        ask(engine, f"decode {decodes} {index}", CONTEXT + index, 200)
    while engine.scheduler.num_prefill_tokens or engine.scheduler.waiting:
        engine.step()
    for _ in range(4):
        engine.step()
    launches, found = list[float](), dict[str, list[float]]({"mixed": [], "decode": []})
    launch = engine.runner.launch
    engine.runner.launch = timed(launch, launches)  # type: ignore[method-assign]
    for index in range(4 * REPEAT):
        kind = "mixed" if index % 4 == 0 else "decode"
        if kind == "mixed":
            ask(engine, f"joins {decodes} {index}", PROMPT, 1)
        begin = time.perf_counter()
        engine.step()
        found["mixed" if index % 4 in (0, 1) else "decode"].append(time.perf_counter() - begin)
    del engine.runner.launch  # type: ignore[attr-defined]
    # A step's time shows in the call that launches it or in the next one, that waits for it.
    pairs = [sum(found["mixed"][at : at + 2]) for at in range(2, len(found["mixed"]), 2)]
    engine.abort(list(engine.scheduler.requests))
    while engine.has_work:
        engine.step()
    decode = statistics.median(found["decode"])
    return {
        "mixed": median_ms([pair - decode for pair in pairs]),
        "decode": round(decode * 1000, 2),
        "launch of the mixed step": median_ms(launches[4::4]),
        "launch of the others": median_ms([each for at, each in enumerate(launches) if at % 4]),
    }


def host_times(engine: EngineCore, decodes: int) -> dict[str, float]:
    """Of steps of short contexts in which so many requests decode, ms: the step, and its parts on the host."""
    for index in range(decodes):
        ask(engine, f"host {decodes} {index}", 40, 80)
    while engine.scheduler.num_prefill_tokens or engine.scheduler.waiting:
        engine.step()
    for _ in range(4):
        engine.step()
    launches, scheduling, steps = list[float](), list[float](), list[float]()
    engine.runner.launch = timed(engine.runner.launch, launches)  # type: ignore[method-assign]
    for _ in range(40):
        begin = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - begin)
        scheduling.append(engine.meter.schedule_seconds)
    del engine.runner.launch  # type: ignore[attr-defined]
    engine.abort(list(engine.scheduler.requests))
    while engine.has_work:
        engine.step()
    return {"step": median_ms(steps), "launch": median_ms(launches), "schedule and update": median_ms(scheduling)}


def measure(engine: EngineCore, arguments: argparse.Namespace) -> dict[str, Any]:
    runner = engine.runner
    graphs, report = runner.graphs, dict[str, Any]()  # type: ignore[attr-defined]
    for name, used, lengths in (("graphs", graphs, arguments.lengths), ("launches", None, arguments.launches)):
        runner.graphs = used  # type: ignore[attr-defined]
        if lengths:
            first_token(engine, 64)
        for length in lengths:
            report[f"first token, {length}, {name}"] = first_token(engine, length)
        for decodes in (DECODES, 200) if lengths else ():
            report[f"{PROMPT} beside {decodes}, {name}"] = beside_decodes(engine, decodes)
    runner.graphs = graphs  # type: ignore[attr-defined]
    for decodes in arguments.hosts:
        report[f"host, {decodes}"] = host_times(engine, decodes)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--launches", type=int, nargs="*", default=[])
    parser.add_argument("--hosts", type=int, nargs="*", default=[])
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = random_engine(MODELS[arguments.model], Path(folder), arguments.device, lambda _phase: None)
    report = {"idle": capture_rest(engine), **measure(engine, arguments)}
    for name, found in report.items():
        print(f"{arguments.model}: {name}: {found}", flush=True)
    engine.close(1.0)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
