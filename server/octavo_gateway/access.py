"""Who asks: keys, as the server has them, and their limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from multidict import CIMultiDictProxy

from octavo_common.access.config import AccessConfig
from octavo_common.access.keys import ApiKey, KeyRing
from octavo_common.access.rates import UNLIMITED, KeyUse, Limits, Rates, Ticket
from octavo_common.errors import RequestError

_NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. tenant: the key's name, None where nobody needs one."""

    tenant: str | None
    ticket: Ticket = UNLIMITED
    use: KeyUse | None = None

    def headers(self) -> Mapping[str, str]:
        """What is left of its limits."""
        if self.use is None:
            return {}
        return {name.decode(): value.decode() for name, value in self.use.headers()}


class Access:
    """Lets in who brings a key, within its limits."""

    def __init__(self, config: AccessConfig) -> None:
        """Raises ConfigError: a key file cannot be used."""
        self.ring = KeyRing(config)
        self._rates = Rates()
        self._counted: tuple[ApiKey, ...] = ()

    def check(self, headers: CIMultiDictProxy[str]) -> ApiKey | None:
        """The key that was brought; None where nobody needs one.

        Raises:
            RequestError: 401.
        """
        if not self.ring.closed:
            return None
        given = headers.getall("Authorization", [])
        if not given:
            raise _unauthorized("an API key is needed: send Authorization: Bearer KEY")
        scheme, _, value = given[0].partition(" ")
        key = self.ring.find(value.strip().encode("utf-8", "surrogateescape"))
        if key is None or scheme.lower() != "bearer" or len(given) > 1:
            raise _unauthorized("the API key is not valid")
        return key

    def enter(self, key: ApiKey | None) -> Caller:
        """Count a request, whose `ticket` has to be left.

        Raises:
            RequestError: 429, with the seconds after which to try again.
        """
        if key is None:
            return Caller(None)
        if key.limits == _NO_LIMITS:
            return Caller(key.name)
        use = self.use(key)
        return Caller(key.name, use.enter(), use)

    def use(self, key: ApiKey) -> KeyUse:
        """What the key was used for lately."""
        if self._counted is not self.ring.keys:  # others than before: forget those that are gone
            self._counted = self.ring.keys
            self._rates.keep(frozenset(known.name for known in self._counted))
        return self._rates.of(key.name, key.limits)


def _unauthorized(message: str) -> RequestError:
    return RequestError(message, code="invalid_api_key", status=HTTPStatus.UNAUTHORIZED)
