"""Which control plane there is, and how to get one."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kube_fixture.background import Background
from kube_fixture.certificates import server_tls, write_certificates
from kube_fixture.emulator import Emulator
from kube_fixture.faults import Faults
from kube_fixture.kubeconfig import read_kubeconfig, write_kubeconfig
from kube_fixture.proxy import FaultProxy, Upstream
from kube_fixture.real import RealControlPlane, find_assets

Kind = Literal["real", "emulator", "kubeconfig"]
CHOICE = "OCTAVO_TEST_KUBERNETES"
CHOICES = ("auto", "both", "emulator", "kubeconfig", "real")


@dataclass
class ControlPlane:
    """An API server that is up. Nothing of it is left after `close`.

    What is under test goes through `kubeconfig` (at `url`), where `faults` records its requests and breaks them;
    what the test itself does goes through `direct_kubeconfig`, unseen and unharmed.
    """

    kind: Kind
    version: str
    url: str
    kubeconfig: Path
    direct_kubeconfig: Path
    faults: Faults
    parts: list[str] = field(default_factory=list)
    """the binaries that run: of etcd, kube-apiserver, kube-controller-manager, kube-scheduler"""
    closers: list[Callable[[], None]] = field(default_factory=list, repr=False)
    real: RealControlPlane | None = field(default=None, repr=False)
    """where its binaries are ours to stop and start"""

    @property
    def is_real(self) -> bool:
        """Whether tests marked `real` can run on it."""
        return self.kind != "emulator"

    @property
    def has_controller_manager(self) -> bool:
        return self.kind == "kubeconfig" or "kube-controller-manager" in self.parts

    @property
    def has_scheduler(self) -> bool:
        return self.kind == "kubeconfig" or "kube-scheduler" in self.parts

    def close(self) -> None:
        while self.closers:
            self.closers.pop()()

    def __str__(self) -> str:
        if self.kind == "emulator":
            return "emulator"
        return f"{self.kind} {self.version}" + (f" ({', '.join(self.parts)})" if self.parts else "")


def kinds_to_run() -> list[Kind]:
    """The kinds that a test without a marker runs on: one, but for OCTAVO_TEST_KUBERNETES=both.

    Raises ValueError for a choice that does not exist, and where a real one is asked for but its binaries are missing.
    """
    choice = os.environ.get(CHOICE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{CHOICE} is {choice!r}; it can be {', '.join(CHOICES)}")
    if choice in {"real", "both"} and find_assets() is None:
        raise ValueError(f"{CHOICE}={choice}, but neither KUBEBUILDER_ASSETS nor the default folder has the binaries")
    if choice == "both":
        return ["emulator", "real"]
    if choice == "auto":
        return ["real" if find_assets() else "emulator"]
    return [choice]  # type: ignore[list-item]


def start(kind: Kind) -> ControlPlane:
    """Start a control plane, with its faults in front. Close it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="octavo-kube-"))
    closers: list[Callable[[], None]] = [lambda: shutil.rmtree(folder, ignore_errors=True)]
    parts: list[str] = []
    real: RealControlPlane | None = None
    try:
        write_certificates(folder)
        background = Background()
        closers.append(background.close)
        if kind == "emulator":
            upstream = Upstream(f"http://127.0.0.1:{background.serve(Emulator().handle)}")
            direct = write_kubeconfig(folder / "direct.kubeconfig", upstream.url)
        elif kind == "real":
            assets = find_assets()
            if assets is None:
                raise ValueError("there are no binaries of a control plane")
            real = RealControlPlane(assets, folder)
            closers.append(real.close)
            upstream, parts = real.upstream, real.parts
            direct = real.kubeconfig("administrator")
        else:
            direct = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
            upstream = read_kubeconfig(direct)
        token = secrets.token_hex(16)
        proxy = FaultProxy(background, upstream, token, server_tls(folder))
        closers.append(proxy.close)
        return ControlPlane(
            kind=kind,
            version=proxy.version(),
            url=proxy.url,
            kubeconfig=write_kubeconfig(folder / "kubeconfig", proxy.url, token, folder / "ca.crt"),
            direct_kubeconfig=direct,
            faults=proxy.faults,
            parts=parts,
            closers=closers,
            real=real,
        )
    except BaseException:
        while closers:
            closers.pop()()
        raise
