"""One run of `octavo up`: start, show, chat or wait, report. However `run` ends, it leaves no process."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from rich.console import Console

from octavo_cli.chat_client import ChatError, stream_chat
from octavo_cli.errors import CommandError
from octavo_cli.progress import Progress
from octavo_cli.replica_metrics import KVCacheUse, kv_cache_use
from octavo_cli.status_view import describe_use, print_status
from octavo_operator.local.observe import base_url, local_status
from octavo_operator.local.plan import LocalPlan
from octavo_operator.local.replica import ReplicaState
from octavo_operator.local.supervisor import Supervisor

SAMPLE_SECONDS: Final = 0.1
ASK_SECONDS: Final = 5.0
UNPRINTABLE: Final = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asks for; `port` None: the Service's."""

    once: str | None = None
    port: int | None = None
    as_json: bool = False
    logs: bool = False


@dataclass(slots=True)
class Answer:
    """What a chat brought; `peak` is the greatest share of the replica's KV cache known to have been in use, 0 to 1."""

    replica: str
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    peak: float = 0.0


class LocalRun:
    """Holds the supervisor, what is shown, and the status as it changes."""

    def __init__(self, plan: LocalPlan, options: RunOptions) -> None:
        self.was_served = False  # came up as asked, to run until it is told to end
        self._plan = plan
        self._options = options
        self._deployment = plan.deployment
        self._out, self._err = Console(file=sys.stdout), Console(file=sys.stderr)
        self._progress = Progress(self._err)
        self._last_lines: dict[str, str] = {}
        self._status: dict[str, Any] = {}
        service_port = plan.deployment.spec.networking.service.port
        self._port = service_port if options.port is None else options.port
        launches = plan.launches(self._port, self._on_line)
        self._supervisor = Supervisor(plan.deployment.name, launches, self._on_change)

    async def run(self) -> None:
        """Bring it up and do what was asked.

        Raises:
            ReplicaFailedError: a replica cannot start.
            CommandError: the chat failed.
        """
        with self._progress as progress:
            for warning in self._plan.warnings:
                progress.note(f"warning: {warning}", style="yellow")
            async with self._supervisor, httpx.AsyncClient(trust_env=False, timeout=ASK_SECONDS) as client:
                await self._supervisor.wait_ready()
                progress.close()
                self._tell_port()
                if self._options.once is None:
                    await self._serve(client)
                else:
                    await self._chat_once(client, self._options.once)

    def hurry(self) -> None:
        """End all processes without waiting for their requests."""
        self._supervisor.kill()

    async def _serve(self, client: httpx.AsyncClient) -> None:
        self.was_served = True
        if self._options.as_json:
            await self._print_json(client, None)
        else:
            self._announce()
        await self._supervisor.run()

    async def _chat_once(self, client: httpx.AsyncClient, prompt: str) -> None:
        answer = await self._chat(client, prompt)
        if self._options.as_json:
            await self._print_json(client, answer)
            return
        states = self._supervisor.states
        used = []
        for state in states:
            peak = answer.peak if state.name == answer.replica else None
            used.append((state.name, describe_use(await self._use(client, state), peak)))
        print_status(self._out, self._deployment.name, self._status, states, used)

    async def _chat(self, client: httpx.AsyncClient, prompt: str) -> Answer:
        replica = next((state for state in self._supervisor.states if state.ready), None)
        if replica is None:
            raise CommandError("no replica takes requests any more; --logs shows what they say")
        answer = Answer(replica.name)
        if not self._options.as_json:
            self._err.print(f"> {prompt}", style="bold", markup=False, highlight=False)
        sampling = asyncio.create_task(self._sample(client, replica, answer))
        try:
            async for piece in stream_chat(client, f"{replica.url}/v1", self._deployment.model_name, prompt):
                answer.text += piece.text
                answer.finish_reason = piece.finish_reason or answer.finish_reason
                answer.usage = piece.usage or answer.usage
                self._write(piece.text)
        except ChatError as error:
            last = self._last_lines.get(replica.name)
            said = f"; last from {replica.name}: {last}" if last else ""
            raise CommandError(f"the chat failed: {error}{said}") from error
        finally:
            sampling.cancel()
            self._write("\n\n")
        await self._count_own_tokens(client, replica, answer)
        return answer

    def _write(self, text: str) -> None:
        """A model may write anything: no control characters reach the terminal."""
        if not self._options.as_json:
            sys.stdout.write(text.translate(UNPRINTABLE))
            sys.stdout.flush()

    async def _sample(self, client: httpx.AsyncClient, state: ReplicaState, answer: Answer) -> None:
        while True:
            use = await self._use(client, state)
            answer.peak = max(answer.peak, use.share if use is not None else 0.0)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _count_own_tokens(self, client: httpx.AsyncClient, state: ReplicaState, answer: Answer) -> None:
        """An answer may be over between two looks; its own tokens, but for the last, lay in the cache at its end."""
        use = await self._use(client, state)
        if use is not None and use.tokens_total and answer.usage:
            answer.peak = max(answer.peak, (answer.usage["total_tokens"] - 1) / use.tokens_total)

    async def _use(self, client: httpx.AsyncClient, state: ReplicaState) -> KVCacheUse | None:
        return await kv_cache_use(client, state.url) if state.url is not None else None

    async def _print_json(self, client: httpx.AsyncClient, answer: Answer | None) -> None:
        replicas = []
        for state in self._supervisor.states:
            use = await self._use(client, state)
            cache = use and {"share": use.share, "tokensUsed": use.tokens_used, "tokensTotal": use.tokens_total}
            what = {"name": state.name, "phase": state.phase, "url": state.url, "pid": state.pid}
            replicas.append({**what, "restarts": state.restarts, "kvCache": cache})
        document: dict[str, Any] = {"name": self._deployment.name, "status": self._status, "replicas": replicas}
        if answer is not None:
            fields = {"text": answer.text, "finishReason": answer.finish_reason, "usage": answer.usage}
            document["answer"] = fields | {"kvCachePeak": answer.peak}
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    def _announce(self) -> None:
        url, model = base_url(self._supervisor.states), self._deployment.model_name
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Tell me a joke"}]})
        lines = [f"{self._deployment.name} is ready: {url}  (model {model})", ""]
        lines += [f"  {state.name}: {state.url}/v1" for state in self._supervisor.states[1:]]
        lines += [
            f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'",
            "",
            "Ctrl-C stops it.",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    def _tell_port(self) -> None:
        url = self._supervisor.states[0].url
        port = httpx.URL(url).port if url is not None else None
        if self._port not in (0, port):
            self._progress.note(f"port {self._port} is taken; it listens on {port} instead: {url}/v1", style="yellow")

    def _on_change(self, states: Sequence[ReplicaState]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._status = local_status(self._deployment, states, self._status, now)
        self._progress.replicas(states)

    def _on_line(self, name: str, line: str) -> None:
        self._last_lines[name] = line
        if self._options.logs:
            self._progress.note(f"{name} | {line.translate(UNPRINTABLE)}")
