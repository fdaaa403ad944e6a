"""How many answers may be open: those that the engine runs at once, and a bounded queue behind them.

Past the bound a request is refused at once, before any work is done for it, and told when to come back: after the time
in which as many answers end as stand in its way, by the rate at which they ended lately.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from octavo_server.errors import RequestError

RETRY_LEAST_SECONDS: Final = 1
RETRY_MOST_SECONDS: Final = 60
_REMEMBERED: Final = 64  # ends of answers, from which the rate is estimated


class Admission:
    """Counts the choices that are open. Of the event loop alone."""

    def __init__(
        self, limit: int, num_submitted: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit` choices at most; `num_submitted` counts those that the engine knows of."""
        self.limit = limit
        self._num_submitted = num_submitted
        self._clock = clock
        self._preparing = 0
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)
        self._busy_since = 0.0

    @property
    def num_open(self) -> int:
        """Choices in the engine, in its queue, and on their way to it."""
        return self._num_submitted() + self._preparing

    def check(self, choices: int = 1) -> None:
        """Refuse what does not fit now.

        Raises:
            RequestError: 429 with the seconds after which to try again; 400 if it never can fit.
        """
        if choices > self.limit:
            raise RequestError(
                f"this request asks for {choices} answers, but this server takes {self.limit} at once: "
                "ask for fewer (--max-num-seqs and --max-queued-requests set the bound)",
                code="too_many_choices",
            )
        excess = self.num_open + choices - self.limit
        if excess > 0:
            raise RequestError(
                f"the server is full: {self.num_open} answers are open or wait, and {self.limit} may be; try again",
                code="queue_full",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                type="rate_limit_error",
                retry_after=self.retry_after(excess),
            )

    def place(self) -> "Place":
        """For one HTTP request; holds nothing yet."""
        return Place(self)

    def prepare(self, choices: int) -> None:
        """So many more are on their way to the engine, or fewer where negative."""
        if self.num_open == 0:
            self._ends.clear()
            self._busy_since = self._clock()
        self._preparing += choices

    def ended(self) -> None:
        """A choice has ended by itself."""
        self._ends.append(self._clock())

    def retry_after(self, excess: int) -> int:
        """Seconds until `excess` choices have ended, if they end as lately; whole, between 1 and 60.

        Where nothing has ended for long, the next end is supposed to take as long again.
        """
        ends = list(self._ends)
        mean = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0
        since = self._clock() - (ends[-1] if ends else self._busy_since)
        seconds = max(excess * mean, since)
        return min(max(math.ceil(seconds), RETRY_LEAST_SECONDS), RETRY_MOST_SECONDS)


class Place:
    """What one HTTP request holds of the bound between its arrival and the moment that the engine knows of it."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held = 0

    def take(self, choices: int) -> None:
        """Hold so many.

        Raises:
            RequestError: they do not fit.
        """
        self._admission.check(choices)
        self._admission.prepare(choices)
        self._held += choices

    def take_up_to(self, choices: int) -> int:
        """Hold up to so many, for who holds one and goes piece by piece; returns how many it holds.

        Of what is free half stays for others.
        """
        free = self._admission.limit - self._admission.num_open
        more = max(0, min(choices - self._held, (free + 1) // 2))
        self._admission.prepare(more)
        self._held += more
        return self._held

    def keep_one(self) -> None:
        """Hold one alone, for what is behind a piece that the engine has: it goes on however full the server is."""
        self._admission.prepare(1 - self._held)
        self._held = 1

    def leave(self) -> None:
        """Hold nothing any more: the engine has them, or the request has ended."""
        held, self._held = self._held, 0
        self._admission.prepare(-held)
