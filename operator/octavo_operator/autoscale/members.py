"""A fleet as whoever keeps it knows it, pods of a cluster or processes of this machine, and one look at all of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from octavo_operator.autoscale.observation import Fleet, GatewaySample, Phase, Replica, Sample


@dataclass(frozen=True, slots=True)
class Member:
    """A replica before it was asked. `key` tells it from a later one of its name, as a pod's uid does.

    `url`: of its metrics, None while it has no address. The rest is as in `Replica`; `startup` may have grown since it
    was first told, as where it was not ready for a moment: the first one counts.
    """

    key: str
    name: str
    phase: Phase
    age: float
    url: str | None = None
    startup: float | None = None
    unschedulable: bool = False


class ReplicaScraper(Protocol):
    """Who asks replicas: `Scraper`, or a test's."""

    async def replicas(self, urls: Mapping[str, str]) -> dict[str, Sample]:
        """What each tells now; those that tell nothing usable are missing."""


@dataclass(slots=True)
class _Remembered:
    sample: Sample | None = None
    startup: float | None = None


@dataclass(slots=True)
class Memory:
    """What the members of one fleet told last: one that misses a scrape keeps its sample, with its time."""

    members: dict[str, _Remembered] = field(default_factory=dict)

    async def look(
        self,
        scraper: ReplicaScraper,
        members: Sequence[Member],
        desired: int,
        startup_deadline: float,
        gateway: GatewaySample | None,
    ) -> Fleet:
        """Ask all members that take requests, and put it together."""
        urls = {each.key: each.url for each in members if each.url is not None and each.phase == "ready"}
        told = await scraper.replicas(urls)
        self.members = {each.key: self.members.get(each.key, _Remembered()) for each in members}
        for member in members:
            known = self.members[member.key]
            known.sample = told.get(member.key, known.sample)
            known.startup = known.startup if known.startup is not None else member.startup
        return Fleet(
            desired=desired,
            replicas=tuple(self._replica(each) for each in members),
            gateway=gateway,
            startup_deadline=startup_deadline,
        )

    def _replica(self, member: Member) -> Replica:
        known = self.members[member.key]
        return Replica(member.name, member.phase, member.age, known.startup, member.unschedulable, known.sample)
