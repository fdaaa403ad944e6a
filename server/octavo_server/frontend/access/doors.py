"""Which routes are open, and which are there at all, at each of the two ports. Compared whole: a prefix opens more.

With keys configured, every route needs one but these. With an admin port, metrics are told there alone, and without a
key; the API is not served there.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from starlette.types import Scope

OPEN: Final = frozenset({"/health", "/ready", "/"})
ADMIN_OPEN: Final = frozenset({"/health", "/ready", "/metrics"})
ADMIN_ROUTES: Final = ADMIN_OPEN | {"/version"}
ADMIN_ONLY: Final = frozenset({"/metrics"})  # at the admin port and nowhere else, where there is one


@dataclass(slots=True)
class Door:
    """A port; "only" where there is no other. Requests find it in their `state`: nothing that they send chooses it.

    Of its connections, each the oldest first: `idle`, on which nothing is asked; `heads`, on which a request began at
    that time and is not whole.
    """

    name: Literal["only", "main", "admin"] = "only"
    max_connections: int = 8192
    connections: set[Any] = field(default_factory=set)
    idle: OrderedDict[Any, None] = field(default_factory=OrderedDict)
    heads: dict[Any, float] = field(default_factory=dict)

    def is_open(self, path: str) -> bool:
        """Whether the path needs no key."""
        return path in (ADMIN_OPEN if self.name == "admin" else OPEN)

    def leads_to(self, path: str) -> bool:
        """Whether the path is served here, if anywhere."""
        if self.name == "admin":
            return path in ADMIN_ROUTES
        return self.name == "only" or path not in ADMIN_ONLY


_ONLY: Final = Door()


def door_of(scope: Scope) -> Door:
    """The door that a request came through."""
    state: Mapping[str, Any] = scope.get("state", {})
    door: Door = state.get("door", _ONLY)
    return door
