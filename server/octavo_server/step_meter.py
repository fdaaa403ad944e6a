"""How long steps take, how many tokens a second come of it, and what is estimated from that."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

_WEIGHT: Final = 0.05  # of the last step in the measured speeds
_RECENT: Final = 8  # steps by which the next ones are foreseen
_HOST: Final = 1.5  # as long as the host took of late at most, it may take
_EARLY_SECONDS: Final = 0.0003  # by so much a step is to be there before the one under way is through


class Speed:
    """Tokens per second over the last steps, the newer the more."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    @property
    def value(self) -> float:
        """0 as long as nothing was measured."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Takes in a step, if it had such tokens."""
        if tokens > 0:
            self._tokens += _WEIGHT * (tokens - self._tokens)
            self._seconds += _WEIGHT * (seconds - self._seconds)


class StepMeter:
    """Of the last step: `step_seconds` from its launch to its results, `step_tokens`, and `schedule_seconds`.

    `num_steps` counts those that were computed. The two speeds are those of steps behind each other: a step that was
    launched while another ran is counted from when that one was through.
    """

    def __init__(self) -> None:
        self.num_steps = self.step_tokens = 0
        self.step_seconds = self.schedule_seconds = 0.0
        self.prefill, self.decode = Speed(), Speed()
        self._last = 0.0  # when the last step was through
        # Of each step under way, when it was launched, its tokens, and how many of them are prefill's.
        self._begun = deque[tuple[float, int, int]]()
        # Of steps that only decoded: the last one's tokens, what they took the device, and the host to launch them.
        self._decode_tokens = 0
        self._decodes, self._hosts = deque[float](maxlen=_RECENT), deque[float](maxlen=_RECENT)

    def begin(self, now: float, num_tokens: int, num_prefill_tokens: int) -> None:
        """A step is about to be launched; seconds of one clock, as everywhere here."""
        self._begun.append((now, num_tokens, num_prefill_tokens))

    def launched(self, now: float) -> None:
        """It is launched; `schedule_seconds` says what it took to decide."""
        begun, _, num_prefill_tokens = self._begun[-1]
        if not num_prefill_tokens:
            self._hosts.append(self.schedule_seconds + now - begun)

    def forget(self) -> None:
        """Steps under way have failed."""
        self._begun.clear()

    def slack(self, now: float) -> float:
        """Seconds by which the next step can be decided later, and still be there when the one under way is through.

        That it will only decode is assumed. The one under way takes at least as long as its decodes would alone; that
        is what the last steps took, or of that their share of the requests. 0 or less: it is to be decided now.
        """
        if len(self._begun) != 1 or not self._decodes:
            return 0.0
        begun, num_tokens, num_prefill_tokens = self._begun[0]
        share = min(1.0, (num_tokens - num_prefill_tokens) / self._decode_tokens)
        through = max(begun, self._last) + share * min(self._decodes)
        return through - now - _HOST * max(self._hosts) - _EARLY_SECONDS

    def add(self, now: float, num_tokens: int, num_prefill_tokens: int) -> None:
        """Takes in the oldest step under way, which is through `now`."""
        launched, _, _ = self._begun.popleft()
        seconds = now - max(launched, self._last)
        self._last = now
        self.num_steps += 1
        self.step_seconds, self.step_tokens = now - launched, num_tokens
        self.prefill.add(num_prefill_tokens, seconds)
        self.decode.add(num_tokens - num_prefill_tokens, seconds)
        if num_tokens and not num_prefill_tokens:
            self._decode_tokens = num_tokens
            self._decodes.append(seconds)

    def stats(self) -> dict[str, Any]:
        """What it measured, as `ipc.EngineStats` names it."""
        return {
            "steps": self.num_steps,
            "step_seconds": self.step_seconds,
            "step_tokens": self.step_tokens,
            "schedule_seconds": self.schedule_seconds,
            "prefill_tokens_per_second": self.prefill.value,
            "decode_tokens_per_second": self.decode.value,
        }


@dataclass(slots=True)
class Rates:
    """What the choice between swap and recompute is estimated from; 0: not known."""

    prefill_tokens_per_second: float = 0.0
    copy_bytes_per_second: float = 0.0
    bytes_per_page: int = 0

    def swap_is_faster(self, num_tokens: int, page_size: int) -> bool:
        """Copying the pages of so many tokens out and in again, against computing them again; also if unknown."""
        if not (self.prefill_tokens_per_second and self.copy_bytes_per_second):
            return True
        num_bytes = 2 * self.bytes_per_page * -(-num_tokens // page_size)
        return num_bytes / self.copy_bytes_per_second <= num_tokens / self.prefill_tokens_per_second
