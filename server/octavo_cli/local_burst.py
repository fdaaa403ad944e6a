"""`octavo up --burst`: load as it comes, a replica that dies under it, and an account of what became of the requests.

All of it goes through the gateway, as clients' requests do: a first request, many streams at once, then one after the
other while the fleet gets small again. Answers are greedy, so those to one prompt should agree, disturbed or not.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from octavo_cli.chat_client import ChatError, stream_chat
from octavo_cli.errors import CommandError
from octavo_cli.replica_metrics import counter_value
from octavo_operator.local.fleet import LocalFleet

BURST_SECONDS: Final = 20.0
"""Of many streams at once, at least."""
KILL_AFTER_SECONDS: Final = 40.0
"""Of the burst a replica is killed, if not all that there may be were ready before."""
AFTER_THE_KILL_SECONDS: Final = 6.0
"""The burst goes on, so that it is seen whether the streams do."""
QUIET_SECONDS: Final = 150.0
"""At the most it is waited for the fleet to get small."""
QUIET_PAUSE_SECONDS: Final = 8.0
"""Between two of the requests that are left: the fleet is in use, and not idle."""
LOOK_SECONDS: Final = 0.1
TELL_SECONDS: Final = 5.0
ANSWER_TOKENS: Final = 96
RESUMED: Final = "octavo:gateway_resumed_total"
SUBJECTS: Final = ("a fox", "the sea", "a lost key", "two clocks", "an old map", "the first snow", "a robot", "bread")
NARRATORS: Final = ("a child", "a sailor", "a baker")
PROMPTS: Final = tuple(
    f"This is told by {narrator}: a story about {subject}. "
    + " ".join(["Take your time, use plain words, and let somebody help somebody else."] * 5)
    for narrator in NARRATORS
    for subject in SUBJECTS
)
"""They begin differently, so that they share no pages, and are longer than a greeting, as most are."""


@dataclass(slots=True)
class Account:
    """What became of the requests. `texts`: the answers by prompt; more than one to a prompt differ."""

    requests: int = 0
    open: int = 0
    failures: list[str] = field(default_factory=list)
    texts: dict[str, set[str]] = field(default_factory=dict)
    resumed: int = 0
    killed: str | None = None
    is_small: bool = False

    @property
    def differing(self) -> int:
        """Prompts whose answers do not all agree."""
        return sum(len(each) > 1 for each in self.texts.values())


async def burst(fleet: LocalFleet, client: httpx.AsyncClient, streams: int, tell: Callable[[str], None]) -> Account:
    """Load `fleet`, kill one of its replicas, and wait until it is small again; `tell` is called with what happens.

    Raises:
        CommandError: a request failed.
    """
    rehearsal = Rehearsal(fleet, client, tell)
    await rehearsal.first()
    await rehearsal.burst(streams)
    await rehearsal.quiet()
    account = rehearsal.account
    account.resumed = await counter_value(client, f"{fleet.url}/metrics", RESUMED)
    if account.failures:
        some = "; ".join(dict.fromkeys(account.failures))[:500]
        raise CommandError(f"{len(account.failures)} of {account.requests} requests failed: {some}")
    return account


class Rehearsal:
    """The acts, each of which is done once, in turn."""

    def __init__(self, fleet: LocalFleet, client: httpx.AsyncClient, tell: Callable[[str], None]) -> None:
        self.account = Account()
        self._fleet, self._client, self._tell = fleet, client, tell
        self._most = _most(fleet)

    async def first(self) -> None:
        """One request; where there is no replica it wakes one."""
        had, begun = len(self._ready()), time.monotonic()
        self._tell(f"a first request, with {had} replicas ready")
        await self._ask(PROMPTS[0])
        self._tell(f"answered after {time.monotonic() - begun:.1f} s")

    async def burst(self, streams: int) -> None:
        """Many streams at once, and a death among them."""
        self._tell(f"a burst: {streams} streams at a time")
        ending = asyncio.Event()
        workers = [asyncio.create_task(self._stream_on(index, ending)) for index in range(streams)]
        async with _beside(self._tell_now_and_then()):
            begun = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until_all_are_ready(), KILL_AFTER_SECONDS)
            self._kill_one()
            left = max(AFTER_THE_KILL_SECONDS, begun + BURST_SECONDS - time.monotonic())
            await asyncio.sleep(left)
            ending.set()
            await asyncio.gather(*workers)
        self._tell(f"the burst is over: {self._so_far()}")

    async def quiet(self) -> None:
        """One request at a time, until there are as few replicas as there may be, and one at least."""
        enough = asyncio.Event()
        asking = asyncio.create_task(self._ask_now_and_then(enough))
        async with _beside(self._until_it_is_small(enough)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), QUIET_SECONDS)
        enough.set()
        await asking

    async def _until_it_is_small(self, enough: asyncio.Event) -> None:
        while len(self._fleet.replicas) > _least(self._fleet):  # noqa: ASYNC110 (a look now and then is enough)
            await asyncio.sleep(LOOK_SECONDS)
        self.account.is_small = True
        enough.set()

    async def _ask_now_and_then(self, enough: asyncio.Event) -> None:
        while not enough.is_set():
            await self._ask(PROMPTS[1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), QUIET_PAUSE_SECONDS)

    async def _until_all_are_ready(self) -> None:
        while len(self._ready()) < self._most:  # noqa: ASYNC110 (a look now and then is enough)
            await asyncio.sleep(LOOK_SECONDS)

    def _ready(self) -> list[str]:
        return [state.name for state in self._fleet.replicas if state.ready]

    def _kill_one(self) -> None:
        victim = next((each for each in self._fleet.replicas if each.ready and each.pid is not None), None)
        if victim is not None and victim.pid is not None:
            self._tell(f"SIGKILL to {victim.name}, with {self.account.open} streams open")
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
            self.account.killed = victim.name

    async def _stream_on(self, index: int, ending: asyncio.Event) -> None:
        """The same again and again: its answers should agree."""
        while not ending.is_set():
            await self._ask(PROMPTS[index % len(PROMPTS)])

    async def _ask(self, prompt: str) -> None:
        account, text = self.account, ""
        model, url = self._fleet.deployment.model_name, f"{self._fleet.url}/v1"
        # Each answer is as long as the next, whatever the model has to say.
        fields = {"temperature": 0, "max_tokens": ANSWER_TOKENS, "min_tokens": ANSWER_TOKENS}
        account.requests += 1
        account.open += 1
        try:
            async for piece in stream_chat(self._client, url, model, prompt, **fields):
                text += piece.text
        except ChatError as error:
            account.failures.append(str(error))
        else:
            account.texts.setdefault(prompt, set()).add(text)
        finally:
            account.open -= 1

    def _so_far(self) -> str:
        account = self.account
        done = account.requests - account.open - len(account.failures)
        return f"{done} answered, {account.open} streams open, {len(account.failures)} failed"

    async def _tell_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            self._tell(self._so_far())


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _most(fleet: LocalFleet) -> int:
    autoscaling = fleet.deployment.spec.autoscaling
    if autoscaling is None or autoscaling.mode != "Internal" or autoscaling.max_replicas is None:
        return fleet.deployment.desired_replicas
    return autoscaling.max_replicas


def _least(fleet: LocalFleet) -> int:
    autoscaling = fleet.deployment.spec.autoscaling
    if autoscaling is None or autoscaling.mode != "Internal":
        return fleet.deployment.desired_replicas
    return max(1, autoscaling.min_replicas)
