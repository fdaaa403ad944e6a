"""What a benchmark found, and on what: the same for the table on a terminal and for the JSON."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo_common.version import __version__


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `details`: what else was seen while it was measured, and what it was measured on."""

    name: str
    value: float
    unit: str
    lower_is_better: bool
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "lower_is_better": self.lower_is_better,
            "details": dict(self.details),
        }


def rounded(value: float) -> float:
    """Four digits: more is noise."""
    return float(f"{value:.4g}")


def surroundings(device: torch.device, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Device, versions and commit; what is not known is None."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "octavo": __version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """Of the checkout that this code runs from, with "+" if it was changed since; None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if tracked.returncode == 0 else None
