"""How fast a replica is: the costs of a step, measured, and what it has room for."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Hardware:
    """A step takes `step` seconds, and besides, for each request in it, each KV token read and each prompt token.

    A prompt token at position p costs `prompt_token + position * p`. `step_tokens` is the most that a step computes,
    `step_tokens_loaded` while at least as many prompt tokens wait. `overhead`: seconds of a first token outside of
    steps (HTTP, text to tokens). `queue_tokens`: a replica takes requests from the gateway while fewer prompt tokens
    wait at it. The defaults are one H100 with a model of 8B parameters; `docs/autoscaling.md` has the measured figures.
    """

    kv_tokens: int = 443_500
    step: float = 6.45e-3
    request: float = 10e-6
    kv_token: float = 42.6e-9
    prompts: float = 4.8e-3
    prompt_token: float = 1 / 43_500
    position: float = 1 / 43_500 / 36_000
    overhead: float = 12e-3
    max_requests: int = 512
    step_tokens: int = 2048
    step_tokens_loaded: int = 8192
    queue_tokens: int = 16_384

    def faster(self, factor: float) -> Self:
        """The same with all times divided by `factor`."""
        times = ("step", "prompts", "request", "kv_token", "prompt_token", "position", "overhead")
        return replace(self, **{name: getattr(self, name) / factor for name in times})

    def prompt_seconds(self, start: int, end: int) -> float:
        """Of a step, for the prompt tokens from position `start` to before `end`."""
        return (end - start) * (self.prompt_token + self.position * (start + end) / 2)

    def work(self, prompt: int, cached: int, output: int) -> float:
        """Replica-seconds that a request adds to the steps it is in, the steps' constant part not counted."""
        contexts = prompt + output / 2
        return self.prompt_seconds(cached, prompt) + output * (self.request + self.kv_token * contexts)
