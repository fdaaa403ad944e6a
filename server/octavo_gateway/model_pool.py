"""The replicas of one model, and the requests that wait for one of them."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from octavo_common.errors import RequestError
from octavo_common.prefixes import Prompt
from octavo_common.routing import Chosen, Router
from octavo_gateway.discovery import Endpoint
from octavo_gateway.fair_queue import FairQueue, Held
from octavo_gateway.replica import STATES, Replica

RETRY_AFTER: Final = 2  # seconds, where nothing better is known


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for a replica. key: whose request it is, for turns; avoid: replicas that it has seen break down.

    streams: its first token will be seen. begun: its client has had some of its answer.
    """

    prompt: Prompt
    key: str
    size: int
    streams: bool
    avoid: frozenset[str] = frozenset()
    begun: bool = False


class Place:
    """A request's place at a replica, until `leave`."""

    __slots__ = ("_left", "_pool", "_tokens", "_waits", "chosen", "replica")

    def __init__(self, pool: "ModelPool", replica: Replica, chosen: Chosen, wanted: Wanted) -> None:
        self.replica, self.chosen = replica, chosen
        self._pool = pool
        self._waits = wanted.streams
        self._tokens = max(0, wanted.prompt.total - chosen.hit_tokens) if wanted.streams else 0
        self._left = False
        replica.in_flight += 1
        replica.waiting += self._waits
        replica.waiting_tokens += self._tokens

    def has_begun(self) -> None:
        """Its first token has come."""
        if self._waits:
            self._waits = False
            self.replica.waiting -= 1
            self.replica.waiting_tokens -= self._tokens
            self._pool.pump()

    def leave(self) -> None:
        """The request has ended there, however it did."""
        if not self._left:
            self._left = True
            self.replica.in_flight -= 1
            if self._waits:
                self._waits = False
                self.replica.waiting -= 1
                self.replica.waiting_tokens -= self._tokens
            self._pool.pump()


class ModelPool:
    """Gives places at replicas, the best one first, and lets wait what none can take. Of the event loop alone."""

    def __init__(self, name: str, router: Router, queue: FairQueue[tuple[Wanted, "asyncio.Future[Place]"]]) -> None:
        self.name = name
        self.replicas: dict[str, Replica] = {}
        self.in_flight = 0
        self.card: bytes | None = None  # what a replica says of the model in its list
        self.queue = queue
        self._router = router
        self._timer: asyncio.TimerHandle | None = None
        self.on_routed: Callable[[Chosen], None] = lambda _: None

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """These are there now."""
        now = {endpoint.id: endpoint for endpoint in endpoints}
        for gone in self.replicas.keys() - now.keys():
            self.replicas.pop(gone).gone = True
        for name, endpoint in now.items():
            known = self.replicas.get(name)
            if known is not None and known.endpoint.url != endpoint.url:
                known.gone, known = True, None  # another process under the same name
            if known is None:
                self.replicas[name] = Replica(endpoint)
            else:
                if endpoint.ready and not known.endpoint.ready:
                    known.paused_until, known.failures = 0.0, 0
                known.endpoint = endpoint
        self._router.keep(now.keys())
        self.pump()

    async def place(self, wanted: Wanted, seconds: float) -> Place:
        """A place at a replica, now or when there is one, within so many seconds.

        Raises:
            RequestError: 503, with the seconds after which to try again: too many wait, or it waited too long.
        """
        # Whoever waits goes first.
        if (wanted.begun or not len(self.queue)) and (found := self._find(wanted)) is not None:
            return found
        if not wanted.begun and not self.queue.has_room(wanted.size):
            raise _refused(f"{len(self.queue)} requests wait for a replica of {self.name!r}: try again", "queue_full")
        waits: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        held = Held(wanted.key, wanted.size, wanted.prompt.total, (wanted, waits))
        self.queue.add(held, begun=wanted.begun)
        self._look_again()
        place: Place | None = None
        try:
            async with asyncio.timeout(seconds):
                place = await waits
            return place
        except TimeoutError:
            message = f"no replica of {self.name!r} could take the request in time"
            raise _refused(message, "no_replica") from None
        finally:
            if place is None and not self.queue.remove(held) and not waits.cancelled() and waits.exception() is None:
                waits.result().leave()  # it came in the moment in which nobody waited any more

    def place_at(self, replica_id: str, wanted: Wanted) -> Place | None:
        """A place at one replica, the only one that has what is needed; None if it is not there.

        Raises:
            RequestError: 503: it is there, and cannot be reached now.
        """
        replica = self.replicas.get(replica_id)
        if replica is None:
            return None
        now = asyncio.get_running_loop().time()
        if not replica.takes(now):
            raise _refused(f"the replica of {self.name!r} that has it takes no requests now", "no_replica")
        return Place(self, replica, Chosen(replica_id, 0, "only one"), wanted)

    def pump(self) -> None:
        """Give places to those who wait, as far as there are any."""
        while (held := self.queue.first()) is not None:
            wanted, waits = held.item
            if waits.done():
                self.queue.take()
                continue
            found = self._find(wanted)
            if found is None:
                break
            self.queue.take()
            waits.set_result(found)
        self._look_again()

    def end(self, error: RequestError) -> None:
        """The model is gone: whoever waits for one of its replicas is told so."""
        while (held := self.queue.first()) is not None:
            self.queue.take()
            if not held.item[1].done():
                held.item[1].set_exception(error)

    def states(self) -> dict[str, int]:
        """How many replicas are in which state."""
        now = asyncio.get_running_loop().time()
        counts = dict.fromkeys(STATES, 0)
        for replica in self.replicas.values():
            counts[replica.state(now)] += 1
        return counts

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Counts a request that is in flight: held, or at a replica."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def learned(self, place: Place, prompt: Prompt, prompt_tokens: int, cached_tokens: int) -> None:
        """How much of a prompt the replica had in its cache."""
        self._router.learned(place.chosen, prompt, prompt_tokens, cached_tokens)

    def _find(self, wanted: Wanted) -> Place | None:
        now = asyncio.get_running_loop().time()
        able = [replica for replica in self.replicas.values() if replica.takes(now)]
        fresh = [replica for replica in able if replica.endpoint.id not in wanted.avoid]
        loads = [replica.load(now) for replica in fresh or able]
        chosen = self._router.choose(wanted.prompt, loads, now)
        if chosen is None:
            return None
        replica = self.replicas[chosen.id]
        self._router.sent(wanted.prompt, next(load for load in loads if load.id == chosen.id), now)
        self.on_routed(chosen)
        return Place(self, replica, chosen, wanted)

    def _look_again(self) -> None:
        """Once a pause of a replica is over, if anybody waits: nothing else would say so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not len(self.queue):
            return
        loop = asyncio.get_running_loop()
        ends = [replica.paused_until for replica in self.replicas.values() if replica.paused_until > loop.time()]
        if ends:
            self._timer = loop.call_at(min(ends) + 0.001, self.pump)


def _refused(message: str, code: str) -> RequestError:
    return RequestError(message, code=code, status=503, type="server_error", retry_after=RETRY_AFTER)
