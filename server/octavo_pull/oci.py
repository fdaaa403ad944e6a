"""Models in OCI registries, by the distribution API: images whose root is the model, and artifacts of files.

Understood are layers that are tar archives, files with a title as ORAS pushes them, and those of the model
specification of the CNCF.
"""

import hashlib
import json
import platform
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from octavo_pull.docker_config import credentials, find_config
from octavo_pull.errors import RefusedError
from octavo_pull.http_get import get_small
from octavo_pull.names import choose, is_wanted, safe_name
from octavo_pull.oci_auth import Token, ask_token, basic, challenge
from octavo_pull.plan import Address, File, Plan, Unpack
from octavo_pull.source import OCISource

LONGEST_MANIFEST: Final = 4 * 1024 * 1024
MOST_LAYERS: Final = 10_000
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_TITLES: Final = ("org.cncf.model.filepath", "org.opencontainers.image.title")
_UNPACK: Final = "io.deis.oras.content.unpack"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class OCIOrigin:
    """A reference in a registry."""

    def __init__(self, source: OCISource, client: httpx.Client, docker_config: Path | None) -> None:
        self._source, self._client = source, client
        self._login = credentials(find_config(docker_config), source.registry)
        host, repository = source.registry, source.repository
        if host == "docker.io":
            host, repository = "registry-1.docker.io", repository if "/" in repository else f"library/{repository}"
        self._repository = repository
        self._base = f"{'http' if _is_loopback(host) else 'https'}://{host}/v2/{repository}"
        self._token: Token | None = None
        self._renewing = threading.Lock()

    def plan(self) -> Plan:
        """The layers of the manifest that the reference is now; the revision is its digest."""
        source = self._source
        manifest, revision = self._manifest(source.digest or source.tag or "latest", source.digest)
        if manifest.get("mediaType") in _INDEXES or "manifests" in manifest:
            chosen = _choose_platform(manifest, str(source))
            manifest, _ = self._manifest(chosen, chosen)
        files = [_file(layer, str(source)) for layer in _layers(manifest, str(source))]
        plain = {file.name for file in files if not file.unpack}
        # Of archives it is known only when they are unpacked whether a model is in them.
        whole = len(plain) == len(files)
        wanted = set(choose(plain, str(source))) if whole else {name for name in plain if is_wanted(name)}
        kept = tuple(file for file in files if file.unpack or file.name in wanted)
        return Plan(str(source), revision, kept)

    def address(self, file: File) -> Address:
        """The layer's blob, with the token of now."""
        return Address(f"{self._base}/blobs/{file.address}", self._headers())

    def renew(self) -> bool:
        """Tokens live for minutes: ask for another one."""
        with self._renewing:
            if self._token is None or self._token.challenge is None:
                return False
            self._token = ask_token(self._client, self._token.challenge, self._login)
            return True

    def _headers(self) -> tuple[tuple[str, str], ...]:
        return (("Authorization", self._token.header),) if self._token else ()

    def _manifest(self, reference: str, digest: str | None) -> tuple[Mapping[str, Any], str]:
        """(a manifest, its digest), which is `digest` where one is given."""
        what = f"{self._source}: the manifest"
        accept = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        url = f"{self._base}/manifests/{reference}"
        try:
            answer = get_small(self._client, Address(url, self._headers()), accept, LONGEST_MANIFEST, what)
        except RefusedError as error:
            if error.status != 401 or self._token is not None:
                raise
            self._log_in(url, accept, error)
            answer = get_small(self._client, Address(url, self._headers()), accept, LONGEST_MANIFEST, what)
        found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if digest is not None and found != digest:
            raise RefusedError(f"{what} has the digest {found}, not {digest}")
        try:
            manifest: Any = json.loads(answer.content)
        except ValueError as error:
            raise RefusedError(f"{what} is no JSON") from error
        if not isinstance(manifest, dict):
            raise RefusedError(f"{what} is no object")
        return manifest, found

    def _log_in(self, url: str, headers: Mapping[str, str], refused: RefusedError) -> None:
        """Do what the registry asks for in its 401."""
        asked = challenge(self._client, url, headers)
        if asked is None and self._login is not None:
            self._token = Token(basic(self._login))
        elif asked is not None:
            self._token = ask_token(self._client, asked.scoped(self._repository), self._login)
        else:
            raise refused


def _is_loopback(host: str) -> bool:
    """As docker has it: a registry on this machine is asked without TLS."""
    name = host if host.startswith("[") else host.partition(":")[0]
    return name in ("localhost", "127.0.0.1") or host.startswith("[::1]")


def _choose_platform(index: Mapping[str, Any], what: str) -> str:
    """The digest of the manifest for this machine, of all if they name no platform."""
    entries = [entry for entry in index.get("manifests") or [] if isinstance(entry, dict)]
    mine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    usable = [
        entry
        for entry in entries
        if "platform" not in entry
        or (entry["platform"].get("os"), entry["platform"].get("architecture")) == ("linux", mine)
    ]
    if not usable and len(entries) == 1:
        usable = entries
    if not usable:
        raise RefusedError(f"{what}: the index has no manifest for linux/{mine}")
    return _digest(usable[0], what)


def _layers(manifest: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise RefusedError(f"{what}: the manifest has no layers")
    if len(layers) > MOST_LAYERS:
        raise RefusedError(f"{what}: the manifest has {len(layers)} layers; {MOST_LAYERS} are allowed")
    return layers


def _file(layer: Mapping[str, Any], what: str) -> File:
    digest, size, kind = _digest(layer, what), layer.get("size"), str(layer.get("mediaType", ""))
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**60:
        raise RefusedError(f"{what}: the layer {digest} has no size")
    notes = layer.get("annotations") or {}
    title = next((str(notes[name]) for name in _TITLES if name in notes), None)
    is_file = title is not None and notes.get(_UNPACK) != "true" and _TITLES[0] not in notes
    unpack = "" if is_file else _unpack(kind)
    if not unpack and title is None:
        raise RefusedError(f"{what}: a layer of the type {kind[:100]!r} without a title cannot be unpacked")
    name = f"layer {digest}" if unpack or title is None else safe_name(title)
    return File(name, size, digest, digest, unpack=unpack)


def _unpack(kind: str) -> Unpack:
    if kind.endswith((".tar+gzip", ".tar.gzip", "+tar+gzip")):
        return "tar+gzip"
    if kind.endswith(".tar"):
        return "tar"
    if "zstd" in kind:
        raise RefusedError("a layer is compressed by zstd, which is not understood; push it with gzip or without")
    return ""


def _digest(descriptor: Mapping[str, Any], what: str) -> str:
    digest = str(descriptor.get("digest", ""))
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise RefusedError(f"{what}: {digest[:100]!r} is no SHA-256 digest")
    return digest
