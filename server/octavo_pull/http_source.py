"""Models at an http or https address: an archive, or a directory whose SHA256SUMS lists what is in it."""

import hashlib
from urllib.parse import quote

import httpx

from octavo_pull.errors import RefusedError
from octavo_pull.http_get import get, get_small
from octavo_pull.names import choose, safe_name
from octavo_pull.plan import Address, File, Plan, Unpack
from octavo_pull.sha256sums import LIST_NAME, LONGEST_LIST, parse_sums
from octavo_pull.source import HTTPSource


class HTTPOrigin:
    """An address and a digest."""

    def __init__(self, source: HTTPSource, client: httpx.Client) -> None:
        self._source, self._client = source, client

    def plan(self) -> Plan:
        """The archive, or the files that the list names."""
        source = self._source
        if source.url.endswith("/"):
            files = self._listed()
        else:
            name = source.url.rpartition("/")[2]
            size = self._size(source.url, name)
            kind: Unpack = "tar" if name.endswith(".tar") else "tar+gzip"
            files = (File(name, size, f"sha256:{source.sha256}", source.url, unpack=kind),)
        return Plan(str(source), f"sha256:{source.sha256}", files)

    def address(self, file: File) -> Address:
        """The file's own."""
        return Address(file.address)

    def renew(self) -> bool:
        """There are no credentials."""
        return False

    def _listed(self) -> tuple[File, ...]:
        base, what = self._source.url, f"{self._source.url}{LIST_NAME}"
        data = get_small(self._client, Address(what), {}, LONGEST_LIST, what).content
        digest = hashlib.sha256(data).hexdigest()
        if digest != self._source.sha256:
            raise RefusedError(f"{what} has the digest {digest}, not {self._source.sha256}")
        sums = {safe_name(name): digest for name, digest in parse_sums(data, base).items()}
        files = []
        for name in choose(sums, base):
            url = f"{base}{quote(name)}"
            files.append(File(name, self._size(url, name), f"sha256:{sums[name]}", url))
        return tuple(files)

    def _size(self, url: str, what: str) -> int:
        """Bytes of a file. By a GET of one of them: many servers answer HEAD otherwise."""
        with get(self._client, Address(url), {"Range": "bytes=0-0"}, what) as response:
            told = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = told if response.status_code == 206 else response.headers.get("Content-Length", "")
            if not size.isdigit() or len(size) > 18:
                raise RefusedError(f"{url}: the server does not tell how long it is")
            return int(size)
