"""How much memory is free here, and how much the quantities of Kubernetes are."""

import re
from pathlib import Path

_UNITS = {"": 1} | {
    suffix: base**power
    for base, suffixes in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, suffix in enumerate(suffixes, start=1)
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMGTPE]|[KMGTPE]i)?")


def quantity_bytes(quantity: int | str) -> int:
    """Bytes of a Kubernetes memory quantity: "2Gi" → 2147483648.

    Raises:
        ValueError: it is no such quantity.
    """
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f"{quantity!r} is no quantity of memory, such as 512Mi or 48Gi")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def cores(quantity: int | str) -> float:
    """CPU cores of a Kubernetes quantity: "500m" → 0.5. Raises ValueError if it is none."""
    text = str(quantity)
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def available_bytes() -> int | None:
    """Memory that can be had without swapping (Linux: MemAvailable); None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    told = fields.get("MemAvailable", "").split()
    return int(told[0]) * 1024 if told else None
