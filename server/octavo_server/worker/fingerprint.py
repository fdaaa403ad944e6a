"""Names a model by what decides the content of its pages, so that no page on disk is ever taken for another model's."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from octavo_server.errors import ModelError
from octavo_server.model_files import weight_files

_SAMPLES: Final = 4
_SAMPLE_BYTES: Final = 512
_HEADER_BYTES_AT_MOST: Final = 100_000_000  # as the safetensors format has it


def fingerprint(directory: Path, *facts: object) -> str:
    """32 hex digits, of config.json, weights and `facts` (dtype, page size, device and what else changes K and V).

    Of each file of weights: name, size, header, and of each tensor four samples of 512 bytes. A header alone would not
    tell a model from its own fine-tune, which has the same names and shapes; and to read all would take as long as to
    load the model. So weights that differ from others in a few rows of a tensor alone can be taken for those.

    Raises ModelError if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"octavo model")
    try:
        parts = [(directory / "config.json").read_bytes(), *(repr(fact).encode() for fact in facts)]
        for path in weight_files(directory):
            parts += [path.name.encode(), *_samples(path)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the weights in {directory} cannot be read ({error!r}); download them again") from error
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def device_facts(device: torch.device) -> tuple[object, ...]:
    """What tells machines apart whose kernels may add in another order, or use other instructions.

    By the CPU's model, libraries choose kernels and sizes of blocks; torch by the instructions it may use.
    """
    if device.type == "cuda":
        return device.type, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return device.type, platform.machine(), torch.backends.cpu.get_cpu_capability(), cpu_model()


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As Linux names it; elsewhere as Python does."""
    fields = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU variant", "CPU part")
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    # Each model once: some machines have cores of two.
    return "; ".join(sorted({" ".join(line.split()) for line in lines if line.split(":")[0].strip() in fields}))


def _samples(path: Path) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield os.fstat(descriptor).st_size.to_bytes(8, "little")
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if length > _HEADER_BYTES_AT_MOST:
            raise ValueError(f"{path.name} is no safetensors file")
        header = os.pread(descriptor, length, 8)
        yield header
        for name, tensor in json.loads(header).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            stride = max(1, (end - begin) // _SAMPLES)
            for offset in range(begin, end, stride):
                yield os.pread(descriptor, min(_SAMPLE_BYTES, end - offset), offset)
    finally:
        os.close(descriptor)
