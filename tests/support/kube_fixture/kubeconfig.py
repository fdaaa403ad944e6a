"""Kubeconfig files: written for the fixture's own servers, read for a cluster that it was asked to use."""

from __future__ import annotations

import ssl
from pathlib import Path

import yaml
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

from kube_fixture.proxy import Upstream


def write_kubeconfig(path: Path, url: str, token: str | None = None, authority: Path | None = None) -> Path:
    """A file that kubectl, kopf and the official client take, readable by its owner alone."""
    cluster = {"server": url} | ({"certificate-authority": str(authority)} if authority else {})
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "octavo",
        "contexts": [{"name": "octavo", "context": {"cluster": "octavo", "user": "octavo", "namespace": "default"}}],
        "clusters": [{"name": "octavo", "cluster": cluster}],
        "users": [{"name": "octavo", "user": {"token": token} if token else {}}],
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
    return path


def read_kubeconfig(path: Path | None) -> Upstream:
    """The current context's cluster and credentials, of `path` or of where kubectl would look."""
    found = Configuration()
    load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(path) if path else None, client_configuration=found
    )
    token = found.get_api_key_with_prefix("authorization") or found.get_api_key_with_prefix("BearerToken")
    headers = {"Authorization": token} if token else {}
    tls = None
    if found.host.startswith("https"):
        tls = ssl.create_default_context(cafile=found.ssl_ca_cert)
        if not found.verify_ssl:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        if found.cert_file:
            tls.load_cert_chain(found.cert_file, found.key_file)
    return Upstream(found.host, tls, headers)
