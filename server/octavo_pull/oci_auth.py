"""How a registry lets one in: it answers 401 and names who gives tokens; that one is asked with the password."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from octavo_pull.errors import RefusedError
from octavo_pull.http_get import get_small
from octavo_pull.plan import Address
from octavo_pull.web import of_transport

LONGEST_TOKEN: Final = 64 * 1024
_PARAMETER: Final = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry's `WWW-Authenticate: Bearer …` says."""

    realm: str
    service: str
    scope: str

    def scoped(self, repository: str) -> "Challenge":
        """With the scope that pulling needs, where the registry names none."""
        return self if self.scope else replace(self, scope=f"repository:{repository}:pull")


@dataclass(frozen=True, slots=True)
class Token:
    """What is sent as Authorization, and how to get another one."""

    header: str
    challenge: Challenge | None = None


def basic(login: tuple[str, str]) -> str:
    """The header for a user and a password."""
    return f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"


def challenge(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Challenge | None:
    """What a 401 asks for; None for a password at once.

    Raises:
        RefusedError: it asks for neither.
    """
    try:
        answer = client.head(url, headers=dict(headers))
        if answer.status_code != 401:  # some answer a HEAD otherwise
            answer = client.get(url, headers=dict(headers))
    except httpx.HTTPError as error:
        raise of_transport(error, httpx.URL(url).host) from error
    text = answer.headers.get("WWW-Authenticate", "")
    if text.lower().startswith("basic"):
        return None
    found = dict(_PARAMETER.findall(text))
    realm = found.get("realm", "")
    if not text.lower().startswith("bearer") or not realm.startswith(("https://", "http://")):
        raise RefusedError(f"{httpx.URL(url).host} answers 401 and does not say how to log in", 401)
    if realm.startswith("http://") and url.startswith("https://"):
        raise RefusedError(f"{httpx.URL(url).host} wants the password to be sent without TLS", 401)
    return Challenge(realm, found.get("service", ""), found.get("scope", ""))


def ask_token(client: httpx.Client, asked: Challenge, login: tuple[str, str] | None) -> Token:
    """A token for pulling, with the login where there is one.

    Raises:
        RefusedError: it is not given.
    """
    parameters = {key: value for key, value in (("service", asked.service), ("scope", asked.scope)) if value}
    url = str(httpx.URL(asked.realm).copy_merge_params(parameters))
    headers = (("Authorization", basic(login)),) if login else ()
    answer = get_small(client, Address(url, headers), {}, LONGEST_TOKEN, "the registry's token")
    try:
        body: Any = answer.json()
        token = body.get("token") or body.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str) or not token:
        raise RefusedError(f"{httpx.URL(asked.realm).host} gives no token")
    return Token(f"Bearer {token}", asked)
