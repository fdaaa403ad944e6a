"""What the advisories of the field warn of, tried on real server processes: sockets, models, keys, sizes, and what
errors tell. Chat templates have their own file."""

import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny_tokenizers
from octavo_common.access import keys
from octavo_common.access.keys import KeyRing
from octavo_server.config import ServerConfig
from octavo_server.frontend.limits import MAX_BODY_BYTES
from tiny_models import config_json, write_checkpoint

LISTENING = "0A"  # in /proc/net/tcp
ANY_ADDRESS = "00000000"


def tiny_model(directory: Path) -> Path:
    tokenizer = tiny_tokenizers.byte_level_bpe()
    eos = tokenizer.token_to_id("<|im_end|>")
    write_checkpoint(
        directory, config_json("LlamaForCausalLM", vocab_size=tokenizer.get_vocab_size(), eos_token_id=eos)
    )
    return tiny_tokenizers.save(tokenizer, directory, chat_template=tiny_tokenizers.CHATML)


def pickle_that_touches(path: Path) -> bytes:
    """Runs a command where it is opened, by hand: nothing here imports pickle either."""
    return b"cos\nsystem\n(S'touch " + str(path).encode() + b"'\ntR."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    base = tmp_path_factory.mktemp("security")
    model = tiny_model(base / "model")
    env = {"OMP_NUM_THREADS": "1", "TMPDIR": str(base)}
    with serving.serve(model, fake=False, env=env, host="0.0.0.0") as process:
        process.wait_until_ready()
        yield process


def port(server: serving.ServerProcess) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.fixture
def http(server: serving.ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port(server)}", timeout=serving.PATIENCE_SECONDS) as client:
        yield client


# --- sockets


def sockets_of(pids: list[int]) -> set[str]:
    """Inodes of the sockets that these processes hold."""
    links = [link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()]
    targets = [str(link.readlink()) for link in links]
    return {target[8:-1] for target in targets if target.startswith("socket:[")}


def test_only_the_http_port_listens_and_sockets_lie_in_a_directory_of_ours(server: serving.ServerProcess) -> None:
    pids = [server.process.pid, *server.children()]
    assert len(pids) == 3  # the API, the engine, the chat template's
    held = sockets_of(pids)
    listening, open_for_datagrams = [], []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in held and table.startswith("udp"):
                open_for_datagrams.append(fields[1])
            elif fields[9] in held and fields[3] == LISTENING:
                listening.append(fields[1])
    assert listening == [f"{ANY_ADDRESS}:{port(server):04X}"]
    assert open_for_datagrams == []
    lines = Path(f"/proc/{server.process.pid}/net/unix").read_text().splitlines()[1:]
    named = {fields[7] for line in lines if len(fields := line.split()) > 7 and fields[6] in held}
    assert named
    for path in named:
        assert not path.startswith("@"), "an abstract socket, which everybody may open"
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700


def test_a_pickle_sent_over_http_is_an_error_and_nothing_more(
    server: serving.ServerProcess, http: httpx.Client, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    pickle = pickle_that_touches(canary)
    with socket.create_connection(("127.0.0.1", port(server)), timeout=serving.PATIENCE_SECONDS) as connection:
        connection.sendall(pickle + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    for path in ("/v1/completions", "/v1/chat/completions"):
        for kind in ("application/json", "application/octet-stream", "application/x-python-pickle"):
            answer = http.post(path, content=pickle, headers={"Content-Type": kind})
            assert answer.status_code == 400
    assert http.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 200
    assert not canary.exists()


# --- a model that brings code


@pytest.mark.parametrize(
    ("bait", "told"), [("auto_map", "auto_map"), ("bin", "pytorch_model.bin"), ("index", "beside the index")]
)
def test_a_model_with_code_or_pickles_is_refused_and_nothing_of_it_is_run(tmp_path: Path, bait: str, told: str) -> None:
    model, canary = tiny_model(tmp_path / "model"), tmp_path / "canary"
    (model / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (model / "pytorch_model.bin").write_bytes(pickle_that_touches(canary))
    config = json.loads((model / "config.json").read_text())
    if bait == "auto_map":
        config["auto_map"] = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
        (model / "config.json").write_text(json.dumps(config))
    else:
        (model / "model.safetensors").unlink()
    if bait == "index":
        weights = {"weight_map": {"lm_head.weight": "pytorch_model.bin"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    with serving.serve(model, fake=False, env={"PYTHONPATH": str(model)}) as refused:
        assert refused.process.wait(serving.PATIENCE_SECONDS) == 1
        assert told in refused.log.splitlines()[-1]
        assert "Traceback" not in refused.log
    assert not canary.exists()


def test_a_tokenizer_with_code_is_served_without_it(tmp_path: Path) -> None:
    model, canary = serving.text_model(tmp_path / "model"), tmp_path / "canary"
    (model / "tokenization_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Tokenizer", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with serving.serve(model, env={"PYTHONPATH": str(model)}) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "hello"})
        assert answer.json()["choices"][0]["text"] == "hello"
    assert not canary.exists()


# --- keys


@pytest.mark.parametrize("given", ["first", "second", "third, which is longer", "nope", ""])
def test_a_key_is_compared_with_every_known_one_in_constant_time(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Spy:
        @staticmethod
        def compare_digest(a: bytes, b: bytes) -> bool:
            compared.append((a, b))
            return a == b

    known = ("first", "second", "third, which is longer")
    ring = KeyRing(ServerConfig(model=tmp_path, api_key=known))
    monkeypatch.setattr(keys, "hmac", Spy)
    found = ring.find(given.encode())
    assert [b for _, b in compared] == [key.digest for key in ring.keys]
    assert len({a for a, _ in compared}) == 1
    assert len({len(digest) for pair in compared for digest in pair}) == 1  # no length is told either
    assert (found is not None) == (given in known)


# --- sizes


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def send_until_refused(server: serving.ServerProcess, head: bytes, piece: bytes, pieces: int) -> int:
    """Bytes sent before the server closed the connection, at most all of them."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port(server)), timeout=serving.PATIENCE_SECONDS) as connection:
        # Closed with a reset, so that nothing lingers in buffers.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            connection.sendall(head)
            for _ in range(pieces):
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
    return sent


ONE_MIB = 2**20
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", b"y" * ONE_MIB),
        (b"GET /", b"y" * ONE_MIB),
        (b"GET /health HTTP/1.1\r\n", b"X: y\r\n" * (ONE_MIB // 6)),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b" " * ONE_MIB + b"\r\n"),
        (HEAD + b"Content-Length: 300000000\r\n\r\n", b" " * ONE_MIB),
    ],
    ids=["a header", "a target", "headers", "a body in chunks", "a declared body"],
)
def test_what_is_too_large_is_refused_with_bounded_memory(
    server: serving.ServerProcess, http: httpx.Client, head: bytes, piece: bytes
) -> None:
    http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})  # what a first request takes is not meant here
    before, pieces = peak_bytes(server.process.pid), 300
    sent = send_until_refused(server, head, piece, pieces)
    assert http.get("/health").status_code == 200
    assert peak_bytes(server.process.pid) - before < 3 * MAX_BODY_BYTES
    assert sent < 300 * ONE_MIB, "it took everything"


# --- what errors tell

SECRETS = re.compile(
    r"Traceback|File \"|line \d+, in |object at 0x|0x[0-9a-fA-F]{6,}|site-packages|\.py\b|/tmp/|/home/|/proc/|/usr/"
    r"|octavo_server|pydantic|msgspec|starlette|\b127\.0\.0\.1\b"
)
WRONG: list[tuple[str, str, Any]] = [
    ("GET", "/v1/nothing", None),
    ("DELETE", "/v1/completions", None),
    ("GET", "/v1/models/other", None),
    ("POST", "/v1/completions", []),
    ("POST", "/v1/completions", {"model": "tiny"}),
    ("POST", "/v1/completions", {"model": "other", "prompt": "a"}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": [-1]}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": [10**9]}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": [5] * 5000}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": {"a": 1}}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "temperature": {}}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "nothing": 1}),
    ("POST", "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": {"a": 1}}]}),
    ("POST", "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "no"}]}),
    ("POST", "/v1/chat/completions", {"model": "tiny", "messages": 3}),
    ("POST", "/v1/responses", {"model": "tiny", "input": [{"type": "other"}]}),
    ("POST", "/v1/responses", {"model": "tiny", "input": "a", "previous_response_id": "resp_1"}),
    ("POST", "/v1/responses", {"model": "tiny", "input": "a", "text": {"format": {"type": "no"}}}),
    ("GET", "/v1/responses/resp_1", None),
    ("GET", "/v1/responses/resp_1/input_items?limit=0", None),
    ("POST", "/v1/embeddings", {"model": "tiny", "input": [[10**9]]}),
    ("POST", "/v1/embeddings", {"model": "tiny", "input": {"a": 1}}),
    ("POST", "/tokenize", {"model": "tiny", "prompt": "a", "messages": []}),
    ("POST", "/detokenize", {"model": "tiny", "tokens": [10**9]}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "structured_outputs": {"regex": "("}}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "structured_outputs": {"grammar": "start: b"}}),
    (
        "POST",
        "/v1/completions",
        {"model": "tiny", "prompt": "a", "structured_outputs": {"json": {"$ref": "file:///x"}}},
    ),
]


@pytest.mark.parametrize(("method", "path", "body"), WRONG, ids=lambda value: str(value)[:50])
def test_no_refusal_tells_of_the_inside(http: httpx.Client, method: str, path: str, body: Any) -> None:
    answer = http.request(method, path, json=body)
    assert 400 <= answer.status_code < 500
    assert SECRETS.search(answer.text) is None, answer.text


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"a":' * 9999, b"[" * 100_000, b"1" * 9999], ids=len)
def test_a_body_that_cannot_be_read_tells_nothing_of_the_inside(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert SECRETS.search(answer.text) is None, answer.text


# --- programs that requests bring

HOSTILE_SCHEMA = {"type": "object", "properties": {"a": {"pattern": "(a+)+$"}}, "$ref": "#"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": HOSTILE_SCHEMA}}),
        ("structured_outputs", {"grammar": 'root ::= root "a"'}),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": HOSTILE_SCHEMA}}]),
        ("guided_json", HOSTILE_SCHEMA),
        ("guided_regex", "(a+)+$"),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"tools": "x"}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_schemas_grammars_and_templates_of_a_request_are_refused_by_name_and_hurt_nobody(
    server: serving.ServerProcess, http: httpx.Client, field: str, value: Any
) -> None:
    engine = server.engine_pid()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], field: value}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].partition(".")[0] == field
    assert server.engine_pid() == engine
