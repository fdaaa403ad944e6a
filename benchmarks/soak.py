"""Half an hour of everything at once on a server that is too small for it, and whether anything leaks.

    python benchmarks/soak.py [--minutes 30] [--users 16] [--json FILE]

Starts `octavo serve demo` with a cache of 64 pages, host memory behind it and more requests than fit, and sends chats
and completions, streamed and whole, short and long, several answers at once, some impossible, and many that are left in
the middle. Holds if no answer is a 5xx, the engine is the same process to the end, no page is held when all is quiet,
requests were preempted and swapped and found cached prefixes, and the memory of no process grows by 1 MiB an hour.

What is measured of a process is its anonymous memory: all that it allocates, whether Python, malloc or torch does it.
Pages of files count as resident too, but those are the code of libraries, read in when it first runs.

A step takes megabytes and gives them back; what malloc keeps of them goes to the system when the engine is idle. So the
load rests every 45 seconds until nothing runs, and memory is measured then; under load it tells how busy it is. What
leaks is never given back, so it lifts the floor. The growth is the slope (Theil and Sen: the median of those of all
pairs) of the floors, the least values of each of 24 equal parts of the time after the first fifth.

Two caches of the API process have bounds that the warm-up may not reach by itself: the `tokenizers` library keeps, in
each thread, how it cut some words, and the server the bytes of each token. They are filled before the load begins.
Nothing else is exempt.

A run of less than 20 minutes cannot tell a MiB an hour: there, only growth by 8 MiB in all fails.
Exit status 1 if something does not hold.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import re
import statistics
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

FLAGS: Final = {
    "port": 0,
    "max-model-len": 512,
    "num-gpu-blocks-override": 64,
    "swap-space": 0.01,
    "preemption-mode": "swap",
    "max-num-seqs": 16,
    "max-queued-requests": 4096,
    "log-level": "warning",
}
MAX_SLOPE: Final = 1.0  # MiB an hour
WARM_UP: Final = 0.2  # of the time
TELLING_MINUTES: Final = 20.0
SHORT_GROWTH: Final = 8.0  # MiB
PARTS: Final = 24  # of the time after the warm-up, each with its floor
LOAD_SECONDS: Final = 45.0  # between two rests
REST_SECONDS: Final = 1.5  # for the engine to tidy up
CACHED_WORDS: Final = 1_000  # in each thread; see the server's tokenizer
QUESTIONS: Final = ("Tell me a joke", "What is 17 + 25?", "Spell the word banana.", "What is a KV cache?", "Hello 🙂")
SYSTEMS: Final = tuple(f"You are helper number {n}. " + "Be brief, be kind, be right. " * 6 for n in range(6))


@dataclass
class Tally:
    """What happened. `failures` are those that must not."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def take(self, kind: str, status: int, allowed: Sequence[int], text: str = "") -> None:
        """Count an answer."""
        self.statuses[f"{kind}: {status}"] += 1
        if status not in allowed:
            self.failures.append(f"{kind} was answered with {status}: {text[:300]}")


class User:
    """Sends one request after the other, drawn by a seed of its own."""

    def __init__(self, client: httpx.AsyncClient, tally: Tally, seed: int, awake: asyncio.Event) -> None:
        self._client = client
        self._awake = awake
        self._tally = tally
        self._draw = random.Random(seed)

    async def run(self, until: float) -> None:
        """Until the time has come."""
        kinds = (
            self.chat,
            self.chat,
            self.conversation,
            self.several,
            self.long,
            self.leave,
            self.leave,
            self.impossible,
        )
        while time.monotonic() < until:
            await self._awake.wait()
            try:
                await self._draw.choice(kinds)()
            except httpx.HTTPError as error:
                self._tally.failures.append(f"the connection broke: {type(error).__name__} {error}")
                await asyncio.sleep(0.1)

    def messages(self) -> list[dict[str, str]]:
        """One of a few openings, so that prefixes are shared, and a question."""
        system = {"role": "system", "content": self._draw.choice(SYSTEMS)}
        return [system, {"role": "user", "content": self._draw.choice(QUESTIONS) + f" ({self._draw.randrange(999)})"}]

    async def chat(self) -> None:
        """A chat, streamed to its end."""
        await self._stream("chat", {"messages": self.messages(), "max_tokens": 60}, leave_after=None)

    async def leave(self) -> None:
        """A client that goes away in the middle of an answer, or before it begins."""
        body = {"messages": self.messages(), "max_tokens": 400, "ignore_eos": True}
        if self._draw.random() < 0.5:
            await self._stream("left in mid-stream", body, leave_after=self._draw.randrange(1, 60))
            return
        try:
            async with asyncio.timeout(self._draw.uniform(0.0, 0.5)):
                await self._post("left before the answer", body, (200,))
        except TimeoutError:
            self._tally.statuses["left before the answer"] += 1

    async def conversation(self) -> None:
        """Three turns, each with all before it."""
        messages = self.messages()
        for _ in range(3):
            answer = await self._post("conversation", {"messages": messages, "max_tokens": 40}, (200,))
            if not answer.is_success:
                return
            messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": "And then?"}]
            messages[-2] = {"role": "assistant", "content": messages[-2]["content"]}

    async def several(self) -> None:
        """Several answers to one prompt, with log-probabilities and penalties."""
        more = {"n": self._draw.randrange(2, 5), "logprobs": True, "top_logprobs": 3, "presence_penalty": 0.5}
        await self._post("several answers", {"messages": self.messages(), "max_tokens": 50, **more}, (200,))

    async def long(self) -> None:
        """A prompt that nearly fills the context, which no other has."""
        prompt = [self._draw.randrange(10, 2000) for _ in range(self._draw.randrange(300, 480))]
        body = {"prompt": prompt, "max_tokens": 30, "ignore_eos": True, "stop": ["never said"]}
        await self._post("long prompt", body, (200,), path="completions")

    async def impossible(self) -> None:
        """A request that is refused."""
        body = {"prompt": [5] * 600, "max_tokens": 5} if self._draw.random() < 0.5 else {"prompt": "a", "top_k": -9}
        await self._post("impossible", body, (400,), path="completions")

    async def _post(
        self, kind: str, body: dict[str, Any], allowed: Sequence[int], path: str = "chat/completions"
    ) -> httpx.Response:
        answer = await self._client.post(f"/v1/{path}", json={"model": "demo", **body})
        self._tally.take(kind, answer.status_code, allowed, answer.text)
        return answer

    async def _stream(self, kind: str, body: dict[str, Any], leave_after: int | None) -> None:
        body = {"model": "demo", **body, "stream": True}
        last, seen = "", 0
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            self._tally.take(kind, answer.status_code, (200,))
            async for line in answer.aiter_lines():
                if line:
                    last, seen = line, seen + 1
                if seen == leave_after:
                    return
        if leave_after is None and last != "data: [DONE]":
            self._tally.failures.append(f"{kind}: a stream ended with {last[:300]}")


class Server:
    """`octavo serve demo`, and what can be seen of it from outside."""

    def __init__(self) -> None:
        flags = [f"--{name}={value}" for name, value in FLAGS.items()]
        command = [sys.executable, "-m", "octavo_cli", "serve", "demo", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        match = re.search(r"http://\S+", line)
        if match is None:
            raise SystemExit("the server did not start; its last words stand above")
        self.url = match[0]

    def parts(self) -> dict[str, int]:
        """Process ids: the API's, the engine's, and those that render templates."""
        found = {"api": self.process.pid}
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in map(int, path.read_text().split()):
                command = Path(f"/proc/{pid}/cmdline").read_text()
                name = "engine" if "octavo_server.engine" in command else f"template {pid}"
                found[name] = pid
        return found

    def memory(self) -> dict[str, float]:
        """MiB of anonymous memory of the API and the engine process, as the kernel counts it page by page."""
        pids = self.parts()
        return {name: _anonymous(pids[name]) for name in ("api", "engine") if name in pids}

    def metrics(self) -> dict[str, float]:
        """Samples by name, those with a state or direction by that, too."""
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text):
            for sample in family.samples:
                label = sample.labels.get("state") or sample.labels.get("direction")
                found[f"{sample.name} {label}" if label else sample.name] += sample.value
        return dict(found)

    def wait(self, what: str, condition: Any, seconds: float = 120.0) -> bool:
        """Whether a condition came true in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.2)
        print(f"not within {seconds:.0f} s: {what}", file=sys.stderr)
        return False

    def ready(self) -> bool:
        """As /ready says."""
        return httpx.get(f"{self.url}/ready").status_code == 200

    def quiet(self) -> bool:
        """Whether no request runs or waits."""
        seen = self.metrics()
        return seen["vllm:num_requests_running"] == seen["vllm:num_requests_waiting"] == 0

    def end(self) -> int:
        """Its exit status."""
        self.process.terminate()
        return self.process.wait(60)


def _anonymous(pid: int) -> float:
    """MiB. `statm` and `status` may be some hundred pages behind; this is exact."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Anonymous"].split()[0]) / 1024


def fill_caches(url: str) -> None:
    """Shows the server all tokens, and each of its threads more words than it remembers."""

    def ask(**body: Any) -> int:
        return httpx.post(
            f"{url}/v1/completions", json={"model": "demo", "max_tokens": 1, **body}, timeout=300
        ).status_code

    def show_words(seed: int) -> None:
        draw = random.Random(seed)
        words = "".join(f" {''.join(draw.choices(string.ascii_lowercase, k=6))}" for _ in range(CACHED_WORDS))
        if (status := ask(prompt=words)) != 400:  # it is too long, which shows once it is cut into tokens
            raise SystemExit(f"a prompt of {CACHED_WORDS} words was answered with {status}")

    with ThreadPoolExecutor(16) as threads:  # together, so that no thread of the server is left out
        list(threads.map(show_words, range(64)))
    size = FLAGS["max-model-len"] // 8
    first = 0
    while ask(prompt=list(range(first, first + size)), prompt_logprobs=0) == 200:  # until beyond the vocabulary
        first += size


def floors(times: Sequence[float], values: Sequence[float], parts: int = PARTS) -> tuple[list[float], list[float]]:
    """(its time, least value) of each of as many equal parts."""
    if not times:
        return [], []
    width = (times[-1] - times[0]) / parts or 1.0
    least: dict[int, tuple[float, float]] = {}
    for at, value in zip(times, values, strict=True):
        part = min(int((at - times[0]) / width), parts - 1)
        least[part] = min((value, at), least.get(part, (math.inf, at)))
    return [at for _, at in least.values()], [value for value, _ in least.values()]


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """(slope, and the bounds within which it lies with 95 % confidence) of the floors, in units an hour.

    `times` in seconds, rising. Theil (1950) and Sen (1968): the median of the slopes of all pairs, and the two as far
    from it in their order as Kendall's statistic may lie from 0, in its normal approximation.
    """
    points = list(zip(*floors(times, values), strict=True))
    n = len(points)
    if n < 3:
        return 0.0, -math.inf, math.inf
    slopes = sorted((b - a) / (later - at) * 3600 for (at, a), (later, b) in itertools.combinations(points, 2))
    margin = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = math.floor((len(slopes) - margin) / 2), math.ceil((len(slopes) + margin) / 2)
    return statistics.median(slopes), slopes[max(low, 0)], slopes[min(high, len(slopes) - 1)]


def grows(per_hour: float, minutes: float) -> bool:
    """Whether this slope of memory is too much, for a run of this length."""
    return per_hour >= MAX_SLOPE if minutes >= TELLING_MINUTES else per_hour * minutes / 60 >= SHORT_GROWTH


async def load(server: Server, minutes: float, users: int, tally: Tally) -> list[tuple[float, dict[str, float]]]:
    """Runs the users; the result is (seconds, MiB by process), at rests after the warm-up."""
    begun = time.monotonic()
    until = begun + 60 * minutes
    samples, awake = [], asyncio.Event()
    awake.set()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300.0, limits=limits) as client:
        crowd = asyncio.gather(*(User(client, tally, seed, awake).run(until) for seed in range(users)))
        while time.monotonic() < until and server.process.poll() is None:
            await asyncio.sleep(LOAD_SECONDS)
            awake.clear()
            if not await asyncio.to_thread(server.wait, "the load rests", server.quiet):
                break
            await asyncio.sleep(REST_SECONDS)
            if time.monotonic() - begun > WARM_UP * 60 * minutes:
                samples.append((time.monotonic() - begun, server.memory()))
            awake.set()
        awake.set()
        if server.process.poll() is not None:
            crowd.cancel()
        await asyncio.gather(crowd, return_exceptions=True)
    return samples


def judge(
    server: Server, before: dict[str, int], samples: list[tuple[float, dict[str, float]]], minutes: float
) -> dict[str, Any]:
    """What must hold, each with what was seen; `ok` says whether it does."""
    quiet = server.wait("all requests have ended", server.quiet)
    seen, after = server.metrics(), server.parts()
    results: dict[str, Any] = {
        "all requests have ended": {"ok": quiet},
        "pages held at the end": _none(seen["octavo:kv_pages used"]),
        "the engine is the same process": {"ok": before["engine"] == after.get("engine")},
        "restarts of the engine": _none(seen["octavo:engine_restarts_total"]),
    }
    for name in ("vllm:num_preemptions_total", "octavo:moved_pages_total swap_out", "vllm:prefix_cache_hits_total"):
        results[f"{name} above 0"] = {"ok": seen[name] > 0, "seen": seen[name]}
    for part in ("api", "engine"):
        series = [(at, memory[part]) for at, memory in samples if part in memory]
        times, values = [at for at, _ in series], [value for _, value in series]
        found, low, high = slope(times, values)
        least = floors(times, values)[1]
        told = (
            f"{found:+.2f} MiB/h ({low:+.2f} to {high:+.2f}), floors {least[0]:.2f} → {least[-1]:.2f}" if least else ""
        )
        results[f"memory of {part}"] = {
            "ok": bool(series) and not grows(found, minutes),
            "seen": told and f"{told} MiB, at most {max(values):.2f}",
            "floors": least,
        }
    return results


def _none(count: float) -> dict[str, Any]:
    return {"ok": count == 0, "seen": count}


def main() -> int:
    """Prints the verdict; 0 if all holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write the verdict there, too")
    options = parser.parse_args()
    server, tally = Server(), Tally()
    try:
        if not server.wait("the server is ready", server.ready):
            return 1
        before = server.parts()
        fill_caches(server.url)
        samples = asyncio.run(load(server, options.minutes, options.users, tally))
        results = judge(server, before, samples, options.minutes)
    finally:
        status = server.end()
    results["exit status after SIGTERM"] = _none(status)
    results["answers that must not be"] = {"ok": not tally.failures, "seen": tally.failures[:5]}
    for kind, count in sorted(tally.statuses.items()):
        print(f"  {count:7} {kind}")
    for name, result in results.items():
        print(f"{'holds' if result['ok'] else 'FAILS'}  {name}: {result.get('seen', '')}")
    if options.json:
        options.json.write_text(json.dumps({"minutes": options.minutes, "answers": tally.statuses, "results": results}))
    ok = all(result["ok"] for result in results.values())
    print(f"soak of {options.minutes:g} minutes: {'all holds' if ok else 'FAILED'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
