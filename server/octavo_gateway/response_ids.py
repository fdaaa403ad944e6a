"""Names of responses that tell where they are kept: any gateway finds the replica, and only their own tenant does.

A response is in the memory of the replica that made it, under the gateway's key, whoever asked. So its name says in
which replica it is, and for whom, as digests: `resp_RANDOM.REPLICA.TENANT`. Who writes another tenant's digest into a
name has another name, which no replica knows.
"""

import hashlib
from collections.abc import Iterable

import msgspec

from octavo_common.errors import RequestError
from octavo_gateway.asked import Asked
from octavo_gateway.replica import Replica


def request_id(random: str, replica_id: str, tenant: str) -> str:
    """What a response is called, behind `resp_`."""
    replica = _of_replica(replica_id)
    return f"{random}.{replica}.{_of_tenant(random, replica, tenant)}"


def body_of(asked: Asked, random: str, replica_id: str, tenant: str) -> bytes:
    """The body of a request that makes a response, with its name; `random`: where the client gives none."""
    given = asked.fields.get("request_id")
    try:
        own = random if given is None else msgspec.json.decode(given, type=str | None) or random
    except msgspec.DecodeError:
        return asked.body()  # the replica says what is wrong with it
    return asked.body(request_id=request_id(own, replica_id, tenant))


def holder(response_id: str, tenant: str, replicas: Iterable[Replica]) -> Replica | None:
    """The replica that keeps a response, if it is this tenant's and that replica is there."""
    random, _, rest = response_id.removeprefix("resp_").rpartition(".")
    random, _, replica = random.rpartition(".")
    if not random or rest != _of_tenant(random, replica, tenant):
        return None
    return next((each for each in replicas if _of_replica(each.endpoint.id) == replica), None)


def previous_not_found(response_id: str) -> RequestError:
    """For `previous_response_id`: OpenAI's code, at which clients send all items."""
    return RequestError(
        f"previous_response_id: no replica has the response {response_id[:256]!r}: it was never kept, is somebody "
        "else's, or went with the replica that kept it; send the conversation's items as input",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def not_found(response_id: str) -> RequestError:
    """For a response that is asked for by its name."""
    return RequestError(
        f"no replica has the response {response_id[:256]!r}: it was never kept, was deleted, is somebody else's, or "
        "went with the replica that kept it",
        param="response_id",
        code="response_not_found",
        status=404,
    )


def _of_replica(replica_id: str) -> str:
    return hashlib.blake2b(replica_id.encode(), digest_size=6, person=b"octavo replica").hexdigest()


def _of_tenant(random: str, replica: str, tenant: str) -> str:
    words = f"{random}.{replica}.{tenant}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(words, digest_size=8, person=b"octavo tenant").hexdigest()
