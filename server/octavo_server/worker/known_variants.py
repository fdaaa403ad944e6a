"""The kernel variants that an earlier start of the same engine found, so that the next one need not look for them.

What a start finds follows from what it is started with: the configuration, the model's shape, the code, the libraries.
These make the name of a file in Triton's cache, and the device stands in it. So a file that is there says what there is
to find; where there is none, or a broken one, the kernels are looked for, for seconds.
"""

import hashlib
import logging
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import torch

import octavo_common
import octavo_kernels
import octavo_server

log = logging.getLogger(__name__)

_MOST_FILES: Final = 8
_PATTERN: Final = "octavo-variants-*.json"


Variant = tuple[str, str, str]
"""Of a kernel: its module, its name, and how Triton describes the variant."""


class _File(msgspec.Struct, frozen=True):
    device: str
    variants: list[Variant]


class KnownVariants:
    """The file of one way to start."""

    def __init__(self, directory: Path, facts: bytes) -> None:
        """directory: of the compiled kernels. facts: whatever the variants follow from, but for code and libraries."""
        name = hashlib.sha256(facts + _code_digest()).hexdigest()[:32]
        self._path = directory / _PATTERN.replace("*", name)

    @property
    def exist(self) -> bool:
        """Whether an earlier start has left them."""
        return self._path.is_file()

    def read(self, device: torch.device) -> list[Variant]:
        """Those that were found for such a device; none if that cannot be told."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
            return found.variants if found.device == _name_of(device) else []
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s cannot be used (%s): the kernels are looked for", self._path, error)
            return []

    def write(self, device: torch.device, variants: list[Variant]) -> None:
        """Leaves them for the next start, and the latest files alone. What goes wrong costs that one some seconds."""
        directory = self._path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
                file.write(msgspec.json.encode(_File(_name_of(device), variants)))
            Path(file.name).replace(self._path)
            files = sorted(directory.glob(_PATTERN), key=lambda path: path.stat().st_mtime)
            for old in files[:-_MOST_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.info("the kernel variants are not kept in %s: %s", directory, error)


def cache_directory() -> Path:
    """Of Triton's cache, which is not imported for it."""
    given = os.environ.get("TRITON_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"


def _name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory} bytes"


def _code_digest() -> bytes:
    """Of the code that decides what is launched, and of the versions beneath it."""
    digest = hashlib.sha256(f"{torch.__version__} {torch.version.cuda} {version('triton')}".encode())
    for package in (octavo_common, octavo_kernels, octavo_server):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.digest()
