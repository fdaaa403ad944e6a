"""Cached pages outlive the server: filled, ended in order, started again, and with files that are broken."""

import signal
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

import octavo_server
import serving

DEMO: Final = Path(octavo_server.__file__).parent / "demo_model"
TEXT: Final = " ".join(f"The {thing} number {index} is green." for index in range(12) for thing in ("box", "cup"))
CHAT: Final[dict[str, Any]] = {
    "model": "demo",
    "messages": [{"role": "user", "content": TEXT + "\nWhat number does the last cup have?"}],
    "temperature": 0,
    "max_tokens": 24,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 2,
}


class Life:
    """One life of the server, from its start to SIGTERM: what it answers, and what it says of its caches."""

    def __init__(self, directory: Path, requests: int) -> None:
        config = {"swap_space": 0.05, "disk_cache_dir": str(directory), "served_model_name": ["demo"]}
        with serving.serve(DEMO, fake=False, **config) as server:
            server.wait_until_ready()
            url = f"{server.url}/v1/chat/completions"
            replies = [httpx.post(url, json=CHAT, timeout=serving.PATIENCE_SECONDS).json() for _ in range(requests)]
            self.answers = [reply["choices"][0] for reply in replies]
            self.cached = [_cached(reply) for reply in replies]
            self.prompt_tokens = replies[0]["usage"]["prompt_tokens"]
            serving.until(lambda: server.metric("vllm:num_requests_running") == 0)
            # The engine's state comes with its next heartbeat at the latest.
            serving.until(lambda: server.metric("vllm:prefix_cache_queries_total") >= requests * self.prompt_tokens)
            sources = ("device", "host", "disk")
            self.hits = {source: server.metric("octavo:prefix_hit_tokens_total", source=source) for source in sources}
            self.external = server.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(serving.PATIENCE_SECONDS) == 0


def _cached(reply: dict[str, Any]) -> int:
    """The details are there if there is something to tell."""
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def first(disk: Path) -> Life:
    """Fills the directory."""
    life = Life(disk, requests=2)
    assert life.cached[0] == 0 and life.cached[1] >= life.prompt_tokens - 16
    assert life.answers[0] == life.answers[1]
    assert life.hits["disk"] == 0 and life.hits["device"] == life.cached[1]
    return life


def files(disk: Path) -> list[Path]:
    return [path for path in sorted(disk.rglob("*")) if path.is_file() and path.stat().st_size > 2**16]


def test_a_prefix_is_hit_on_disk_after_a_restart_and_a_broken_file_is_none(disk: Path, first: Life) -> None:
    assert len(files(disk)) >= first.prompt_tokens // 16
    second = Life(disk, requests=1)
    assert second.answers == first.answers[:1]
    assert second.cached == [first.cached[1]]
    assert second.hits == {"device": 0, "host": 0, "disk": first.cached[1]}
    assert second.external == first.cached[1]
    for path in files(disk):
        content = bytearray(path.read_bytes())
        content[-1] ^= 0x10
        path.write_bytes(content)
    third = Life(disk, requests=1)
    assert third.answers == first.answers[:1]
    assert third.cached == [0] and third.hits["disk"] == 0
