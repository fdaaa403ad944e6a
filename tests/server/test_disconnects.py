"""Clients that go away at any moment, hundreds of them, from a real engine that is too small for all."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny_tokenizers
from tiny_models import config_json, write_checkpoint

CLIENTS, AT_ONCE = 400, 80


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("disconnects") / "model"
    tokenizer = tiny_tokenizers.byte_level_bpe()
    eos = tokenizer.token_to_id("<|im_end|>")
    write_checkpoint(
        directory, config_json("LlamaForCausalLM", vocab_size=tokenizer.get_vocab_size(), eos_token_id=eos)
    )
    return tiny_tokenizers.save(tokenizer, directory, chat_template=tiny_tokenizers.CHATML)


def request(draw: random.Random) -> bytes:
    """A request of some kind, as bytes of HTTP."""
    text = "word " * draw.randrange(1, 30)
    fields: dict[str, Any] = {"model": "tiny", "ignore_eos": True, "stream": draw.random() < 0.6}
    several = {"n": draw.choice([1, 1, 1, 2]), "max_tokens": 24}
    path, more = draw.choice(
        [
            ("/v1/completions", {"prompt": text, **several}),
            ("/v1/completions", {"prompt": [text, "another"], **several}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **several}),
            ("/v1/responses", {"input": text, "max_output_tokens": 24}),
        ]
    )
    body = json.dumps(fields | more).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def come_and_go(port: int, seed: int) -> str:
    """Leave in the middle of the request, after it, with the first bytes of the answer, or somewhere in it."""
    draw = random.Random(seed)
    how = draw.choice(["before all is sent", "at once", "after a moment", "with the first bytes", "in the middle"])
    data = request(draw)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data[: draw.randrange(1, len(data))] if how == "before all is sent" else data)
        await writer.drain()
        if how == "after a moment":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), draw.uniform(0, 0.1))
        elif how in ("with the first bytes", "in the middle"):
            await reader.read(1)
            for _ in range(draw.randrange(1, 20) if how == "in the middle" else 0):
                if not await reader.read(200):
                    break
    finally:
        if draw.random() < 0.5:
            writer.transport.abort()  # a reset instead of an orderly end
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return how


async def come_and_go_all(port: int) -> Counter[str]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> str:
        async with places:
            return await come_and_go(port, seed)

    return Counter(await asyncio.gather(*(one(seed) for seed in range(CLIENTS))))


def test_hundreds_of_clients_that_go_away_leave_no_page_held_and_no_request(model: Path) -> None:
    env = {"OMP_NUM_THREADS": "1"}
    config = {"num_gpu_blocks_override": 64, "max_model_len": 256, "max_num_seqs": 48, "max_queued_requests": 208}
    with serving.serve(model, fake=False, env=env, **config) as server:
        server.wait_until_ready()
        engine = server.engine_pid()
        ways = asyncio.run(come_and_go_all(int(server.url.rpartition(":")[2])))
        assert len(ways) == 5 and sum(ways.values()) == CLIENTS
        serving.until(lambda: server.metric("vllm:num_requests_running") == 0)
        serving.until(lambda: server.metric("vllm:num_requests_waiting") == 0)
        assert server.metric("octavo:kv_pages", state="used") == 0
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        # The counters that prove it: many were cut off, while they held pages that others wanted.
        assert server.metric("vllm:request_success_total", finished_reason="abort") > CLIENTS / 10
        assert server.metric("vllm:request_success_total", finished_reason="error") == 0
        assert server.engine_pid() == engine
        # It takes every place that the queue has: were one lost, it would be refused.
        body = {"model": "tiny", "prompt": ["hello", "world"], "n": 128, "max_tokens": 1}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=serving.PATIENCE_SECONDS)
        assert answer.status_code == 200
