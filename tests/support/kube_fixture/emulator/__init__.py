"""An emulator of the Kubernetes API for where there are no real binaries.

Its tests run against both, with the same assertions: see tests/kubernetes_fixture.
"""

from kube_fixture.emulator.http import Emulator

__all__ = ["Emulator"]
