"""Kubernetes quantities as numbers. Exact: the API server compares them so, and a rule here must say what it says."""

import re
from decimal import Decimal
from typing import Final

_UNITS: Final = {"": Decimal(1)} | {
    suffix: Decimal(base) ** power
    for base, suffixes in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, suffix in enumerate(suffixes, start=1)
}
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([kMGTPE]|[KMGTPE]i)|([eE][-+]?[0-9]{1,2}))?")


def quantity(text: int | str) -> Decimal:
    """A quantity of memory or storage in bytes: "1.5Ki" → 1536, "1e3" → 1000.

    Raises:
        ValueError: it is no such quantity.
    """
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity of memory, such as 512Mi or 48Gi")
    return Decimal(found[1] + (found[3] or "")) * _UNITS[found[2] or ""]


def quantity_bytes(text: int | str) -> int:
    """The same in whole bytes: "2Gi" → 2147483648. Raises ValueError if it is none."""
    return int(quantity(text))


def cores(text: int | str) -> float:
    """CPU cores of a Kubernetes quantity: "500m" → 0.5. Raises ValueError if it is none."""
    written = str(text)
    return int(written[:-1]) / 1000 if written.endswith("m") else float(written)
