"""What the operator takes when there are very many LLMDeployments: time to converge, memory, processor, requests.

    python benchmarks/operator_scale.py [--objects 2000] [--namespaces 20] [--rest 120] [--resync 60] [--failover]

On a real etcd, kube-apiserver, kube-controller-manager and kube-scheduler (KUBEBUILDER_ASSETS), without a kubelet: each
object becomes a Deployment with one pod, which stays pending. What is measured:

- cold: all objects are there, nothing of theirs is; from the start of the operator's process until each has its four
  children and a status of its generation, and until nothing is written any more.
- rest: for `--rest` seconds nothing happens. Resyncs of `--resync` seconds fall into it: what a round of them costs is
  what is seen, times resync over rest.
- restart: a new process finds everything done. Until it has looked at all.
- one change: the time from a changed `spec.replicas` to the Deployment's, one object after the other.
- failover (`--failover`): two operators; the one that leads is killed, and stopped for a while, in the middle of a cold
  start. Until another holds the Lease, until all is done, and what the one that was stopped writes after that.

Requests are counted by the API server's audit log, the operator having a user of its own. Memory is VmRSS and its peak
VmHWM, processor time that of /proc/PID/stat.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from kube_fixture import Kube, find_assets
from kube_fixture.certificates import write_certificates
from kube_fixture.real import RealControlPlane
from octavo_operator.api.crd import custom_resource_definition

Object = dict[str, Any]
API, KIND = "octavo.dev/v1alpha1", "LLMDeployment"
CHILDREN = (
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)
LABEL = "app.kubernetes.io/managed-by=octavo-operator"
AUDIT = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: [octavo-operator]
  - level: None
"""
PROGRAM = """
import sys
from pathlib import Path
from octavo_operator.main import run_operator
from octavo_operator.settings import OperatorSettings
sys.exit(run_operator(OperatorSettings(
    kubeconfig=Path(sys.argv[1]), probe_port=int(sys.argv[2]), resync_seconds=float(sys.argv[3]),
    lease_namespace="default", default_image="registry.example/server:1", log_level="warning")))
"""


class Operator:
    """One operator's process."""

    def __init__(self, kubeconfig: Path, resync: float, port: int) -> None:
        command = [sys.executable, "-c", PROGRAM, str(kubeconfig), str(port), str(resync)]
        self.process = subprocess.Popen(command)
        self.port = port

    def seconds(self) -> float:
        """Of processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def mebibytes(self) -> tuple[float, float]:
        """Resident now, and at most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        now, most = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
        if now is None or most is None:
            raise RuntimeError("the operator has ended")
        return int(now[1]) / 1024, int(most[1]) / 1024

    def passes(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return int(sum(float(each) for each in re.findall(r"^octavo_operator_reconciles_total\S* (\S+)$", text, re.M)))

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(60)


class Audit:
    """The operator's requests, as the API server wrote them down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[Object]:
        """Those since the last call."""
        with self._path.open() as file:
            file.seek(self._read)
            lines = file.readlines()
            if lines and not lines[-1].endswith("\n"):
                lines.pop()
            self._read += sum(len(line.encode()) for line in lines)
        return [json.loads(line) for line in lines]


def by_kind(requests: list[Object]) -> dict[str, int]:
    """How many requests of which verb and resource, but for the Lease's."""
    counted = Counter(
        f"{each['verb']} {each['objectRef']['resource']}"
        for each in requests
        if each.get("objectRef", {}).get("resource")
    )
    return {name: count for name, count in counted.most_common() if not name.endswith(" leases")}


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 3600.0, every: float = 1.0) -> float:
    """Seconds until `check` says so."""
    started = time.monotonic()
    while not await check():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not so within {seconds} s")
        await asyncio.sleep(every)
    return time.monotonic() - started


class Bench:
    def __init__(self, plane: RealControlPlane, kube: Kube, audit: Audit, options: argparse.Namespace) -> None:
        self.plane, self.kube, self.audit, self.options = plane, kube, audit, options
        self.results: Object = {}
        self.ports = iter(range(18090, 18190))
        self.seen: list[Object] = []
        self.written: dict[str, set[tuple[str, str]]] = {}

    def start(self) -> Operator:
        return Operator(self.plane.kubeconfig("octavo-operator"), self.options.resync, next(self.ports))

    async def make_objects(self) -> None:
        spaces = [f"team-{index}" for index in range(self.options.namespaces)]
        for name in spaces:
            await self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for name in spaces:
            await self.kube.until(lambda name=name: self.kube.find("v1", "ServiceAccount", "default", name), 60)
        gate = asyncio.Semaphore(16)

        async def make(index: int) -> None:
            spec = {"model": {"source": {"builtin": {"name": "demo"}}}}
            where = {"name": f"model-{index}", "namespace": spaces[index % len(spaces)]}
            async with gate:
                await self.kube.create({"apiVersion": API, "kind": KIND, "metadata": where, "spec": spec})

        await asyncio.gather(*(make(index) for index in range(self.options.objects)))

    async def converged(self) -> bool:
        """By the audit log: lists of everything would take the machine from who is measured."""
        for each in self.audit.new():
            self.seen.append(each)
            about = each.get("objectRef", {})
            if each["verb"] == "patch" and each["responseStatus"]["code"] < 300:
                self.written.setdefault(about["resource"], set()).add((about["namespace"], about["name"]))
        wanted = ("llmdeployments", "deployments", "services", "poddisruptionbudgets", "networkpolicies")
        return all(len(self.written.get(each, ())) >= self.options.objects for each in wanted)

    async def quiet(self) -> bool:
        """Whether nothing but a Lease was written for five seconds."""
        await asyncio.sleep(5.0)
        new = self.audit.new()
        self.seen += new
        return all(
            each["verb"] in {"get", "list", "watch"} or each["objectRef"]["resource"] == "leases" for each in new
        )

    def requests(self) -> list[Object]:
        """All since the last call."""
        requests, self.seen = [*self.seen, *self.audit.new()], []
        self.written = {}
        return requests

    def report(self, name: str, operator: Operator, requests: list[Object], **more: Any) -> None:
        now, most = operator.mebibytes()
        kinds = by_kind(requests)
        figures = {**more, "memory_mib": round(now, 1), "peak_mib": round(most, 1), "requests": sum(kinds.values())}
        self.results[name] = {**figures, "by_kind": kinds}
        print(name, json.dumps(self.results[name]), flush=True)

    async def cold(self) -> Operator:
        self.requests()
        operator = self.start()
        seconds = await until(self.converged)
        cpu = operator.seconds()
        settled = await until(self.quiet, every=0.1)
        self.report(
            "cold",
            operator,
            self.requests(),
            seconds=round(seconds, 1),
            until_quiet_s=round(seconds + settled, 1),
            cpu_s=round(operator.seconds(), 1),
            cpu_until_converged_s=round(cpu, 1),
            passes=operator.passes(),
        )
        return operator

    async def rest(self, operator: Operator) -> None:
        cpu, passes = operator.seconds(), operator.passes()
        self.requests()
        await asyncio.sleep(self.options.rest)
        requests = self.requests()
        leases = sum(1 for each in requests if each.get("objectRef", {}).get("resource") == "leases")
        self.report(
            "rest",
            operator,
            requests,
            seconds=self.options.rest,
            resync_s=self.options.resync,
            lease_requests=leases,
            cpu_s=round(operator.seconds() - cpu, 2),
            passes=operator.passes() - passes,
        )

    async def change(self) -> None:
        took = []
        for index in range(20):
            where = f"team-{index % self.options.namespaces}"
            live = await self.kube.get(API, KIND, f"model-{index}", where)
            replicas = 3 - live["spec"]["replicas"]
            started = time.monotonic()
            await self.kube.patch(live, {"spec": {"replicas": replicas}})

            async def applied(name: str = f"model-{index}", where: str = where, wanted: int = replicas) -> bool:
                found = await self.kube.get("apps/v1", "Deployment", name, where)
                return bool(found["spec"]["replicas"] == wanted)

            await until(applied, every=0.005)
            took.append(1000.0 * (time.monotonic() - started))
        self.results["one change, ms"] = {"median": round(statistics.median(took), 1), "most": round(max(took), 1)}
        print("one change, ms", self.results["one change, ms"], flush=True)

    async def restart(self) -> Operator:
        self.requests()
        started = time.monotonic()
        operator = self.start()

        async def looked_at_all() -> bool:
            try:
                return operator.passes() >= self.options.objects
            except OSError:
                return False

        await until(looked_at_all, every=0.2)
        seconds = time.monotonic() - started
        self.report(
            "restart", operator, self.audit.new(), seconds=round(seconds, 1), cpu_s=round(operator.seconds(), 1)
        )
        return operator

    async def holder(self) -> str:
        lease = await self.kube.find("coordination.k8s.io/v1", "Lease", "octavo-operator", "default")
        return str(lease["spec"].get("holderIdentity") or "") if lease else ""

    async def failover(self, how: signal.Signals) -> None:
        """Of the operator that leads, while there is a Deployment to be made for each object."""
        for index in range(self.options.namespaces):
            await self.kube.delete_all("apps/v1", "Deployment", labels=LABEL, namespace=f"team-{index}")
        first = self.start()
        await until(self._led, every=0.1)
        leader = await self.holder()
        second = self.start()
        self.requests()
        await until(self._begun, every=0.1)
        first.process.send_signal(how)
        struck = time.time()

        async def led_by_another() -> bool:
            return await self.holder() not in {"", leader}

        await until(led_by_another, every=0.1)
        took = time.time() - struck
        if how == signal.SIGSTOP:
            first.process.send_signal(signal.SIGCONT)
            first.process.wait(60)

        async def all_there() -> bool:
            return len(await self.kube.list("apps/v1", "Deployment", "", labels=LABEL)) >= self.options.objects

        await until(all_there, every=2.0)
        done = time.time() - struck
        await until(self.quiet, every=0.1)
        requests = self.requests()
        made = Counter(
            (each["objectRef"]["namespace"], each["objectRef"]["name"])
            for each in requests
            if each["verb"] == "patch"
            and each["objectRef"]["resource"] == "deployments"
            and each["responseStatus"]["code"] < 300
        )
        figures = {"lease_s": round(took, 1), "all_there_s": round(done, 1), "exit": first.process.poll()}
        self.report(
            f"failover {how.name}", second, requests, **figures, applied_twice=sum(n > 1 for n in made.values())
        )
        second.end()
        first.process.kill()
        first.process.wait()

    async def _begun(self) -> bool:
        """Whether the first of many writes are done."""
        self.seen += self.audit.new()
        return any(each["verb"] == "patch" and each["objectRef"]["resource"] == "deployments" for each in self.seen)

    async def _led(self) -> bool:
        return bool(await self.holder())


async def run(options: argparse.Namespace) -> Object:
    assets = find_assets()
    if assets is None:
        raise SystemExit("no etcd and kube-apiserver: set KUBEBUILDER_ASSETS")
    folder = Path(tempfile.mkdtemp(prefix="octavo-scale-"))
    write_certificates(folder)
    (folder / "audit.yaml").write_text(AUDIT)
    fast = ["--kube-api-qps=2000", "--kube-api-burst=4000"]
    flags = {
        "kube-apiserver": [
            f"--audit-policy-file={folder / 'audit.yaml'}",
            f"--audit-log-path={folder / 'audit.log'}",
            "--audit-log-maxsize=4096",
            "--max-mutating-requests-inflight=400",
            # One address for each Service, and room for all of them.
            "--service-cluster-ip-range=10.0.0.0/16",
        ],
        "kube-controller-manager": [
            *fast,
            *(f"--concurrent-{each}-syncs=20" for each in ("deployment", "replicaset", "endpoint")),
        ],
        "kube-scheduler": fast,
    }
    plane = RealControlPlane(assets, folder, flags)
    try:
        (folder / "audit.log").touch()
        async with Kube.connect(plane.kubeconfig("administrator")) as kube:
            await kube.install_crd(custom_resource_definition())
            bench = Bench(plane, kube, Audit(folder / "audit.log"), options)
            await bench.make_objects()
            print(f"{options.objects} objects in {options.namespaces} namespaces", flush=True)
            operator = await bench.cold()
            await bench.rest(operator)
            await bench.change()
            operator.end()
            operator = await bench.restart()
            operator.end()
            if options.failover:
                await bench.failover(signal.SIGKILL)
                await bench.failover(signal.SIGSTOP)
            return bench.results
    finally:
        plane.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--namespaces", type=int, default=20)
    parser.add_argument("--rest", type=float, default=120.0)
    parser.add_argument("--resync", type=float, default=60.0)
    parser.add_argument("--failover", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    results = asyncio.run(run(options))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
