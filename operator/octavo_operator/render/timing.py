"""How long things may take: to become ready, to end, to be replaced."""

from typing import Final

from octavo_operator.api import LLMDeployment
from octavo_operator.api.quantities import quantity_bytes
from octavo_operator.render.pull import pulls_itself

DEFAULT_STARTUP_SECONDS: Final = 1800
BASE_STARTUP_SECONDS: Final = 600
"""For all but the reading: processes, kernels that are compiled, the first graphs."""
READ_BYTES_PER_SECOND: Final = 100 * 2**20
"""Of a slow network volume: who waits too long loses patience, who waits too short loses a model that was loading."""
DEFAULT_DOWNLOAD_SECONDS: Final = 3600
DOWNLOAD_BYTES_PER_SECOND: Final = 25 * 2**20
LONGEST_SECONDS: Final = 86_400
GRACE_MARGIN_SECONDS: Final = 30
"""Between the end of the drain and SIGKILL: for the processes to end, and for a kubelet that is late."""
PROGRESS_MARGIN_SECONDS: Final = 600
"""For what a new pod goes through before its container starts: a node, its volumes, an image of several GB."""


def startup_seconds(deployment: LLMDeployment) -> int:
    """How long a replica may take to become ready, once its model is where it reads it from."""
    given, size = deployment.spec.startup.timeout_seconds, _most_bytes(deployment)
    if given is not None:
        return given
    if size is None:
        return DEFAULT_STARTUP_SECONDS
    return min(LONGEST_SECONDS, BASE_STARTUP_SECONDS + size // READ_BYTES_PER_SECOND)


def start_seconds(deployment: LLMDeployment) -> int:
    """How long a new pod with a node may take to become ready, a download of its own included."""
    return _download_seconds(deployment) + startup_seconds(deployment)


def grace_seconds(deployment: LLMDeployment) -> int:
    """How long a replica may take to end."""
    termination = deployment.spec.termination
    return termination.propagation_seconds + termination.drain_seconds + GRACE_MARGIN_SECONDS


def progress_seconds(deployment: LLMDeployment) -> int:
    """How long a roll-out may go without a new pod that is ready, before it counts as stuck."""
    return start_seconds(deployment) + grace_seconds(deployment) + PROGRESS_MARGIN_SECONDS


def _download_seconds(deployment: LLMDeployment) -> int:
    """How long a new pod may download before its server starts."""
    if not pulls_itself(deployment):
        return 0
    size = _most_bytes(deployment)
    return DEFAULT_DOWNLOAD_SECONDS if size is None else min(LONGEST_SECONDS, size // DOWNLOAD_BYTES_PER_SECOND)


def _most_bytes(deployment: LLMDeployment) -> int | None:
    """How large the model can be at most, by what it has to fit into; None where that is not known."""
    spec = deployment.spec
    if spec.model.source.builtin is not None:
        return 0  # megabytes
    if not spec.model.source.is_downloaded:
        return None
    room = spec.storage.cache.size if spec.storage.cache is not None else spec.resources.ephemeral_storage
    return None if room is None else quantity_bytes(room)
