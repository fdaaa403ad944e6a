"""`octavo gateway` as a process: what it refuses to start with, TLS, its ports, and how it ends."""

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateways import FakeReplica, Stream, listening, until
from octavo_gateway import listening as bounds
from octavo_gateway.discovery import Wishes
from octavo_gateway.endpoints_file import read_fleet

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def written(directory: Path, *replicas: FakeReplica) -> Path:
    path = directory / "endpoints"
    new = directory / "new"
    new.write_text(json.dumps({"models": {"m": [{"id": each.name, "url": each.url} for each in replicas]}}))
    new.replace(path)
    return path


class Process:
    """A gateway's process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process, self.url = process, url

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def running(*flags: str) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "octavo_cli", "gateway", "--port", "0", *flags]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("octavo gateway: listening on ")
        yield Process(process, line.split()[-1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_sigterm_lets_open_streams_finish_and_says_that_it_is_not_ready(tmp_path: Path) -> None:
    replica = FakeReplica("a", tokens=400, pause=0.002)
    async with listening(replica) as replica.url, aiohttp.ClientSession() as client:
        flags = ("--endpoints-file", str(written(tmp_path, replica)), "--drain-delay-seconds", "0.3")
        async with running(*flags) as gateway:
            async with client.post(f"{gateway.url}/v1/chat/completions", json=CHAT) as answer:
                text = await answer.content.readuntil(b"\n\n")
                gateway.end()
                async with aiohttp.ClientSession() as other:
                    while True:
                        async with other.get(f"{gateway.url}/ready") as ready:
                            if ready.status == 503:
                                break
                    async with other.post(f"{gateway.url}/v1/chat/completions", json=CHAT | {"stream": False}) as late:
                        assert late.status == 200  # who has not noticed yet is served
                        assert late.headers["Connection"] == "close"  # and goes elsewhere next
                text += await answer.read()
            assert Stream.of(text.decode()).done
            assert await gateway.process.wait() == 0


async def test_a_file_that_is_replaced_counts_at_once_and_one_that_is_broken_not_at_all(tmp_path: Path) -> None:
    first, second = FakeReplica("a"), FakeReplica("b")
    async with listening(first) as first.url, listening(second) as second.url, aiohttp.ClientSession() as client:
        path = written(tmp_path, first)
        async with running("--endpoints-file", str(path), "--admin-port", "0") as gateway:

            async def ask() -> int:
                async with client.post(f"{gateway.url}/v1/chat/completions", json=CHAT) as answer:
                    await answer.read()
                    return answer.status

            assert await ask() == 200
            written(tmp_path, second)
            while not second.bodies:
                assert await ask() == 200
            path.write_text("{")
            path.touch()
            await asyncio.sleep(0.3)
            assert await ask() == 200
            async with client.get(f"{gateway.url}/metrics") as answer:
                assert answer.status == 404  # at the admin port alone


async def test_tls_is_spoken_where_there_is_a_certificate(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    write_certificate(certificate)
    context = ssl.create_default_context(cafile=str(certificate))
    replica = FakeReplica("a")
    async with listening(replica) as replica.url:
        flags = ("--endpoints-file", str(written(tmp_path, replica)), "--ssl-certfile", str(certificate))
        async with running(*flags) as gateway, aiohttp.ClientSession() as client:
            assert gateway.url.startswith("https://")
            async with client.post(f"{gateway.url}/v1/chat/completions", json=CHAT, ssl=context) as answer:
                assert Stream.of(await answer.text()).done


def write_certificate(path: Path) -> None:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "where are the replicas? Give --endpoints-file, or --namespace or --all-namespaces in a cluster"),
        (["--namespace", "y", "--all-namespaces"], "give one of them"),
        (["--endpoints-file", "x", "--namespace", "y"], "give one of them"),
        (["--endpoints-file", "x", "--api-key-file", "/nowhere"], "/nowhere"),
        (["--endpoints-file", "x", "--replica-api-key-file", "/nowhere"], "--replica-api-key-file /nowhere"),
        (["--endpoints-file", "x", "--hold-seconds", "0"], "--hold-seconds"),
        (["--endpoints-file", "x", "--max-tokens-per-minute", "5"], "give --api-key-file or --api-key, too"),
        (["--endpoints-file", "x", "--kubeconfig", "y"], "give both"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(flags: list[str], words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo_cli", "gateway", "--port", "0", *flags]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert told.returncode == 2
    assert words in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "octavo_cli", "gateway", "--endpoints-file", "x", "--port", port]
        told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (told.returncode, "Address already in use" in told.stderr) == (2, True)


def test_a_files_fleet_is_read_as_it_is_agreed(tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    replica = {"id": "a", "url": "http://127.0.0.1:1/", "ready": False, "draining": True}
    settings = {"m": {"ttft_target": 2.5, "tpot_target": 0.1, "hold_requests": 3}}
    path.write_text(json.dumps({"models": {"m": [replica], "none": []}, "settings": settings}))
    fleet, wishes = read_fleet(path)
    (endpoint,) = fleet["m"]
    assert (endpoint.id, endpoint.url, endpoint.ready, endpoint.draining) == ("a", "http://127.0.0.1:1", False, True)
    assert fleet["none"] == ()
    assert wishes == {"m": Wishes(2.5, 0.1, 3)}


async def test_connections_are_bounded_and_those_that_say_nothing_are_closed() -> None:
    async def answer(request: Any) -> Any:
        return aiohttp.web.Response()

    runner = await bounds.listen_on(bounds.bind("127.0.0.1", 0, ""), answer, most=2)
    try:
        host, port = runner.addresses[0][:2]
        silent = await asyncio.open_connection(host, port)
        busy = await asyncio.open_connection(host, port)
        busy[1].write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await busy[0].readuntil(b"\r\n\r\n")
        third = await asyncio.open_connection(host, port)
        with contextlib.suppress(ConnectionError):
            assert await third[0].read() == b""
        server = runner.server
        assert isinstance(server, bounds.BoundedServer)
        for handler in server.connections:
            server.look(handler, handler.transport)
        with contextlib.suppress(ConnectionError):
            assert await silent[0].read() == b""
        await until(lambda: len(server.connections) == 1)
        for _, writer in (silent, busy, third):
            writer.close()
    finally:
        await runner.cleanup()
