"""A real control plane on loopback: etcd, kube-apiserver, and the other two where their binaries are there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kube_fixture.kubeconfig import write_kubeconfig
from kube_fixture.proxy import Upstream

NEEDED = ("etcd", "kube-apiserver")
OPTIONAL = ("kube-controller-manager", "kube-scheduler")
DEFAULT_ASSETS = Path("/usr/local/kubebuilder/bin")
START_SECONDS = 120.0
ATTEMPTS = 3
PR_SET_PDEATHSIG = 1

# What kube-apiserver lets each token be.
USERS = {
    "administrator": ("octavo-tests", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    # The same rights under another name, for who is measured.
    "octavo-operator": ("octavo-operator", "system:masters"),
}


class StartError(RuntimeError):
    """A binary ended, or did not become ready in time. The message has the end of its log."""


def find_assets() -> Path | None:
    """The folder with at least etcd and kube-apiserver: `KUBEBUILDER_ASSETS`, else where kubebuilder installs them."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or DEFAULT_ASSETS)
    return folder if all(os.access(folder / name, os.X_OK) for name in NEEDED) else None


class RealControlPlane:
    """Starts in `folder`, which has certificates, what `assets` has.

    `close` kills it all; so does the end of this process, however it ends. `flags`: more of those that a binary takes.
    """

    def __init__(self, assets: Path, folder: Path, flags: Mapping[str, Sequence[str]] | None = None) -> None:
        self._assets = assets
        self._folder = folder
        self._flags = flags or {}
        self._arguments: dict[str, tuple[str, ...]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tokens = {name: secrets.token_hex(16) for name in USERS}
        tokens = [f'{self._tokens[name]},{user},{user},"{group}"' for name, (user, group) in USERS.items()]
        (folder / "tokens.csv").touch(mode=0o600)
        (folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        self._tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        try:
            self.url = self._first_start()
            self.parts = [name for name in (*NEEDED, *OPTIONAL) if name in self._processes]
        except BaseException:
            self.close()
            raise

    @property
    def upstream(self) -> Upstream:
        headers = {"Authorization": f"Bearer {self._tokens['administrator']}"}
        return Upstream(self.url, ssl.create_default_context(cafile=str(self._folder / "ca.crt")), headers)

    def kubeconfig(self, name: str) -> Path:
        """That of one of `USERS`, straight to the API server."""
        path = self._folder / f"{name}.kubeconfig"
        return write_kubeconfig(path, self.url, self._tokens[name], self._folder / "ca.crt")

    def close(self) -> None:
        for name in reversed(list(self._processes)):
            self._kill(name)

    @contextlib.contextmanager
    def without_api_server(self) -> Iterator[None]:
        """No kube-apiserver inside the block, killed; a new one, at the same port and on the same etcd, after it.

        To be called in the main thread: what a thread has started is killed with it.
        """
        self._kill("kube-apiserver")
        try:
            yield
        finally:
            self._start("kube-apiserver", *self._arguments["kube-apiserver"])
            self._wait(self.url, "kube-apiserver", self._tokens["administrator"])

    def pid(self, name: str) -> int:
        """Of one of the binaries that run."""
        return self._processes[name].pid

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)

    def _first_start(self) -> str:
        """Free ports are taken by others now and then between the asking and the binding: then start over."""
        for attempt in range(ATTEMPTS):
            try:
                url = self._start_api_server(*_free_ports(3))
                self._start_others(url, *_free_ports(2))
                return url
            except StartError as error:
                self.close()
                if attempt + 1 == ATTEMPTS or "address already in use" not in str(error):
                    raise
        raise AssertionError("unreachable")

    def _start_api_server(self, client: int, peer: int, secure: int) -> str:
        etcd, url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{secure}"
        peers = f"http://127.0.0.1:{peer}"
        self._start(
            "etcd",
            f"--data-dir={self._folder / f'etcd-{client}'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            *self._supported("etcd", "--unsafe-no-fsync"),
        )
        controllers = os.access(self._assets / OPTIONAL[0], os.X_OK)
        self._start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            # The address of the `kubernetes` Service may not be loopback, and no pod here will call it.
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={secure}",
            f"--tls-cert-file={self._folder / 'server.crt'}",
            f"--tls-private-key-file={self._folder / 'server.key'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            # As some distributions have it: an owner reference with blockOwnerDeletion takes a right on /finalizers.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._folder / 'service-account.key'}",
            f"--service-account-signing-key-file={self._folder / 'service-account.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            # Without the controller that makes each namespace's account, no pod would be admitted.
            *([] if controllers else ["--disable-admission-plugins=ServiceAccount"]),
        )
        self._wait(url, "kube-apiserver", self._tokens["administrator"])
        return url

    def _start_others(self, url: str, controllers: int, scheduler: int) -> None:
        self.url = url
        for name, port, more in (
            (
                "kube-controller-manager",
                controllers,
                (
                    # Nodes here have no kubelet that would renew their leases.
                    "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,-node-route-controller",
                    f"--service-account-private-key-file={self._folder / 'service-account.key'}",
                    f"--root-ca-file={self._folder / 'ca.crt'}",
                    "--use-service-account-credentials=true",
                    "--horizontal-pod-autoscaler-sync-period=1s",
                ),
            ),
            ("kube-scheduler", scheduler, ()),
        ):
            if os.access(self._assets / name, os.X_OK):
                config = self.kubeconfig(name)
                self._start(
                    name,
                    f"--kubeconfig={config}",
                    f"--authentication-kubeconfig={config}",
                    f"--authorization-kubeconfig={config}",
                    "--bind-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--cert-dir={self._folder / name}",
                    "--leader-elect=false",
                    "--authentication-skip-lookup=true",
                    *more,
                )

    def _start(self, name: str, *arguments: str) -> None:
        self._arguments[name] = arguments
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._assets / name), *arguments, *self._flags.get(name, ())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _wait(self, url: str, name: str, token: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
        while time.monotonic() < deadline:
            for running, process in self._processes.items():
                if process.poll() is not None:
                    raise StartError(f"{running} ended with {process.returncode}:\n{self._tail(running)}")
            try:
                with urllib.request.urlopen(request, timeout=5, context=self._tls):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise StartError(f"{name} was not ready within {START_SECONDS} s:\n{self._tail(name)}")

    def _supported(self, name: str, *flags: str) -> Iterable[str]:
        usage = subprocess.run([self._assets / name, "--help"], capture_output=True, text=True, check=False)
        return [flag for flag in flags if flag.lstrip("-") in usage.stdout + usage.stderr]

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _tail(self, name: str, length: int = 2000) -> str:
        return self._log(name).read_text(errors="replace")[-length:]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child, before it becomes the binary: a killed test session leaves nothing behind (Linux)."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
