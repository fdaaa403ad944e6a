"""One run of `octavo up`: start, show, chat or wait, report. However `run` ends, it leaves no process."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any, Final

import httpx
from rich.console import Console

from octavo_cli.chat_client import ChatError, stream_chat
from octavo_cli.errors import CommandError
from octavo_cli.local_burst import burst
from octavo_cli.local_burst_view import print_account
from octavo_cli.progress import Progress
from octavo_cli.replica_metrics import KVCacheUse, kv_cache_use
from octavo_cli.status_view import print_status
from octavo_operator.autoscale.decide import Decision
from octavo_operator.local.fleet import Listener, LocalFleet
from octavo_operator.local.gateway import Door
from octavo_operator.local.plan import LocalPlan

SAMPLE_SECONDS: Final = 0.1
ASK_SECONDS: Final = 5.0
UNPRINTABLE: Final = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asks for. `door`: the gateway's, with the port wished for. `burst`: streams at once."""

    door: Door
    once: str | None = None
    burst: int | None = None
    as_json: bool = False
    logs: bool = False


@dataclass(slots=True)
class Answer:
    """What a chat brought; `peak` is the greatest share of a replica's KV cache known to have been in use, 0 to 1."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    peak: float = 0.0


class LocalRun:
    """Holds the fleet, and shows what becomes of it."""

    def __init__(self, plan: LocalPlan, options: RunOptions) -> None:
        self.was_served = False  # came up as asked, to run until it is told to end
        self._plan = plan
        self._options = options
        self._deployment = plan.deployment
        self._out, self._err = Console(file=sys.stdout), Console(file=sys.stderr)
        self._progress = Progress(self._err)
        self._last_lines: dict[str, str] = {}
        self._told = ""
        listener = Listener(self._on_change, self._on_line, self._on_decision)
        self._fleet = LocalFleet(plan, options.door, listener)

    async def run(self) -> None:
        """Bring it up and do what was asked.

        Raises:
            ReplicaFailedError: a replica cannot start.
            CommandError: the chat failed.
        """
        with self._progress as progress:
            for warning in self._plan.warnings:
                progress.note(f"warning: {warning}", style="yellow")
            headers = {"Authorization": f"Bearer {self._fleet.key}"}
            client = httpx.AsyncClient(trust_env=False, timeout=ASK_SECONDS, headers=headers)
            async with self._fleet, client:
                await self._fleet.wait_ready()
                progress.close()
                self._tell_port()
                if self._options.once is not None:
                    await self._chat_once(client, self._options.once)
                elif self._options.burst is not None:
                    account = await burst(self._fleet, client, self._options.burst, self._progress.event)
                    print_account(self._out, account, self._fleet.history)
                else:
                    await self._serve(client)

    def hurry(self) -> None:
        """End all processes without waiting for their requests."""
        self._fleet.kill()

    async def _serve(self, client: httpx.AsyncClient) -> None:
        self.was_served = True
        if self._options.as_json:
            await self._print_json(client, None)
        else:
            self._announce()
        await self._fleet.run()

    async def _chat_once(self, client: httpx.AsyncClient, prompt: str) -> None:
        answer = await self._chat(client, prompt)
        if self._options.as_json:
            await self._print_json(client, answer)
            return
        states = [state for state in self._fleet.replicas if state.url is not None]
        used = [(each.name, await kv_cache_use(client, each.url or "")) for each in states]
        print_status(self._out, self._deployment.name, self._fleet.status, states, used, answer.peak)

    async def _chat(self, client: httpx.AsyncClient, prompt: str) -> Answer:
        answer = Answer()
        if not self._options.as_json:
            self._err.print(f"> {prompt}", style="bold", markup=False, highlight=False)
        sampling = asyncio.create_task(self._sample(client, answer))
        try:
            async for piece in stream_chat(client, f"{self._fleet.url}/v1", self._deployment.model_name, prompt):
                answer.text += piece.text
                answer.finish_reason = piece.finish_reason or answer.finish_reason
                answer.usage = piece.usage or answer.usage
                self._write(piece.text)
        except ChatError as error:
            last = [f"; last from {name}: {line}" for name, line in self._last_lines.items()]
            raise CommandError(f"the chat failed: {error}{''.join(last)}") from error
        finally:
            sampling.cancel()
            self._write("\n\n")
        await self._count_own_tokens(client, answer)
        return answer

    def _write(self, text: str) -> None:
        """A model may write anything: no control characters reach the terminal."""
        if not self._options.as_json:
            sys.stdout.write(text.translate(UNPRINTABLE))
            sys.stdout.flush()

    async def _sample(self, client: httpx.AsyncClient, answer: Answer) -> None:
        while True:
            for use in await self._uses(client):
                answer.peak = max(answer.peak, use.share)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _count_own_tokens(self, client: httpx.AsyncClient, answer: Answer) -> None:
        """An answer may be over between two looks; its own tokens, but for the last, lay in the cache at its end."""
        totals = [use.tokens_total for use in await self._uses(client) if use.tokens_total]
        if totals and answer.usage:
            answer.peak = max(answer.peak, (answer.usage["total_tokens"] - 1) / max(totals))

    async def _uses(self, client: httpx.AsyncClient) -> list[KVCacheUse]:
        """Of those replicas that tell."""
        urls = [state.url for state in self._fleet.replicas if state.ready and state.url is not None]
        return [use for use in await asyncio.gather(*(kv_cache_use(client, url) for url in urls)) if use is not None]

    async def _print_json(self, client: httpx.AsyncClient, answer: Answer | None) -> None:
        replicas = []
        for state in self._fleet.replicas:
            use = None if state.url is None else await kv_cache_use(client, state.url)
            cache = use and {"share": use.share, "tokensUsed": use.tokens_used, "tokensTotal": use.tokens_total}
            what = {"name": state.name, "phase": state.phase, "url": state.url, "pid": state.pid}
            replicas.append({**what, "restarts": state.restarts, "kvCache": cache})
        door = self._fleet.gateway
        document: dict[str, Any] = {"name": self._deployment.name, "status": self._fleet.status, "replicas": replicas}
        document["gateway"] = {"url": door.url, "pid": door.pid, "restarts": door.restarts}
        if answer is not None:
            fields = {"text": answer.text, "finishReason": answer.finish_reason, "usage": answer.usage}
            document["answer"] = fields | {"kvCachePeak": answer.peak}
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    def _announce(self) -> None:
        url, model = f"{self._fleet.url}/v1", self._deployment.model_name
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Tell me a joke"}]})
        lines = [f"{self._deployment.name} is ready: {url}  (model {model})", ""]
        lines += [f"  {state.name}: {state.url}" for state in self._fleet.replicas]
        lines += [
            f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'",
            "",
            "Ctrl-C stops it.",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    def _tell_port(self) -> None:
        url, wished = self._fleet.url, self._options.door.port
        port = httpx.URL(url).port if url is not None else None
        if wished not in (0, port):
            self._progress.note(f"port {wished} is taken; it listens on {port} instead: {url}/v1", style="yellow")

    def _on_change(self) -> None:
        self._progress.replicas(self._fleet.processes)

    def _on_decision(self, decision: Decision, before: int) -> None:
        """Each that changes something, and each new reason for leaving it as it is."""
        wanted = before if decision.replicas is None else decision.replicas
        if wanted != before or decision.reason != self._told:
            noun = "replica" if wanted == 1 else "replicas"
            arrow = f"{before} → {wanted} {noun}" if wanted != before else f"{wanted} {noun}"
            self._told = decision.reason
            self._progress.event(f"{arrow}: {decision.reason}: {decision.message}", style="cyan")

    def _on_line(self, name: str, line: str) -> None:
        self._last_lines[name] = line
        if self._options.logs:
            self._progress.note(f"{name} | {line.translate(UNPRINTABLE)}")
