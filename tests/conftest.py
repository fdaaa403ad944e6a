"""The control plane that tests run on, and which one it was; and how tests are shared out where several run at once.

`control_plane` is started once a session, of each kind that is needed; `namespace` is each test's own.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import pytest

import processes
from kube_fixture import ControlPlane, Faults, Kind, Kube, find_assets, kinds_to_run, start
from kube_fixture.plane import CHOICE

# As in the engine process: threads that spin while they wait are slow on shared cores. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# An engine takes all cores, and other workers have them too: tiny matrices among two threads cost more than they save.
# Tests of what several threads do set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ABSENT = f"needs a real Kubernetes: etcd and kube-apiserver in KUBEBUILDER_ASSETS, or {CHOICE}=kubeconfig"

PLANES = pytest.StashKey[dict[Kind, ControlPlane]]()
SKIPPED = pytest.StashKey[list[str]]()
USED = pytest.StashKey[list[str]]()

# Whose tests run in one worker, which starts the control plane: its start takes seconds.
ON_A_CLUSTER = (
    "tests/chart/",
    "tests/gateway/test_endpoint_slices",
    "tests/gitops/",
    "tests/kubernetes_fixture/",
    "tests/operator/",
)
# Begun first, so that no worker has them before it when the others are done.
LONG = (
    *ON_A_CLUSTER,
    "tests/e2e/test_up",
    "tests/gateway/test_fleet",
    "tests/kernels/test_triton",
    "tests/server/test_server_under_load",
)


# How long an example takes is the machine's affair, whoever else is on it.
hypothesis.settings.register_profile("octavo", deadline=None)
hypothesis.settings.load_profile("octavo")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_control_plane: runs on the emulator and on real binaries, if any")
    config.stash[PLANES] = {}
    config.stash[SKIPPED] = []
    config.stash[USED] = []
    try:
        kinds_to_run()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> str:
    return f"kubernetes: {' and '.join(kinds_to_run())}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "control_plane" not in metafunc.fixturenames:
        return
    kinds = kinds_to_run()
    if metafunc.definition.get_closest_marker("real"):
        kinds = [kind for kind in kinds if kind != "emulator"]
    elif metafunc.definition.get_closest_marker("every_control_plane") and kinds != ["kubeconfig"]:
        real: list[Kind] = ["real"] if find_assets() and "real" in kinds else []
        kinds = ["emulator", *real]
    skip = pytest.param("emulator", marks=pytest.mark.skip(reason=ABSENT))
    metafunc.parametrize("control_plane", kinds or [skip], indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `real` that bring their own control plane are skipped here. Workers begin with what takes long."""
    for item in items:
        if item.get_closest_marker("real") and kinds_to_run() == ["emulator"]:
            config.stash[SKIPPED].append(item.nodeid)
            item.add_marker(pytest.mark.skip(reason=ABSENT))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_collection_finish() -> None:
    """What is imported stays: a collection goes through what tests make, and not through some million objects beside.

    Each start of an engine collects, to see what a step takes.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker, with what they share; so do all that use the control plane.

    By path, as the `xdist_group` marker has no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneForTheCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "cluster" if nodeid.startswith(ON_A_CLUSTER) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return OneForTheCluster(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a worker used it tells to the process that sums up."""
    config = session.config
    config.stash[USED] += map(str, config.stash[PLANES].values())
    if hasattr(config, "workeroutput"):
        config.workeroutput["kubernetes"] = (config.stash[USED], config.stash[SKIPPED])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects all tests, so that all say the same of those that were skipped."""
    used, skipped = getattr(node, "workeroutput", {}).get("kubernetes", ([], []))
    node.config.stash[USED] += used
    node.config.stash[SKIPPED][:] = skipped


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    used, skipped = config.stash[USED], len(config.stash[SKIPPED])
    if used or skipped:
        said = "; ".join(used) or "none was needed"
        missed = f"; {skipped} tests marked real were skipped" if skipped else ""
        terminalreporter.write_line(f"kubernetes: {said}{missed}")


@pytest.fixture(scope="session")
def _control_planes(pytestconfig: pytest.Config) -> Iterator[dict[Kind, ControlPlane]]:
    planes = pytestconfig.stash[PLANES]
    yield planes
    for plane in planes.values():
        plane.close()


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, _control_planes: dict[Kind, ControlPlane]) -> ControlPlane:
    """The API server, shared by the tests of a session: see `kube_fixture.ControlPlane`."""
    kind: Kind = request.param
    if kind not in _control_planes:
        _control_planes[kind] = start(kind)
    return _control_planes[kind]


@pytest.fixture
def faults(control_plane: ControlPlane) -> Iterator[Faults]:
    """The control plane's faults and its log of requests, empty at first and ended afterwards."""
    control_plane.faults.reset()
    yield control_plane.faults
    control_plane.faults.reset()


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """A client of the test's own: not recorded, not broken, in the test's own namespace, deleted afterwards."""
    name = f"test-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    async with Kube.connect(control_plane.direct_kubeconfig, name) as client:
        await client.create(body)
        if control_plane.has_controller_manager:
            # No pod is admitted before the namespace has it.
            await client.until(lambda: client.find("v1", "ServiceAccount", "default"), what="the service account")
        yield client
        await client.delete(body)


@pytest.fixture
def namespace(kube: Kube) -> str:
    """The name of a namespace that is this test's alone."""
    return kube.namespace


@pytest.fixture
def mark() -> Iterator[dict[str, str]]:
    """A mark for this test's processes and all that they start; it fails if one of them outlives it."""
    value = processes.new_mark()
    yield value
    left = processes.wait_gone(value)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
