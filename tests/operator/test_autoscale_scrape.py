"""Scraping replicas and gateways over real sockets: what they tell, and that nothing they do holds anybody up."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from metric_servers import (
    Answer,
    MetricServer,
    drips,
    floods,
    hangs,
    hangs_in_the_middle,
    head,
    metric_server,
    server_exposition,
    tells,
    tells_slowly,
)
from octavo_gateway.metrics import GatewayMetrics
from octavo_operator.autoscale.scrape import Bounds, Scraper

QUICK = Bounds(seconds=0.4, bytes=2**20, at_once=8)

LEAST = """octavo:kv_tokens_used{model_name="a"} 10
octavo:kv_tokens_total{model_name="a"} 100
vllm:num_requests_running{model_name="a"} 1
vllm:num_requests_waiting{model_name="a"} 2
"""
BOMB = gzip.compress(LEAST.encode() + b"#" * 50_000_000, 1)


async def scraped(answer: Answer, body: bytes | str = b"", bounds: Bounds = QUICK) -> tuple[object, Counter[str]]:
    """What one server's answer was taken for, and what was counted."""
    counted: Counter[str] = Counter()
    text = body.encode() if isinstance(body, str) else body
    async with (
        metric_server(answer, text) as server,
        Scraper(bounds, lambda kind: counted.update([kind]), clock=lambda: 5.0) as scraper,
    ):
        found = await scraper.replicas({"a": server.url})
    return found.get("a"), counted


async def test_what_a_server_of_ours_tells_becomes_a_sample() -> None:
    body = server_exposition(
        running=3,
        waiting=2,
        waiting_prompt_tokens=700,
        kv_blocks_used=250,
        preemptions=4,
        prefix_queries=900,
        prefix_hits=300,
        prefill_tokens_per_second=1234.5,
        decode_tokens_per_second=99.0,
    )
    async with metric_server(tells, body) as server, Scraper(QUICK, clock=lambda: 7.0) as scraper:
        (sample,) = (await scraper.replicas({"a": server.url})).values()
    assert (sample.at, sample.kv_tokens_used, sample.kv_tokens_total) == (7.0, 4000, 16000)
    assert (sample.running, sample.waiting, sample.waiting_prompt_tokens) == (3, 2, 700)
    assert (sample.prefill_tokens_per_second, sample.decode_tokens_per_second) == (1234.5, 99.0)
    assert (sample.preemptions_total, sample.prefix_queries_total, sample.prefix_hits_total) == (4, 900, 300)
    assert (sample.computed_prompt_tokens_total, sample.generated_tokens_total) == (0.0, 0.0)
    assert (sample.inter_token_seconds_total, sample.inter_token_count) == (0.0, 0.0)


async def test_no_key_is_sent_and_nothing_compressed_is_asked_for() -> None:
    async with metric_server(tells, LEAST.encode()) as server, Scraper(QUICK) as scraper:
        await scraper.replicas({"a": server.url})
    (sent,) = server.heads
    assert sent.startswith("GET /metrics HTTP/1.1") and "authorization" not in sent.lower()
    assert "Accept-Encoding: identity" in sent


@pytest.mark.parametrize("answer", [hangs, drips])
async def test_one_that_hangs_is_given_up_in_time(answer: Answer) -> None:
    assert await scraped(answer) == (None, {"timeout": 1})


async def test_one_that_stops_in_the_middle_told_nothing() -> None:
    assert await scraped(hangs_in_the_middle, LEAST) == (None, {"timeout": 1})


async def test_a_hundred_megabytes_are_not_taken() -> None:
    tracemalloc.start()
    try:
        assert await scraped(floods, bounds=Bounds(seconds=30, bytes=2**20)) == (None, {"too_long": 1})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 * 2**20


async def _refuses(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(head(0, "401 Unauthorized"))


async def _redirects(server: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(head(0, "302 Found", f"Location: {server.url}\r\n"))


async def _closes(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _endless_head(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(10_000):
        writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def _bomb(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(head(len(BOMB), more="Content-Encoding: gzip\r\n") + BOMB)
    await writer.drain()


async def _no_http(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_refuses, "refused"),
        (_redirects, "refused"),
        (_closes, "unreachable"),
        (_endless_head, "unreachable"),
        (_no_http, "unreachable"),
        (_bomb, "malformed"),
    ],
)
async def test_what_is_no_answer_counts_as_none(answer: Answer, kind: str) -> None:
    assert await scraped(answer) == (None, {kind: 1})


async def test_a_redirect_is_not_followed() -> None:
    async with metric_server(_redirects) as server, Scraper(QUICK) as scraper:
        await scraper.replicas({"a": server.url})
        assert server.asked == 1


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('used{model_name="a"} 10', 'used{model_name="a"} NaN'),
        ('used{model_name="a"} 10', 'used{model_name="a"} +Inf'),
        ('used{model_name="a"} 10', 'used{model_name="a"} -1'),
        ('used{model_name="a"} 10', 'used{model_name="a"} 1e300'),
        ('used{model_name="a"} 10', 'used{model_name="a"} ten'),
        ('used{model_name="a"} 10', 'used{model_name="a} 10'),
        ('used{model_name="a"} 10', f'used{{model_name="{"a" * 5000}"}} 10'),
        ("octavo:kv_tokens_used", "octavo:kv_tokens_using"),
        ('total{model_name="a"} 100', 'total{model_name="a"} 0'),
        (LEAST, ""),
        (LEAST, "<html>404</html>"),
    ],
)
async def test_what_cannot_be_was_not_told(was: str, becomes: str) -> None:
    """Not even as 0: a replica of which nothing is known must not look idle."""
    assert await scraped(tells, LEAST.replace(was, becomes)) == (None, {"malformed": 1})


async def test_figures_that_can_be_done_without_are_not_known_where_they_are_missing() -> None:
    async with metric_server(tells, LEAST.encode()) as server, Scraper(QUICK) as scraper:
        (sample,) = (await scraper.replicas({"a": server.url})).values()
    assert (sample.kv_tokens_used, sample.running, sample.waiting) == (10, 1, 2)
    assert sample.generated_tokens_total is None and sample.inter_token_count is None


async def test_one_that_claims_more_than_it_has_is_full() -> None:
    body = LEAST.replace('used{model_name="a"} 10', 'used{model_name="a"} 1000000')
    async with metric_server(tells, body.encode()) as server, Scraper(QUICK) as scraper:
        (sample,) = (await scraper.replicas({"a": server.url})).values()
    assert sample.kv_tokens_used == sample.kv_tokens_total == 100


async def test_those_that_hang_take_nothing_from_those_that_answer() -> None:
    counted: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        good = [await stack.enter_async_context(metric_server(tells, LEAST.encode())) for _ in range(4)]
        bad = [await stack.enter_async_context(metric_server(hangs)) for _ in range(4)]
        scraper = await stack.enter_async_context(Scraper(QUICK, lambda kind: counted.update([kind])))
        urls = {f"good-{index}": each.url for index, each in enumerate(good)}
        urls |= {f"bad-{index}": each.url for index, each in enumerate(bad)} | {"gone": "http://127.0.0.1:1/metrics"}
        found = await scraper.replicas(urls)
    assert set(found) == {f"good-{index}" for index in range(4)}
    assert counted == {"ok": 4, "timeout": 4, "unreachable": 1}


async def test_only_so_many_are_asked_at_once() -> None:
    async with metric_server(tells_slowly, LEAST.encode()) as server, Scraper(Bounds(3, 2**20, 3)) as scraper:
        found = await scraper.replicas({str(index): server.url for index in range(9)})
    assert len(found) == 9 and server.most_at_once == 3


async def test_what_gateways_tell_is_by_model() -> None:
    body = """# TYPE octavo:gateway_held_requests gauge
octavo:gateway_held_requests{model="a"} 3
octavo:gateway_held_tokens{model="a"} 900
octavo:gateway_in_flight{model="b"} 2
octavo:gateway_arrivals_total{model="a",key="x"} 5
octavo:gateway_arrivals_total{model="a",key="y"} 6
"""
    async with metric_server(tells, body.encode()) as server, Scraper(QUICK, clock=lambda: 9.0) as scraper:
        (told,) = (await scraper.gateways({"g": server.url})).values()
    assert (told["a"].at, told["a"].gauges, told["a"].totals[0]) == (9.0, (3.0, 900.0, 0.0), 11.0)
    assert (told["b"].gauges, told["b"].totals[0]) == ((0.0, 0.0, 2.0), 0.0)


class Queue:
    """Three that wait, with so many tokens."""

    tokens = 900

    def __len__(self) -> int:
        return 3


class Pool:
    """As much of a gateway's model as its metrics read."""

    name, in_flight, queue = "demo", 5, Queue()

    def states(self) -> dict[str, int]:
        return {}


async def test_what_a_gateway_of_ours_tells_is_understood() -> None:
    pool: Any = Pool()
    metrics = GatewayMetrics(lambda: [pool])
    for counter, amount in ((metrics.arrivals, 11), (metrics.arrived_tokens, 1200), (metrics.finished, 6)):
        counter.add("demo", amount=amount)
    metrics.late_ttft.add("demo", amount=2)
    metrics.late_tpot.add("demo")
    body, _ = metrics.exposition("text/plain; version=0.0.4")
    async with metric_server(tells, body) as server, Scraper(QUICK) as scraper:
        (told,) = (await scraper.gateways({"g": server.url})).values()
    assert told["demo"].totals == (11, 1200, 6, 2, 1)
    assert told["demo"].gauges == (3, 900, 5)


async def test_a_gateway_that_knows_of_no_model_has_answered() -> None:
    async with metric_server(tells, b'octavo:gateway_info{version="1"} 1.0\n') as server, Scraper(QUICK) as scraper:
        assert await scraper.gateways({"g": server.url}) == {"g": {}}


@pytest.mark.parametrize("body", [LEAST, "", 'octavo:gateway_held_requests{model="a"} NaN\n'])
async def test_what_is_no_gateway_told_nothing(body: str) -> None:
    counted: Counter[str] = Counter()
    async with (
        metric_server(tells, body.encode()) as server,
        Scraper(QUICK, lambda kind: counted.update([kind])) as scraper,
    ):
        assert await scraper.gateways({"g": server.url}) == {}
    assert counted == {"malformed": 1}
