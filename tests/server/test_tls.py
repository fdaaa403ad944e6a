"""TLS on real servers: certificates made here, replaced while the server runs, of clients too; and what is refused."""

import asyncio
import datetime
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import serving
from octavo_common.access.file_watch import FileWatch
from octavo_common.access.tls import Tls
from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.frontend import http
from octavo_server.frontend.access.doors import Door


@dataclass(frozen=True)
class Pair:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        encryption: Any = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, encryption)


def issue(name: str, by: Pair | None = None) -> Pair:
    """For 127.0.0.1; without `by`, an authority of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    issuer = Pair(None, key) if by is None else by  # type: ignore[arg-type]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signer = issuer.key.public_key()
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    if by is None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(names, critical=False)
    return Pair(builder.sign(issuer.key, hashes.SHA256()), key)


@dataclass(frozen=True)
class Files:
    """Where everything lies."""

    base: Path
    authority: Pair

    def write(self, name: str, pair: Pair) -> tuple[Path, Path]:
        certificate, key = self.base / f"{name}.crt", self.base / f"{name}.key"
        certificate.write_bytes(pair.pem())
        key.write_bytes(pair.key_pem())
        return certificate, key

    def client(self, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client needs to know the server."""
        context = ssl.create_default_context(cadata=self.authority.pem().decode())
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"), issue("authority"))


@pytest.fixture(scope="module")
def server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    certificate, key = files.write("server", issue("first", files.authority))
    model = serving.text_model(tmp_path_factory.mktemp("model"))
    config = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key), "admin_port": 0, "api_key": ["secret"]}
    with serving.serve(model, **config) as process:
        context = files.client()
        serving.until(lambda: httpx.get(f"{process.url}/ready", verify=context).status_code == 200)
        yield process


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)


def name_shown(url: str, context: ssl.SSLContext) -> str:
    """Whose certificate the server shows to a new connection."""
    with (
        socket.create_connection(address(url), timeout=serving.PATIENCE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        (name,) = x509.load_der_x509_certificate(shown).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(name.value)


def test_the_openai_client_streams_over_tls_at_the_printed_address(server: serving.ServerProcess, files: Files) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    assert server.admin_url.startswith("https://127.0.0.1:")
    with (
        httpx.Client(verify=files.client()) as http,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", http_client=http, max_retries=0) as client,
    ):
        chunks = list(client.completions.create(model="tiny", prompt="hello", stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == "hello"
        assert http.get(f"{server.admin_url}/metrics").status_code == 200


def test_who_does_not_speak_tls_or_an_old_one_gets_nothing(server: serving.ServerProcess, files: Files) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https", "http") + "/health")
    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        httpx.get(f"{server.url}/health")  # an authority that nobody knows
    old = files.client()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        name_shown(server.url, old)
    assert httpx.get(f"{server.url}/health", verify=files.client()).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"y" * 300_000,
    ],
    ids=["many", "endless"],
)
def test_a_head_is_bounded_under_tls_too(server: serving.ServerProcess, files: Files, head: bytes) -> None:
    with (
        socket.create_connection(address(server.url), timeout=serving.PATIENCE_SECONDS) as plain,
        files.client().wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        try:
            connection.sendall(head)
            received = connection.recv(1000)
        except OSError:
            return  # closed while we were still sending: refused as well
    assert received.startswith(b"HTTP/1.1 431")


def test_a_renewed_certificate_is_shown_to_new_connections_and_a_broken_one_is_not(
    server: serving.ServerProcess, files: Files
) -> None:
    context = files.client()
    with httpx.Client(verify=context, base_url=server.url) as kept:
        assert kept.get("/health").status_code == 200
        assert name_shown(server.url, context) == "first"
        files.write("server", issue("second", files.authority))
        for url in (server.url, server.admin_url):
            serving.until(lambda url=url: name_shown(url, context) == "second")  # type: ignore[misc]
        (files.base / "server.key").write_bytes(issue("other", files.authority).key_pem())
        serving.until(lambda: "the key does not belong to the certificate" in server.log)
        assert name_shown(server.url, context) == "second"
        assert kept.get("/health").status_code == 200
        files.write("server", issue("third", files.authority))
        serving.until(lambda: name_shown(server.url, context) == "third")
    assert "PRIVATE" not in server.log


def test_clients_show_a_certificate_where_authorities_are_given_but_not_to_the_admin_port(
    files: Files, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    pair = issue("server", files.authority)
    both.write_bytes(pair.key_pem() + pair.pem())  # one file may hold both
    clients = issue("authority of clients")
    (tmp_path / "clients.crt").write_bytes(clients.pem())
    known = files.write("known", issue("known", clients))
    unknown = files.write("unknown", issue("unknown", files.authority))
    (tmp_path / "model").mkdir()
    config = {"ssl_certfile": str(both), "ssl_ca_certs": str(tmp_path / "clients.crt"), "admin_port": 0}
    with serving.serve(serving.text_model(tmp_path / "model"), **config) as server:
        assert httpx.get(f"{server.url}/health", verify=files.client(known)).status_code == 200
        for stranger in (files.client(), files.client(unknown)):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{server.url}/health", verify=stranger)
        assert httpx.get(f"{server.admin_url}/health", verify=files.client()).status_code == 200


# --- what cannot be used


def tls(certificate: Path, key: Path | None = None, **config: Any) -> Tls:
    return Tls(ServerConfig(model=Path(), ssl_certfile=certificate, ssl_keyfile=key, **config), certificate)


def test_files_that_cannot_be_used_are_named(files: Files, tmp_path: Path) -> None:
    certificate, key = files.write("right", issue("right", files.authority))
    _, other_key = files.write("other", issue("other", files.authority))
    encrypted, garbage = tmp_path / "encrypted.key", tmp_path / "garbage"
    encrypted.write_bytes(issue("x").key_pem(b"password"))
    garbage.write_bytes(b"no PEM")
    for arguments, told in [
        ((tmp_path / "nowhere", key), f"--ssl-certfile {tmp_path / 'nowhere'}: No such file"),
        ((certificate, tmp_path / "nowhere"), f"--ssl-keyfile {tmp_path / 'nowhere'}: No such file"),
        ((certificate, other_key), f"--ssl-keyfile {other_key}: the key does not belong to the certificate"),
        ((certificate, encrypted), f"--ssl-keyfile {encrypted}: the key is encrypted"),
        ((certificate, None), f"--ssl-certfile {certificate} (without --ssl-keyfile)"),
        ((garbage, key), f"--ssl-keyfile {key}: OpenSSL does not take it together with the certificate {garbage}"),
        ((certificate, garbage), f"--ssl-keyfile {garbage}: OpenSSL does not take it"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(told)):
            tls(*arguments)
    with pytest.raises(ConfigError, match=f"--ssl-ca-certs {garbage}: there is no certificate in it"):
        tls(certificate, key, ssl_ca_certs=garbage)


def test_a_server_that_cannot_use_its_certificate_says_so_in_one_line(files: Files, tmp_path: Path) -> None:
    certificate, _ = files.write("alone", issue("alone", files.authority))
    _, key = files.write("other", issue("other", files.authority))
    config = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    with pytest.raises(RuntimeError, match=r"octavo: --ssl-keyfile .*: the key does not belong"):  # noqa: SIM117
        with serving.serve(serving.text_model(tmp_path), **config):
            pass


@pytest.mark.parametrize(("given", "verified"), [(None, 2), (0, 0), (1, 1), (2, 2)])
def test_whether_clients_show_a_certificate_is_vllms_flag(files: Files, given: Any, verified: int) -> None:
    certificate, key = files.write("right", issue("right", files.authority))
    made = tls(certificate, key, ssl_ca_certs=certificate, ssl_cert_reqs=given)
    assert (made.main.current.verify_mode, made.admin.current.verify_mode) == (verified, 0)
    files.write("right", issue("renewed", files.authority))
    assert made.reload() is not None
    assert (made.main.current.verify_mode, made.admin.current.verify_mode) == (verified, 0)


def test_a_certificate_that_stays_the_same_is_not_read_again_aloud(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    certificate, key = files.write("kept", issue("kept", files.authority))
    made, watch = tls(certificate, key), FileWatch()
    watch.add(made.files, made.reload)
    before = made.main.current
    watch.look()
    certificate.touch()
    watch.look()
    assert made.main.current is before
    assert caplog.records == []
    files.write("kept", issue("renewed", files.authority))
    watch.look()
    assert made.main.current is not before
    certificate.touch()
    watch.look()
    assert [record.message for record in caplog.records] == [
        f"the certificate {certificate} was read again, for new connections"
    ]
    assert made.main.current.verify_mode == ssl.CERT_NONE  # of clients, there being no authority


async def test_who_begins_no_handshake_is_not_waited_for(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    pair = files.write("silent", issue("silent", files.authority))
    listener = socket.create_server(("127.0.0.1", 0))
    listeners = [http.Listener(listener, Door(), tls(*pair).main)]
    server = http.http_server(app, listeners, log_level="info", graceful_seconds=1)
    running = asyncio.create_task(server.serve())
    await server.listening.wait()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    async with asyncio.timeout(30):  # the event loop's own patience is a minute
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.should_exit = True
    await running
