"""Of requests that have ended nothing is kept, in neither process, however they ended.

What Python holds is counted when all is quiet, before and after some hundred requests. Objects that the garbage
collector knows show if one request in six leaves one; strings and numbers, which it does not know, one in two.
"""

import asyncio
import contextlib
import ctypes
import json
import random
import re
import string
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

import block_counts
import serving
import tiny_tokenizers
from octavo_server.free_memory import give_memory_back
from octavo_server.frontend.text.tokenizer import TextTokenizer
from tiny_models import config_json, write_checkpoint

REQUESTS: Final = 300
AT_ONCE: Final = 12
BLOCKS_OF_A_PAGE: Final = 10  # about; how many are cached, or known to the cache, is never quite the same
WARM_UP: Final = 2  # times as many requests
PRELUDE: Final = "import os, pathlib, sys; sys.path.insert(0, {support!r}); import block_counts\n" + (
    "block_counts.install(pathlib.Path(os.environ['BLOCK_COUNTS']))"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kept") / "model"
    tokenizer = tiny_tokenizers.byte_level_bpe()
    eos = tokenizer.token_to_id("<|im_end|>")
    write_checkpoint(
        directory, config_json("LlamaForCausalLM", vocab_size=tokenizer.get_vocab_size(), eos_token_id=eos)
    )
    return tiny_tokenizers.save(tokenizer, directory, chat_template=tiny_tokenizers.CHATML)


async def one(client: httpx.AsyncClient, draw: random.Random) -> int:
    """A request of some kind; the status that it must have had, 0 for one that was left."""
    prompt = [draw.randrange(250) for _ in range(draw.randrange(2, 120))]
    body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": draw.randrange(1, 6)}
    if draw.random() < 0.5:
        body["cache_salt"] = f"{draw.random()}"
    kind = draw.randrange(9)
    if kind == 0:  # left, while it waits or runs
        with contextlib.suppress(httpx.TimeoutException):
            long = body | {"max_tokens": 100, "ignore_eos": True}
            await client.post("/v1/completions", json=long, timeout=draw.uniform(0.005, 0.1))
        return 0
    if kind == 1:  # left in its stream
        more = {"stream": True, "max_tokens": 100, "ignore_eos": True}
        async with client.stream("POST", "/v1/completions", json=body | more) as answer:
            async for _ in answer.aiter_lines():
                break
        return 0
    path, more, wanted = {
        2: ("completions", {"stream": True}, 200),
        3: ("completions", {"n": 3, "logprobs": 2, "presence_penalty": 0.5, "stop": ["never said"]}, 200),
        4: ("completions", {"timeout": 3600, "max_tokens": 40, "ignore_eos": True}, 200),
        5: ("completions", {"timeout": 0.001, "max_tokens": 100}, 504),
        6: ("completions", {"top_k": -9}, 400),
        7: ("completions", {"prompt": [1] * 600}, 400),
        8: ("chat/completions", {"messages": [{"role": "user", "content": f"{draw.random()}"}]}, 200),
    }[kind]
    if kind == 8:
        del body["prompt"]
    answer = await client.post(f"/v1/{path}", json=body | more)
    assert answer.status_code in (wanted, 200), answer.text
    return wanted


async def crowd(url: str, seed: int) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=serving.PATIENCE_SECONDS) as client:

        async def place(number: int) -> int:
            async with places:
                return await one(client, random.Random(f"{seed} {number}"))

        assert len(set(await asyncio.gather(*(place(number) for number in range(REQUESTS))))) == 4


def show_all_tokens(url: str, model: Path) -> None:
    """The API process keeps the bytes of each token from when it first saw it on."""
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    for first in range(0, size, 128):
        prompt = list(range(first, min(first + 128, size)))
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "prompt_logprobs": 0}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200


def test_nothing_is_kept_of_requests_that_have_ended(model: Path, tmp_path: Path) -> None:
    env = {"OMP_NUM_THREADS": "1", "BLOCK_COUNTS": str(tmp_path)}
    sizes = {"num_gpu_blocks_override": 18, "swap_space": 0.0005, "max_model_len": 256, "max_num_seqs": 8}
    prelude = PRELUDE.format(support=str(serving.SUPPORT))
    with serving.serve(model, fake=False, env=env, prelude=prelude, preemption_mode="swap", **sizes) as server:
        server.wait_until_ready()
        pids = {"api": server.process.pid, "engine": server.engine_pid()}
        show_all_tokens(server.url, model)

        def counts() -> dict[str, dict[str, Any]]:
            serving.until(lambda: server.metric("vllm:num_requests_running") == 0)
            serving.until(lambda: server.metric("vllm:num_requests_waiting") == 0)
            # The least of some: the last handlers may still find out that nobody is there.
            tries = {name: [block_counts.ask(pid, tmp_path) for _ in range(5)] for name, pid in pids.items()}
            return {name: min(found, key=lambda count: int(count["blocks"])) for name, found in tries.items()}

        for seed in range(WARM_UP):  # fills caches and free lists, and each bucket of a histogram gets a number
            asyncio.run(crowd(server.url, seed))
        before = counts()
        asyncio.run(crowd(server.url, WARM_UP))
        after = counts()
        assert server.metric("octavo:preemptions_total", mode="swap") > 0
        for name in pids:
            blocks, types = block_counts.growth(before[name], after[name])
            blocks -= BLOCKS_OF_A_PAGE * dict(types).get("octavo_server.engine.block_pool.CachedPage", 0)
            assert blocks < REQUESTS / 2, f"the {name} process holds {blocks} blocks more, among them {types}"
            assert all(more < REQUESTS / 6 for _, more in types), f"the {name} process holds more objects: {types}"


class _Malloc(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "mapped", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("used", "free", "keep")),
    ]


def in_use() -> int:
    """Bytes that malloc has given out, over all threads."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        pytest.skip("this C library does not say what malloc has given out")
    mallinfo2.restype = _Malloc
    found = mallinfo2()
    return int(found.used + found.mapped)


def test_the_tokenizer_keeps_few_of_the_words_that_it_has_cut(model: Path) -> None:
    """The library by itself would keep 3,000 words with 250 letters each, which are 24 MB."""
    tokenizer, draw = TextTokenizer(model), random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=250)) for _ in range(3000)]
    before = in_use()
    for start in range(0, len(words), 100):
        tokenizer.encode(" ".join(words[start : start + 100]), add_special_tokens=False)
    assert in_use() - before < 12e6


def test_free_memory_behind_something_that_is_held_goes_back_to_the_system() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this C library does not give memory back on demand")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size, pieces = 60_000, list[int]()  # below what malloc maps by itself
    for _ in range(2000):
        pieces.append(libc.malloc(size))
        ctypes.memset(pieces[-1], 1, size)
    *freed, last = pieces
    for piece in freed:
        libc.free(piece)
    before = anonymous()
    give_memory_back()
    assert before - anonymous() > 100e6
    libc.free(last)


def anonymous() -> int:
    """Bytes."""
    return int(re.findall(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.M)[0]) * 1024
