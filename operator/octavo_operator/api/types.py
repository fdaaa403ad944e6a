"""Bounded strings, numbers and lists: the vocabulary of the fields."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from octavo_operator.api.base import Quantity

QUALIFIED_NAME = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""The key of a label or an annotation, the name of a resource. With a prefix at most 253 + 1 + 63 characters long."""
LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

DNSLabel = Annotated[str, Field(max_length=63, pattern=DNS_LABEL)]
DNSSubdomain = Annotated[str, Field(max_length=253, pattern=DNS_SUBDOMAIN)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
QualifiedName = Annotated[str, Field(max_length=317, pattern=QUALIFIED_NAME)]

SecretKey = Annotated[str, Field(max_length=253, pattern=r"^[.]?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$")]

PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
HOST = rf"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:{PORT})?"
_REPOSITORY = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"

Image = Annotated[
    str,
    Field(
        max_length=1024,
        pattern=rf"^({HOST}/)?{_REPOSITORY}(/{_REPOSITORY})*(:{_TAG})?(@sha256:[0-9a-f]{{64}})?$",
    ),
]
"""A reference to an image, by tag or digest or both; container runtimes know no other."""


def given(items: Any) -> Any:
    """The API server drops what is null."""
    return {key: item for key, item in items.items() if item is not None} if isinstance(items, dict) else items


Labels = Annotated[dict[str, LabelValue], Field(max_length=64), BeforeValidator(given)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64), BeforeValidator(given)]

CPUQuantity = Annotated[
    int | str,
    Quantity(
        r"^([1-9][0-9]{0,3}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9]|[1-9][0-9]{0,6}m)$", examples="4, '0.5' in quotes or 500m"
    ),
]
MemoryQuantity = Annotated[
    int | str,
    Quantity(
        r"^([1-9][0-9]{0,14}|([1-9][0-9]{0,5}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])(k|M|G|T|Ki|Mi|Gi|Ti))$",
        examples="48Gi, 1.5Gi or 500M",
    ),
]

Seconds = Annotated[int, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=0, le=1_000)]
PortNumber = Annotated[int, Field(ge=1, le=65_535)]
