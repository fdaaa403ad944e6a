"""Hosts of models that speak the real protocols on this machine, and break off, refuse and lie when told to.

`Files` is a plain web server, `Hub` a hub of Hugging Face's kind, `Registry` one of OCI's, `Bucket` a store like S3.
"""

import asyncio
import base64
import contextlib
import functools
import gzip
import hashlib
import hmac
import io
import json
import re
import tarfile
import threading
import time
import xml.sax.saxutils
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import uvicorn

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    """A request as it came, and how many bytes of a body went out."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with requests whose path matches, so many times.

    status: what is answered instead. cut: the connection ends after so many bytes of the body. garble: the bytes are
    others. hold: nothing more is sent after `cut` bytes until the host is closed.
    """

    path: str
    times: int = 1
    method: str = "GET"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    garble: bool = False
    hold: bool = False


class Host:
    """An HTTP server in a thread. `url` has no trailing slash; `asked` is the log of requests."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.ranges = True
        self.pause_seconds = 0.0  # after each piece of 64 KiB
        self.closed = threading.Event()
        quiet = {"log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 1}
        self._server = uvicorn.Server(uvicorn.Config(self._app, port=0, interface="asgi3", **quiet))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the host did not start")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.netloc = f"127.0.0.1:{port}"
        self.url = f"http://{self.netloc}"
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.should_exit = True
        self._thread.join(20)

    def reset(self) -> None:
        """Forget the log and the faults."""
        self.asked, self.faults, self.ranges, self.pause_seconds = [], [], True, 0.0

    def bodies(self, pattern: str) -> int:
        """Bytes sent in answer to requests whose path matches."""
        return sum(asked.sent for asked in self.asked if re.search(pattern, asked.path))

    def count(self, pattern: str) -> int:
        """Requests whose path matches."""
        return sum(bool(re.search(pattern, asked.path)) for asked in self.asked)

    def answer(self, asked: Asked) -> Answer:
        """(status, headers, body) of a request; a body of 200 is sent as the range that was asked for."""
        raise NotImplementedError

    async def _app(
        self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = Asked(scope["method"], scope["raw_path"].decode(), scope["query_string"].decode(), headers)
        self.asked.append(asked)
        fault = self._fault(asked)
        if fault is not None and fault.status is not None:
            status, told, body = fault.status, fault.headers, fault.body
        else:
            status, told, body = self._ranged(asked, *self.answer(asked))
        if fault is not None and fault.garble:
            body = bytes(255 - byte for byte in body)
        length = told.pop("Content-Length", None) or str(len(body))
        pairs = [(name.encode(), value.encode()) for name, value in {**told, "Content-Length": length}.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        if asked.method == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        end = len(body) if fault is None or fault.cut is None else min(fault.cut, len(body))
        for start in range(0, end, 65536):
            piece = body[start : min(start + 65536, end)]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            asked.sent += len(piece)
            if self.pause_seconds:
                await asyncio.sleep(self.pause_seconds)
        if fault is not None and fault.hold:
            await asyncio.to_thread(self.closed.wait)
        if end < len(body):
            raise ConnectionResetError("as the test wants it")
        await send({"type": "http.response.body", "body": b""})

    def _fault(self, asked: Asked) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == asked.method and re.search(fault.path, asked.path):
                fault.times -= 1
                return fault
        return None

    def _ranged(self, asked: Asked, status: int, headers: dict[str, str], body: bytes) -> Answer:
        etag = headers.get("ETag")
        if status == 200 and "if-match" in asked.headers and etag is not None and asked.headers["if-match"] != etag:
            return 412, {}, b""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        if status != 200 or match is None or not self.ranges:
            return status, headers, body
        start, end = int(match[1]), min(int(match[2]), len(body) - 1)
        if start >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        return 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}, body[start : end + 1]


class Files(Host):
    """A plain web server of `files` by path."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.files = dict(files or {})

    def answer(self, asked: Asked) -> Answer:
        body = self.files.get(unquote(asked.path).lstrip("/"))
        if body is None:
            return 404, {"Content-Type": "text/html"}, b"<html>nothing here</html>"
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'}, body


def sha256sums(files: Mapping[str, bytes]) -> bytes:
    """As `sha256sum` writes them."""
    return "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items()).encode()


def git_digest(body: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Hub(Host):
    """A hub with one repository: `commits` by SHA, `branches` by name. Weights are kept elsewhere, and redirected to.

    token: who has no other one is told that it is gated. `expire()`: addresses redirected to before are refused.
    """

    def __init__(self, repo: str, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.repo = repo
        self.token: str | None = None
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.signature = 0
        self.near = False  # large files are redirected to another path of the same host, which wants the token, too
        self.commit("main", files)

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        """A new commit, to which the branch moves; its SHA."""
        told = json.dumps({name: git_digest(body) for name, body in files.items()}) + str(len(self.commits))
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def expire(self) -> None:
        """Addresses that were signed until now are refused."""
        self.signature += 1

    def answer(self, asked: Asked) -> Answer:
        path = unquote(asked.path)
        if match := re.fullmatch(rf"/api/models/{self.repo}/revision/(.+)", path):
            return self._check(asked) or self._info(match[1])
        if match := re.fullmatch(rf"/{self.repo}/resolve/([0-9a-f]+)/(.+)", path):
            return self._check(asked) or self._resolve(match[1], match[2])
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            return self._stored(asked, match[1])
        if match := re.fullmatch(r"/near/([0-9a-f]{64})", path):
            return self._check(asked) or self._body(match[1])
        if path.startswith(("/api/models/", "/")):
            text = "Repository not found"
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": text}, b'{"error":"Repository not found"}'
        return 404, {}, b""

    def _check(self, asked: Asked) -> Answer | None:
        if self.token is None or asked.headers.get("authorization") == f"Bearer {self.token}":
            return None
        status = 403 if "authorization" in asked.headers else 401
        text = f"Access to model {self.repo} is restricted and you are not in the authorized list."
        return status, {"X-Error-Code": "GatedRepo", "X-Error-Message": text}, json.dumps({"error": text}).encode()

    def _info(self, revision: str) -> Answer:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            text = f"Invalid rev id: {revision}"
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": text}, b"{}"
        siblings = []
        for name, body in self.commits[sha].items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": git_digest(body)}
            if self._is_large(name):
                sibling["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
            siblings.append(sibling)
        document = {"_id": "1", "id": self.repo, "modelId": self.repo, "sha": sha, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def _resolve(self, sha: str, name: str) -> Answer:
        body = self.commits.get(sha, {}).get(name)
        if body is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        headers = {"X-Repo-Commit": sha}
        if not self._is_large(name):
            return 200, {**headers, "ETag": f'"{git_digest(body)}"'}, body
        digest = hashlib.sha256(body).hexdigest()
        if self.near:
            return 307, {**headers, "Location": f"/near/{digest}"}, b""
        # Another host by name, as the real ones are: no credentials may reach it.
        url = f"http://localhost:{self.netloc.rpartition(':')[2]}/cdn/{digest}?Signature={self.signature}"
        return 302, {**headers, "Location": url, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(body))}, b""

    def _stored(self, asked: Asked, digest: str) -> Answer:
        if asked.query != f"Signature={self.signature}":
            return 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
        if "authorization" in asked.headers:
            return 400, {}, b"only one way to authenticate"
        return self._body(digest)

    def _body(self, digest: str) -> Answer:
        bodies = (body for files in self.commits.values() for body in files.values())
        return next((200, {}, body) for body in bodies if hashlib.sha256(body).hexdigest() == digest)

    @staticmethod
    def _is_large(name: str) -> bool:
        return name.endswith((".safetensors", ".bin"))


OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"


class Registry(Host):
    """A registry with one repository: `blobs` and `manifests` by digest, `tags`. Blobs are redirected to elsewhere.

    login: (user, password) for a token, which lives for `token_uses` requests; None: open to all.
    """

    def __init__(self, repository: str) -> None:
        super().__init__()
        self.repository = repository
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.tags: dict[str, str] = {}
        self.login: tuple[str, str] | None = None
        self.token_uses = 1_000_000
        self.redirects = False
        self._tokens: dict[str, int] = {}

    def blob(self, body: bytes) -> str:
        """Keep it; its digest."""
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.blobs[digest] = body
        return digest

    def layer(self, body: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
        """A descriptor of a blob, which is kept."""
        layer: dict[str, Any] = {"mediaType": media_type, "digest": self.blob(body), "size": len(body)}
        return {**layer, "annotations": annotations} if annotations else layer

    def push(self, tag: str, layers: list[dict[str, Any]]) -> str:
        """A manifest of these layers; its digest."""
        config = self.layer(b"{}", "application/vnd.oci.image.config.v1+json")
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        return self.keep(tag, OCI_MANIFEST, document)

    def keep(self, tag: str, media_type: str, document: Mapping[str, Any]) -> str:
        """Keep a manifest or an index under a tag; its digest."""
        body = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[digest] = (media_type, body)
        self.tags[tag] = digest
        return digest

    def answer(self, asked: Asked) -> Answer:
        path = unquote(asked.path)
        if path == "/token":
            return self._token(asked)
        if match := re.fullmatch(r"/elsewhere/(sha256:[0-9a-f]{64})", path):
            return (400, {}, b"no credentials here") if "authorization" in asked.headers else self._blob(match[1])
        if (refused := self._check(asked)) is not None:
            return refused
        if match := re.fullmatch(rf"/v2/{self.repository}/manifests/(.+)", path):
            digest = self.tags.get(match[1], match[1])
            if digest not in self.manifests:
                return 404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
            media_type, body = self.manifests[digest]
            return 200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, body
        if match := re.fullmatch(rf"/v2/{self.repository}/blobs/(sha256:[0-9a-f]{{64}})", path):
            if self.redirects:
                port = self.netloc.rpartition(":")[2]
                return 307, {"Location": f"http://localhost:{port}/elsewhere/{match[1]}"}, b""
            return self._blob(match[1])
        return 404, {}, b'{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}'

    def _blob(self, digest: str) -> Answer:
        if digest not in self.blobs:
            return 404, {}, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}'
        return 200, {"Content-Type": "application/octet-stream"}, self.blobs[digest]

    def _check(self, asked: Asked) -> Answer | None:
        if self.login is None:
            return None
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if self._tokens.get(token, 0) > 0:
            self._tokens[token] -= 1
            return None
        scope = f"repository:{self.repository}:pull"
        text = f'Bearer realm="{self.url}/token",service="registry.test",scope="{scope}"'
        body = b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'
        return 401, {"WWW-Authenticate": text}, body

    def _token(self, asked: Asked) -> Answer:
        query = dict(parse_qsl(asked.query))
        expected = base64.b64encode(":".join(self.login or ()).encode()).decode()
        right = query == {"service": "registry.test", "scope": f"repository:{self.repository}:pull"}
        if not right or asked.headers.get("authorization") != f"Basic {expected}":
            return 401, {}, b'{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}'
        token = f"token-{len(self._tokens)}"
        self._tokens[token] = self.token_uses
        return 200, {}, json.dumps({"token": token}).encode()


class Bucket(Host):
    """A store of one bucket that lists (ListObjectsV2, in pages) and gives, to who signs rightly (Signature Version 4).

    part_bytes: objects longer than this were uploaded in parts, which shows in their ETags.
    """

    ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

    def __init__(self, name: str, objects: Mapping[str, bytes]) -> None:
        super().__init__()
        self.name, self.objects = name, dict(objects)
        self.part_bytes = 8 * 1024 * 1024
        self.page = 1000
        self.open = False
        self.encrypted = False  # by a key of the owner's: ETags are digests of something else

    def etag(self, body: bytes) -> str:
        """As the store makes it."""
        return etag_of(body + b"encrypted" if self.encrypted else body, self.part_bytes)

    def answer(self, asked: Asked) -> Answer:
        if not self.open and not is_signed(asked, self.ACCESS, self.SECRET):
            return self._error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")
        path = unquote(asked.path)
        if path.rstrip("/") == f"/{self.name}":
            return self._list(dict(parse_qsl(asked.query, keep_blank_values=True)))
        if not path.startswith(f"/{self.name}/"):
            return self._error(404, "NoSuchBucket", "The specified bucket does not exist")
        body = self.objects.get(path.removeprefix(f"/{self.name}/"))
        if body is None:
            return self._error(404, "NoSuchKey", "The specified key does not exist.")
        encryption = {"x-amz-server-side-encryption": "aws:kms" if self.encrypted else "AES256"}
        return 200, {"ETag": self.etag(body), **encryption}, body

    def _error(self, status: int, code: str, message: str) -> Answer:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        return status, {"Content-Type": "application/xml"}, text.encode()

    def _list(self, query: Mapping[str, str]) -> Answer:
        keys = sorted(key for key in self.objects if key.startswith(query.get("prefix", "")))
        begin = int(query.get("continuation-token", "0"))
        shown, more = keys[begin : begin + self.page], begin + self.page < len(keys)
        items = "".join(
            f"<Contents><Key>{xml.sax.saxutils.escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{xml.sax.saxutils.escape(self.etag(self.objects[key]))}</ETag>"
            f"<Size>{len(self.objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in shown
        )
        token = f"<NextContinuationToken>{begin + self.page}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.name}</Name><Prefix>{query.get('prefix', '')}</Prefix><KeyCount>{len(shown)}</KeyCount>"
            f"<MaxKeys>{self.page}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}"
            "</ListBucketResult>"
        )
        return 200, {"Content-Type": "application/xml"}, text.encode()


@functools.cache
def etag_of(body: bytes, part_bytes: int) -> str:
    """Of an object that was uploaded at once if it is no longer than a part."""
    if len(body) <= part_bytes:
        return f'"{hashlib.md5(body).hexdigest()}"'
    parts = [body[start : start + part_bytes] for start in range(0, len(body), part_bytes)]
    outer = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
    return f'"{outer}-{len(parts)}"'


def is_signed(asked: Asked, access: str, secret: str) -> bool:
    """Whether a request carries AWS's Signature Version 4 by this key, in its headers or its query."""
    query = parse_qsl(asked.query, keep_blank_values=True)
    given = dict(query)
    if "X-Amz-Signature" in given:
        credential, signed = given["X-Amz-Credential"], given["X-Amz-SignedHeaders"]
        signature, date, payload = given["X-Amz-Signature"], given["X-Amz-Date"], "UNSIGNED-PAYLOAD"
        query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
    else:
        header = asked.headers.get("authorization", "")
        found = dict(re.findall(r"(Credential|SignedHeaders|Signature)=([^, ]+)", header))
        if set(found) != {"Credential", "SignedHeaders", "Signature"}:
            return False
        credential, signed, signature = found["Credential"], found["SignedHeaders"], found["Signature"]
        date, payload = asked.headers["x-amz-date"], asked.headers["x-amz-content-sha256"]
    key, day, region, service, last = credential.split("/")
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
    canonical_query = "&".join(f"{name}={value}" for name, value in pairs)
    headers = "".join(f"{name}:{' '.join(asked.headers[name].split())}\n" for name in signed.split(";"))
    canonical = "\n".join((asked.method, asked.path, canonical_query, headers, signed, payload))
    scope = f"{day}/{region}/{service}/{last}"
    text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    derived = f"AWS4{secret}".encode()
    for word in (day, region, service, last, text):
        derived = hmac.new(derived, word.encode(), hashlib.sha256).digest()
    return key == access and hmac.compare_digest(derived.hex(), signature)


def tar(files: Mapping[str, bytes], *, gzipped: bool = False, members: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """An archive of files, and of members without content as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        for member in members:
            archive.addfile(member)
    return gzip.compress(buffer.getvalue(), 1) if gzipped else buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link for `tar`."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@contextlib.contextmanager
def hosting(*hosts: Host) -> Iterator[None]:
    """All of them at once."""
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(host)
        yield


def port_of(url: str) -> int:
    """The port in an address."""
    port = urlsplit(url).port
    if port is None:
        raise ValueError(url)
    return port
