"""A Kubernetes control plane for tests: real binaries, a cluster by its kubeconfig, or an emulator.

The fixtures are in tests/conftest.py; README.md beside this file says how to use them.
"""

from kube_fixture.client import Kube
from kube_fixture.faults import Faults, RequestRecord, WriteFault
from kube_fixture.plane import ControlPlane, Kind, kinds_to_run, start
from kube_fixture.real import find_assets
from kube_fixture.workloads import GPU, add_node, delete_pod, finish_job, run_deployment, set_pod_ready

__all__ = [
    "GPU",
    "ControlPlane",
    "Faults",
    "Kind",
    "Kube",
    "RequestRecord",
    "WriteFault",
    "add_node",
    "delete_pod",
    "find_assets",
    "finish_job",
    "kinds_to_run",
    "run_deployment",
    "set_pod_ready",
    "start",
]
