"""What `octavo pull` leaves in a model's directory, for all who must tell a whole model from a part of one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

MARKER: Final = ".octavo-model.json"
PARTIAL: Final = ".octavo-partial"
LONGEST_MARKER: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PulledFile:
    """A file by its path in the directory; `digest` is `ALGORITHM:HEX`, None where the source has none."""

    name: str
    size: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class PulledModel:
    """Where a directory's files came from: `source` as it was asked for, `revision` as it was resolved."""

    source: str
    revision: str
    files: tuple[PulledFile, ...]

    def to_json(self) -> str:
        """The text of the marker file."""
        return json.dumps({"version": 1, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError if this is no marker."""
        try:
            given: dict[str, Any] = json.loads(text)
            files = tuple(PulledFile(str(f["name"]), int(f["size"]), f["digest"]) for f in given["files"])
            return cls(str(given["source"]), str(given["revision"]), files)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no marker of a model: {error!r}") from error


def read_marker(directory: Path) -> PulledModel | None:
    """What was pulled into this directory; None if nothing was, or it cannot be told."""
    try:
        with (directory / MARKER).open("rb") as file:
            return PulledModel.from_json(file.read(LONGEST_MARKER))
    except (OSError, ValueError):
        return None


def missing_part(directory: Path) -> str | None:
    """What of the model is not there as it was pulled, for people; None if nothing is, or it was not pulled."""
    if PARTIAL in directory.absolute().parts or (directory / PARTIAL / "plan.json").exists():
        return "is a download that is not complete"
    if not directory.exists() and (directory.absolute().parent / PARTIAL / directory.name).exists():
        return "is still being downloaded, or its download was interrupted"
    if not (directory / MARKER).is_file():
        return None
    marker = read_marker(directory)
    if marker is None:
        return f"has a {MARKER} that cannot be read"
    for file in marker.files:
        try:
            size = (directory / file.name).stat().st_size
        except OSError:
            return f"was pulled with {file.name}, which is missing"
        if size != file.size:
            return f"was pulled with {file.size} bytes of {file.name}, which has {size}"
    return None
