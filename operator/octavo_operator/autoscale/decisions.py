"""What is decided about each autoscaled LLMDeployment: from the loop that looks at loads to the passes that write.

A decision is kept in memory alone until a pass has applied it. One that is lost with the process is made again; until
then the number of replicas stays as it is. What was learned is in the status, and read from there.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from octavo_operator.api import LLMDeployment
from octavo_operator.api.autoscaling import Autoscaling
from octavo_operator.autoscale import kept, settings
from octavo_operator.autoscale.decide import Decision, decide
from octavo_operator.autoscale.members import Memory
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.state import State
from octavo_operator.autoscale.words import scaling_active
from octavo_operator.observation import Scaling
from octavo_operator.status import condition

Manifest = Mapping[str, Any]
Name = tuple[str, str]
"""Namespace and name."""
Decide = Callable[[Fleet, settings.Settings, State, float], Decision]

_FIXED = "spec.replicas"
_LONGEST_REASON = 1024
_UNKNOWN = "no gateway tells whether requests wait, and without one nothing would wake the model: one replica stays"
GATEWAY_SECONDS = 60.0
"""For which gateways may tell nothing before a model that is at zero is woken, to be there without them."""


@dataclass(slots=True)
class Entry:
    """One that is autoscaled. `told`: the learned figures as the status has them, or will; `told_at` by the clock.

    `scaled`: when and why the number changed last. `recommended`: in mode Recommend, the number that is told.
    `wanted` and `why`: in mode Internal, the decision that is to be applied. `gateway_at`: when a gateway last told of
    it; `lacks_gateway`: none does, so that nobody would wake it from zero.
    """

    uid: str
    deployment: LLMDeployment
    state: State
    told: Manifest
    told_at: float | None
    scaled: Manifest
    recommended: int | None = None
    decision: Decision | None = None
    wanted: int | None = None
    why: str = ""
    gateway_at: float | None = None
    lacks_gateway: bool = False
    memory: Memory = field(default_factory=Memory)

    @property
    def autoscaling(self) -> Autoscaling:
        """spec.autoscaling, which it has."""
        given = self.deployment.spec.autoscaling
        return given if given is not None else Autoscaling(mode="External")

    @property
    def is_looked_at(self) -> bool:
        """Whether its load decides something."""
        return self.autoscaling.mode != "External" and not self.deployment.spec.suspend


class Decisions:
    """Of all LLMDeployments that this operator looks after. `is_looked_at` is set while one of them is."""

    def __init__(self, decider: Decide = decide) -> None:
        self._decide = decider
        self._entries: dict[Name, Entry] = {}
        self._models: dict[Name, tuple[str, str]] = {}  # of all LLMDeployments: age as text, and the model's name
        self.changed = asyncio.Event()

    def looked_at(self) -> list[Name]:
        """Those whose load decides something."""
        return [name for name, entry in self._entries.items() if entry.is_looked_at]

    def entry(self, name: Name) -> Entry | None:
        """What is known of one of them; None if it is not autoscaled."""
        return self._entries.get(name)

    def settle(
        self, live: Manifest, deployment: LLMDeployment, child: Manifest | None
    ) -> tuple[LLMDeployment, Scaling | None]:
        """`deployment` with the number of replicas that it is to have: what was decided, else what its Deployment
        `child` has, else the first number; and what there is to tell. `live`: the same as the API server has it.
        """
        name, autoscaling = (deployment.namespace, deployment.name), deployment.spec.autoscaling
        self._models[name] = str(live["metadata"].get("creationTimestamp") or ""), deployment.model_name
        if autoscaling is None:
            self._drop(name)
            return deployment, None
        entry = self._known(name, live, deployment)
        before = condition(live.get("status") or {}, "ScalingActive")
        verdict = scaling_active(deployment, autoscaling, entry.decision, before, lacks_gateway=entry.lacks_gateway)
        if autoscaling.mode != "Internal":
            return deployment, Scaling(verdict, _told(entry), _FIXED)
        there = None if child is None else int(child["spec"].get("replicas", 1))
        pinned = deployment.scaled(entry.wanted, there)
        by = entry.why if entry.wanted == pinned.spec.replicas else "spec.autoscaling.minReplicas and maxReplicas"
        return pinned, Scaling(verdict, _told(entry), by, is_internal=True)

    def scaled(self, name: Name, scaling: Scaling, now: str) -> Scaling:
        """The number of replicas was changed at `now`, RFC 3339: what there is to tell from then on."""
        entry = self._entries.get(name)
        if entry is None or entry.wanted is None:
            return scaling
        entry.scaled = {"lastScaleTime": now, "reason": scaling.by[:_LONGEST_REASON]}
        return replace(scaling, told=_told(entry))

    def take(self, name: Name, fleet: Fleet, now: float) -> tuple[Decision, bool] | None:
        """Decide from what was seen at `now`, seconds since the epoch. Whether a pass has something to do or to tell.

        What is decided is not wanted before `want` says so. None where it is not looked at any more.
        """
        entry = self._entries.get(name)
        if entry is None or not entry.is_looked_at:
            return None
        before = entry.decision
        could_wake, entry.lacks_gateway = not entry.lacks_gateway, _lacks_gateway(entry, fleet, now)
        may_rest = not entry.lacks_gateway and (fleet.gateway is not None or fleet.desired == 0)
        decision = self._decide(fleet, settings_of(entry.autoscaling, may_rest), entry.state, now)
        if entry.lacks_gateway and fleet.desired == 0 and decision.replicas:
            decision = replace(decision, reason="GatewayUnknown", message=_UNKNOWN)
        entry.state, entry.decision = decision.state, decision
        if entry.autoscaling.mode == "Recommend" and entry.recommended != decision.replicas:
            entry.recommended = decision.replicas
            entry.scaled = {"reason": decision.message[:_LONGEST_REASON]}
        is_news = _has_learned(entry, now)
        is_news = is_news or before is None or _shown(before) != _shown(decision)
        return decision, is_news or could_wake == entry.lacks_gateway

    def want(self, name: Name, decision: Decision, current: int) -> bool:
        """Have a decision applied by the next pass; `current` replicas are asked for now. Whether that is another
        number than was wanted before: one that cannot be applied yet, as a model is downloaded, is no news every time.
        """
        entry = self._entries.get(name)
        if entry is None or not entry.is_looked_at or entry.decision is not decision:
            return False
        if not decision.apply or decision.replicas is None or entry.autoscaling.mode != "Internal":
            return False
        if decision.replicas != current or entry.wanted is None:
            entry.why = decision.message
        is_news = decision.replicas not in {current, entry.wanted}
        entry.wanted = decision.replicas
        return is_news

    def is_behind_gateway(self, name: Name) -> bool:
        """Whether what gateways tell of its model is about this one: of several of one name they serve the oldest."""
        model = self._models.get(name, ("", ""))[1]
        return name == min((age, other) for other, (age, called) in self._models.items() if called == model)[1]

    def forget(self, name: Name) -> None:
        """It is gone, or what its spec means is not known."""
        self._models.pop(name, None)
        self._drop(name)

    def _drop(self, name: Name) -> None:
        if self._entries.pop(name, None) is not None:
            self.changed.set()

    def _known(self, name: Name, live: Manifest, deployment: LLMDeployment) -> Entry:
        uid, entry = str(live["metadata"]["uid"]), self._entries.get(name)
        if entry is None or entry.uid != uid:
            told = (live.get("status") or {}).get("autoscaling") or {}
            figures = {key: told[key] for key in ("learned", "replicaTokens", "startupSeconds") if key in told}
            scaled = {key: told[key] for key in ("lastScaleTime", "reason") if key in told}
            state, recommended = kept.state_of(told), told.get("recommendedReplicas")
            entry = self._entries[name] = Entry(uid, deployment, state, figures, None, scaled, recommended)
        was_looked_at, was_mode = entry.is_looked_at, entry.autoscaling.mode
        entry.deployment = deployment
        if not entry.is_looked_at or entry.autoscaling.mode != was_mode:
            entry.decision = entry.wanted = None  # of another time, or of another rule
        if entry.is_looked_at != was_looked_at or entry.decision is None:
            self.changed.set()
        return entry


def settings_of(autoscaling: Autoscaling, may_rest: bool = True) -> settings.Settings:
    """`spec.autoscaling` as the decider takes it; where it may not rest, without the way to zero."""
    targets, behavior, zero = autoscaling.targets, autoscaling.behavior, autoscaling.scale_to_zero
    return settings.Settings(
        mode=autoscaling.mode,
        min_replicas=autoscaling.min_replicas,
        max_replicas=autoscaling.max_replicas or max(1, autoscaling.min_replicas),
        targets=settings.Targets(
            targets.kv_cache_utilization_percent,
            targets.time_to_first_token_milliseconds,
            targets.time_per_output_token_milliseconds,
        ),
        behavior=settings.Behavior(behavior.scale_up_stabilization_seconds, behavior.scale_down_stabilization_seconds),
        scale_to_zero=settings.ScaleToZero(zero.idle_seconds, zero.max_queued_requests)
        if zero is not None and may_rest
        else None,
    )


def _lacks_gateway(entry: Entry, fleet: Fleet, now: float) -> bool:
    """Whether none has told of it for a while, although there is a way to zero. Missing is not 0: it may hold requests,
    and where there is none nobody could wake the model. A roll-out of gateways is shorter.
    """
    told = fleet.gateway.at if fleet.gateway is not None else entry.gateway_at
    entry.gateway_at = now if told is None else told
    return entry.autoscaling.scale_to_zero is not None and now - entry.gateway_at > GATEWAY_SECONDS


def _told(entry: Entry) -> dict[str, Any]:
    """`status.autoscaling`."""
    shows = entry.autoscaling.mode == "Recommend" and entry.recommended is not None
    return {**entry.scaled, **entry.told, **({"recommendedReplicas": entry.recommended} if shows else {})}


def _has_learned(entry: Entry, now: float) -> bool:
    """Take over what was learned, where it is time to tell it and worth it. After a restart time begins anew."""
    if entry.told_at is None and entry.told:
        entry.told_at = now
    told = kept.figures(entry.state)
    is_time = entry.told_at is None or now - entry.told_at >= kept.SECONDS_BETWEEN
    if not is_time or not kept.is_news(entry.told, told):
        return False
    entry.told, entry.told_at = told, now
    return True


def _shown(decision: Decision) -> tuple[Any, ...]:
    """What the status tells of a decision that need not be applied."""
    return decision.active, decision.scheduled, None if decision.apply else decision.replicas
