"""How long things may take: to become ready, to end, to be replaced."""

from typing import Final

from octavo_operator.api import LLMDeployment

DEFAULT_STARTUP_SECONDS: Final = 1800
GRACE_MARGIN_SECONDS: Final = 30
"""Between the end of the drain and SIGKILL: for the processes to end, and for a kubelet that is late."""
PROGRESS_MARGIN_SECONDS: Final = 600
"""For what a new pod goes through before its container starts: a node, its volumes, an image of several GB."""


def startup_seconds(deployment: LLMDeployment) -> int:
    """How long a replica may take to become ready."""
    return deployment.spec.startup.timeout_seconds or DEFAULT_STARTUP_SECONDS


def grace_seconds(deployment: LLMDeployment) -> int:
    """How long a replica may take to end."""
    termination = deployment.spec.termination
    return termination.propagation_seconds + termination.drain_seconds + GRACE_MARGIN_SECONDS


def progress_seconds(deployment: LLMDeployment) -> int:
    """How long a roll-out may go without a new pod that is ready, before it counts as stuck."""
    return startup_seconds(deployment) + grace_seconds(deployment) + PROGRESS_MARGIN_SECONDS
