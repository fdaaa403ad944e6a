"""What SOURCE may be: a text that names a model elsewhere. No secret is in it: it is in logs, and in the marker."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from octavo_pull.errors import RefusedError
from octavo_pull.names import safe_name

LONGEST_SOURCE: Final = 2048
_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w./-]{0,254}", re.ASCII)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OCI_NAME: Final = re.compile(r"[a-z0-9]+([._/-]+[a-z0-9]+)*")
_OCI_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
ARCHIVES: Final = (".tar", ".tar.gz", ".tgz")
FORMS: Final = (
    "hf://ORG/NAME[@REVISION], s3://BUCKET/PREFIX, https://HOST/NAME.tar, https://HOST/DIR/ or "
    "oci://REGISTRY/REPOSITORY:TAG[@sha256:HEX][#PATH]"
)


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """A repository of a hub at a branch, tag or commit."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class S3Source:
    """The objects of a bucket whose keys begin with `prefix` and a slash; of AWS where there is no endpoint."""

    bucket: str
    prefix: str
    endpoint: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}{f' at {self.endpoint}' if self.endpoint else ''}"


@dataclass(frozen=True, slots=True)
class HTTPSource:
    """An archive, or a directory with SHA256SUMS, at a URL; `sha256` is the archive's or that of SHA256SUMS."""

    url: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.url} sha256:{self.sha256}"


@dataclass(frozen=True, slots=True)
class OCISource:
    """An image or artifact in a registry, by tag or digest or both, of which the digest decides.

    path: of the model in the image; empty: wherever in it the only model lies.
    """

    registry: str
    repository: str
    tag: str | None
    digest: str | None
    path: str = ""

    def __str__(self) -> str:
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"oci://{self.registry}/{self.repository}{tag}{digest}{f'#{self.path}' if self.path else ''}"


Source = HuggingFaceSource | S3Source | HTTPSource | OCISource


def parse_source(text: str, *, sha256: str | None = None, endpoint: str | None = None) -> Source:
    """The source that a text names.

    sha256: of an HTTP source, which needs it. endpoint: of S3 alone.

    Raises:
        RefusedError: it is none, or what goes with it is missing or belongs to another kind.
    """
    scheme, separator, rest = text.partition("://")
    parsers: dict[str, Callable[[str], Source]] = {"hf": _hugging_face, "oci": _oci}
    if not separator or len(text) > LONGEST_SOURCE or not text.isprintable():
        raise RefusedError(f"SOURCE {text[:100]!r} is none of {FORMS}")
    if endpoint is not None and scheme != "s3":
        raise RefusedError("--endpoint is for s3:// alone")
    if sha256 is not None and scheme not in ("http", "https"):
        raise RefusedError("--sha256 is for https:// alone; the others have digests of their own")
    match scheme:
        case "s3":
            return _s3(rest, endpoint)
        case "http" | "https":
            return _http(text, sha256)
        case _ if scheme in parsers:
            return parsers[scheme](rest)
    raise RefusedError(f"SOURCE {text[:100]!r} is none of {FORMS}")


def _hugging_face(rest: str) -> HuggingFaceSource:
    repo, at, revision = rest.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise RefusedError(f"hf://{repo[:100]}: a repository is ORG/NAME, of letters, digits and . _ -")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise RefusedError(f"hf://{repo}@{revision[:100]}: a revision is a branch, a tag or a commit")
    return HuggingFaceSource(repo, revision if at else "main")


def _s3(rest: str, endpoint: str | None) -> S3Source:
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise RefusedError(f"s3://{bucket[:100]}: a bucket is 3 to 63 lower-case letters, digits, dots and hyphens")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise RefusedError(f"s3://{bucket}/{prefix[:100]}: the prefix has empty parts, or . or ..")
    if endpoint is not None:
        parts = _url(endpoint, "--endpoint")
        if parts.path.strip("/"):
            raise RefusedError(f"--endpoint {endpoint}: give the store's address alone, without a path")
        endpoint = endpoint.rstrip("/")
    return S3Source(bucket, prefix, endpoint)


def _http(text: str, sha256: str | None) -> HTTPSource:
    parts = _url(text, "SOURCE")
    if not parts.path.endswith((*ARCHIVES, "/")):
        text = text[:100]
        raise RefusedError(
            f"SOURCE {text}: ends neither in {', '.join(ARCHIVES)} nor in / (a directory with SHA256SUMS)"
        )
    if sha256 is None:
        of = "the directory's SHA256SUMS" if parts.path.endswith("/") else "the archive"
        raise RefusedError(f"SOURCE {text[:100]} needs --sha256 HEX, that of {of}")
    plain = sha256.lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(plain):
        raise RefusedError(f"--sha256 {sha256[:80]}: a digest is 64 hexadecimal digits")
    return HTTPSource(text, plain)


def _url(text: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in text
    except ValueError:
        valid = False
    if not valid:
        raise RefusedError(f"{what} {text[:100]!r} is no http or https address")
    if parts.username is not None or parts.password is not None:
        raise RefusedError(f"{what}: a password in an address is seen by all; none is taken")
    if parts.query or parts.fragment:
        raise RefusedError(f"{what}: an address with ? or # is not taken; what is behind them may be secret")
    return parts


def image_source(image: str, path: str = "") -> OCISource:
    """The source for an image as container runtimes name it: without a host it is Docker Hub's.

    Raises:
        RefusedError: it is no such name.
    """
    first, slash, _ = image.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return _oci(f"{image if has_host else f'docker.io/{image}'}{f'#{path}' if path else ''}")


def _oci(rest: str) -> OCISource:
    rest, _, folder = rest.partition("#")
    reference, at, digest = rest.partition("@")
    registry, _, path = reference.partition("/")
    name, colon, tag = path.partition(":")
    if not _HOST.fullmatch(registry) or not _OCI_NAME.fullmatch(name) or (colon and not _OCI_TAG.fullmatch(tag)):
        raise RefusedError(f"oci://{rest[:100]}: a reference is REGISTRY/REPOSITORY:TAG, lower-case but for the tag")
    if at and not (digest.startswith("sha256:") and _SHA256.fullmatch(digest.removeprefix("sha256:"))):
        raise RefusedError(f"oci://{rest[:100]}: a digest is sha256: and 64 hexadecimal digits")
    if not at and not colon:
        tag = "latest"
    return OCISource(registry, name, tag or None, digest or None, safe_name(folder.strip("/")) if folder else "")
