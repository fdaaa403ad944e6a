"""What all gateways together tell of each model. Pure but for its memory; time is passed in.

A sum of counters is no counter: it falls when a gateway goes and jumps when one comes. So what each of them adds from
one look to the next is added up here. A gateway that does not answer keeps what it told last, with its time: whoever
decides sees how old the oldest part of a sum is.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from octavo_operator.autoscale.observation import GatewaySample
from octavo_operator.autoscale.readings import TOTALS_OF_A_GATEWAY, GatewayReading, never_heard_of


@dataclass(slots=True)
class _Gateway:
    """One that was heard of: what it told last, and when."""

    at: float
    models: dict[str, GatewayReading] = field(default_factory=dict)


class GatewayTally:
    """Sums over the gateways of one installation."""

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._silent: set[str] = set()  # there are these, and they never told anything
        self._added: dict[str, tuple[float, ...]] = {}

    def look(self, gateways: Collection[str], told: Mapping[str, Mapping[str, GatewayReading]], at: float) -> None:
        """Take in what those of `gateways` (that are ready now) that answered at `at` have `told`, by model."""
        for gone in set(self._gateways) - set(gateways):
            del self._gateways[gone]
        for name, models in told.items():
            before = self._gateways.get(name)
            for model, reading in models.items():
                self._add(model, reading, before)
            self._gateways[name] = _Gateway(at, dict(models))
        self._silent = set(gateways) - set(self._gateways)

    def of(self, model: str) -> GatewaySample | None:
        """Of one model; None where there is no gateway, or one of them has yet to tell anything."""
        if self._silent or not self._gateways:
            return None
        readings = [each.models.get(model, never_heard_of(each.at)) for each in self._gateways.values()]
        held, tokens, in_flight = (sum(column) for column in zip(*(each.gauges for each in readings), strict=True))
        arrivals, prompts, finished, late_first, late_per = self._added.get(model, _NOTHING)
        return GatewaySample(
            at=min(each.at for each in self._gateways.values()),
            arrivals_total=arrivals,
            arrived_prompt_tokens_total=prompts,
            in_flight=max(0, int(in_flight - held)),  # a gateway counts those that it holds, too
            held_requests=int(held),
            held_prompt_tokens=int(tokens),
            finished_total=finished,
            late_first_token_total=late_first,
            late_per_token_total=late_per,
        )

    def _add(self, model: str, reading: GatewayReading, before: _Gateway | None) -> None:
        """What came since the last look; of a gateway that is new what it counts up to now is not news."""
        if before is None:
            return
        known = before.models.get(model, never_heard_of(before.at)).totals
        since = tuple(
            now - then if now >= then else now  # it was begun anew
            for now, then in zip(reading.totals, known, strict=True)
        )
        added = self._added.get(model, _NOTHING)
        self._added[model] = tuple(a + b for a, b in zip(added, since, strict=True))


_NOTHING = (0.0,) * len(TOTALS_OF_A_GATEWAY)
