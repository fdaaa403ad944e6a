"""How much the holders of an API key may ask for: requests and tokens a minute, and requests at once.

A minute's allowance is a token bucket: full at first, it fills up again steadily, in a minute from nothing. A request
takes one of the requests at its arrival. Of the tokens it reserves its prompt's and those that its answers may have,
once the prompt is tokenized, and at its end what it did not use goes back. Answers that name no maximum reserve what
the key's answers had on the average lately; what they use beyond it is owed, and who owes waits. Limits hold for one
process. Of the event loop alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

from octavo_common.errors import RequestError

MINUTE: Final = 60.0
_ROUNDING: Final = 1e-6  # units that are not there only because floats are rounded
_AVERAGED: Final = 8  # answers, about, over which the average length is taken


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key's holders may ask for together; None: as much as they like."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


class Bucket:
    """A minute's allowance of `capacity` units. It may be overdrawn. Times are seconds of one clock, never falling."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._at = now

    def level(self, now: float) -> float:
        """Units that are there; below 0 if some are owed."""
        return min(float(self.capacity), self._level + (now - self._at) * self.capacity / MINUTE)

    def take(self, units: float, now: float) -> None:
        """Take so many, or give them back where negative."""
        self._level = min(float(self.capacity), self.level(now) - units)
        self._at = now

    def wait(self, units: float, now: float) -> float:
        """Seconds until so many are there, if nobody takes any; 0 if they are."""
        missing = units - self.level(now)
        return missing * MINUTE / self.capacity if missing > _ROUNDING else 0.0

    def resize(self, capacity: int, now: float) -> None:
        """Another allowance, of which as much is gone as was of this one."""
        gone = self.capacity - self.level(now)
        self.capacity, self._level, self._at = capacity, capacity - gone, now


class KeyUse:
    """What the holders of one key have asked for lately."""

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float]) -> None:
        self._name = name
        self._limits = limits
        self._clock = clock
        self._open = 0
        now = clock()
        self._requests = _bucket(limits.requests_per_minute, now)
        self._tokens = _bucket(limits.tokens_per_minute, now)
        self._mean_answer = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is open."""
        return self._open == 0

    def limit(self, limits: Limits) -> None:
        """Other limits from now on."""
        if limits == self._limits:
            return
        now, self._limits = self._clock(), limits
        self._requests = _resized(self._requests, limits.requests_per_minute, now)
        self._tokens = _resized(self._tokens, limits.tokens_per_minute, now)

    def enter(self) -> "Ticket":
        """Begin a request.

        Raises:
            RequestError: 429, with the seconds after which to try again; nothing is taken then.
        """
        now, limits = self._clock(), self._limits
        if limits.concurrent_requests is not None and self._open >= limits.concurrent_requests:
            message = f"the API key {self._name!r} is limited to {limits.concurrent_requests} requests at once"
            raise _refusal(message, "requests", 1)
        if self._tokens is not None and (wait := self._tokens.wait(1, now)):
            raise self._too_many("tokens", self._tokens.capacity, wait)
        if self._requests is not None:
            if wait := self._requests.wait(1, now):
                raise self._too_many("requests", self._requests.capacity, wait)
            self._requests.take(1, now)
        self._open += 1
        return Ticket(self)

    def reserve(self, prompt_tokens: int, answer_tokens: int | None, answers: int) -> int:
        """Take the tokens that a request may use, and return how many; `answer_tokens` is the most that one may have.

        Raises:
            RequestError: 429; nothing is taken then.
        """
        if self._tokens is None:
            return 0
        now, capacity = self._clock(), self._tokens.capacity
        if answer_tokens is not None:
            tokens = prompt_tokens + answers * answer_tokens
        else:
            tokens = max(prompt_tokens, min(capacity, prompt_tokens + math.ceil(answers * self._mean_answer)))
        if tokens > capacity:
            raise _refusal(
                f"this request is too large for the limit of the API key {self._name!r}: it asks for {tokens} tokens "
                f"({prompt_tokens} of prompts, the rest at most for answers), and {capacity} tokens a minute are "
                "allowed; shorten the prompt or ask for fewer tokens",
                "tokens",
                None,
            )
        if wait := self._tokens.wait(tokens, now):
            raise self._too_many("tokens", capacity, wait)
        self._tokens.take(tokens, now)
        return tokens

    def settle(self, reserved: int, used: int) -> None:
        """Give back what was not used, or take what was used beyond what was reserved."""
        if self._tokens is not None:
            self._tokens.take(used - reserved, self._clock())

    def answered(self, tokens: int) -> None:
        """An answer had so many tokens."""
        self._mean_answer += (tokens - self._mean_answer) / _AVERAGED

    def leave(self) -> None:
        """A request has ended."""
        self._open -= 1

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's headers on what is left, for the limits that there are."""
        now = self._clock()
        return [*_headers("requests", self._requests, now), *_headers("tokens", self._tokens, now)]

    def _too_many(self, kind: Literal["requests", "tokens"], limit: int, wait: float) -> RequestError:
        seconds = max(1, math.ceil(wait))
        message = f"the API key {self._name!r} is limited to {limit} {kind} a minute; try again in {seconds} s"
        return _refusal(message, kind, seconds)


class Ticket:
    """One request of a key, from its arrival to its end. Without a `use`, of nobody who is limited, it does nothing."""

    __slots__ = ("_left", "_reserved", "_use", "_used")

    def __init__(self, use: KeyUse | None = None) -> None:
        self._use = use
        self._left = False
        self._reserved = self._used = 0

    def reserve(self, prompt_tokens: int, answer_tokens: int | None, answers: int = 1) -> None:
        """Take the tokens that the request may use, over all its `answers`. None: nobody said how long one may be.

        Raises:
            RequestError: 429; nothing is taken then.
        """
        if self._use is not None:
            self._reserved += self._use.reserve(prompt_tokens, answer_tokens, answers)

    def used(self, prompt_tokens: int, answers: Iterator[int]) -> None:
        """So many tokens were used, by an answer each of `answers`; said several times, or late, it counts as well."""
        if self._use is None:
            return
        used = prompt_tokens
        for tokens in answers:
            used += tokens
            self._use.answered(tokens)
        if self._left:
            self._use.settle(0, used)
        self._used += used

    def leave(self) -> None:
        """The request has ended: settle what it used."""
        if self._use is not None and not self._left:
            self._left = True
            self._use.settle(self._reserved, self._used)
            self._use.leave()


UNLIMITED: Final = Ticket()  # it holds nothing, and so may be everybody's


class Rates:
    """What the keys have been used for, by their names; as many as there are keys, and those with open requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, KeyUse] = {}

    def of(self, name: str, limits: Limits) -> KeyUse:
        """The use of a key that has these limits now."""
        use = self._uses.get(name)
        if use is None:
            use = self._uses[name] = KeyUse(name, limits, self._clock)
        use.limit(limits)
        return use

    def keep(self, names: frozenset[str]) -> None:
        """Forget the keys that are none of these, but for those with open requests."""
        self._uses = {name: use for name, use in self._uses.items() if name in names or not use.idle}


def spell_seconds(seconds: float) -> str:
    """As OpenAI spells them: 0s, 17ms, 1.2s, 6m0s, 1h0m0s; rounded up."""
    if seconds < 1:
        milliseconds = math.ceil(seconds * 1000)
        return "1s" if milliseconds == 1000 else f"{milliseconds}ms" if milliseconds else "0s"
    if seconds < MINUTE:
        tenths = math.ceil(seconds * 10) / 10
        return "1m0s" if tenths == MINUTE else f"{tenths:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def _bucket(capacity: int | None, now: float) -> Bucket | None:
    return None if capacity is None else Bucket(capacity, now)


def _resized(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if bucket is None or capacity is None:
        return _bucket(capacity, now)
    bucket.resize(capacity, now)
    return bucket


def _headers(kind: str, bucket: Bucket | None, now: float) -> Iterator[tuple[bytes, bytes]]:
    if bucket is None:
        return
    left = max(0, math.floor(bucket.level(now) + _ROUNDING))
    reset = spell_seconds(bucket.wait(bucket.capacity, now))
    for name, value in (("limit", bucket.capacity), ("remaining", left), ("reset", reset)):
        yield f"x-ratelimit-{name}-{kind}".encode(), str(value).encode()


def _refusal(message: str, kind: Literal["requests", "tokens"], retry_after: int | None) -> RequestError:
    """As OpenAI refuses: `type` is the kind of thing of which there were too many."""
    return RequestError(
        message,
        code="rate_limit_exceeded",
        status=HTTPStatus.TOO_MANY_REQUESTS,
        type=kind,
        retry_after=retry_after,
    )
