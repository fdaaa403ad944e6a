"""Checks the kernel that keeps logits to a grammar on a GPU against its twin, then times it: about twenty seconds.

    python benchmarks/gpu_grammar.py

Rows of 128,256 logits. Times are of CUDA-graph replays, medians; host times are of the launches alone, with nothing
waited for. No grammar is compiled: masks are random bits, so that llguidance is not needed. Exit status 1 if a check
failed.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from octavo_kernels import reference  # noqa: E402
from octavo_kernels.token_mask import apply_token_mask  # noqa: E402
from octavo_server.ipc import SamplingParams  # noqa: E402
from octavo_server.worker.grammar import RowMasks  # noqa: E402
from octavo_server.worker.transfer import upload_together  # noqa: E402
from sampling_pair import SamplingPair  # noqa: E402

DEVICE: Final = torch.device("cuda")
VOCAB: Final = 128_256
WORDS: Final = -(-VOCAB // 32)
SIZES: Final = (1, 64, 256)
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
EOS: Final = 128_009


def masks_of(rows: int, width: int = WORDS) -> RowMasks:
    """Random bits; of three rows one is forced, and allows nothing but the end."""
    draw = np.random.default_rng(rows)
    bits = draw.integers(-(2**31), 2**31, (rows, width)).astype(np.int32)
    forced = (np.arange(rows) % 3 == 1).astype(np.int32)
    bits[forced == 1] = 0
    bits[forced == 1, EOS // 32] = 1 << EOS % 32
    return RowMasks(bits, forced)


def wrong_values(rows: int, dtype: torch.dtype) -> int:
    """How many logits differ from the twin's: of odd rows gathered, of odd rows in place, and of those in between."""
    made = torch.Generator(DEVICE).manual_seed(rows)
    logits = torch.randn(2 * rows, VOCAB, device=DEVICE, generator=made).to(dtype)
    bits, forced = upload_together([(masks := masks_of(rows)).bits, masks.forced], DEVICE)
    want = logits[1::2].clone()
    reference.apply_token_mask(want, bits, forced)
    gathered = logits[torch.arange(1, 2 * rows, 2, device=DEVICE)]
    apply_token_mask(gathered, bits, forced)
    in_place = logits.clone()
    apply_token_mask(in_place[1::2], bits, forced)
    # A row that begins anywhere, and more words than there are tokens for.
    wide = torch.full((rows, VOCAB + 5), 7.0, dtype=dtype, device=DEVICE)
    wide[:, 3:-2] = logits[1::2]
    padded = torch.cat([bits, torch.full((rows, 3), -1, dtype=torch.int32, device=DEVICE)], 1)
    apply_token_mask(wide[:, 3:-2], padded, forced)
    count = sum(int((got != want).sum()) for got in (gathered, in_place[1::2], wide[:, 3:-2]))
    count += int((in_place[::2] != logits[::2]).sum()) + int((wide[:, :3] != 7).sum()) + int((wide[:, -2:] != 7).sum())
    return count


def wrong_tokens() -> int:
    """Of rows drawn by the kernels those with another token than the twin draws, or one that their mask excludes."""
    settings: list[dict[str, object]] = [
        {},
        {"top_k": 20, "top_p": 0.9},
        {"logit_bias": {5: 9.0, EOS: -100.0}, "bad_words": ((EOS,),)},
        {"min_tokens": 40, "presence_penalty": 0.5},
    ]
    params = [
        SamplingParams(temperature=float(row % 8 > 3), seed=row, grammar="g", **settings[row % 4])  # type: ignore[arg-type]
        for row in range(64)
    ]
    pair, masks = SamplingPair(params, [[1, 2]] * 64, 1, VOCAB, DEVICE, eos=(EOS,)), masks_of(64)
    got, want = pair.step(torch.randn(64, VOCAB, device=DEVICE) * 3, masks=masks)
    tokens = [one.token_id or 0 for one in got]
    allowed = [bool(int(masks.bits[row, token // 32]) >> token % 32 & 1) for row, token in enumerate(tokens)]
    return sum(a.token_id != b.token_id or not ok for a, b, ok in zip(got, want, allowed, strict=True))


def replay_us(call: Callable[[], object], often: int = 20) -> float:
    """Microseconds of one call, many in a graph."""
    call()
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(often):
            call()
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / often)
    return statistics.median(times[2:])


def host_us(call: Callable[[], object]) -> float:
    """Microseconds for which the host is busy with a call."""
    times = []
    for _ in range(30):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def main() -> int:
    wrong = 0
    for dtype in DTYPES:
        for rows in SIZES:
            count = wrong_values(rows, dtype)
            wrong += count
            logits = torch.randn(rows, VOCAB, device=DEVICE).to(dtype)
            masks = masks_of(rows)
            bits, forced = upload_together([masks.bits, masks.forced], DEVICE)
            ours, twin = (
                replay_us(lambda mask=mask, at=(logits, bits, forced): mask(*at))  # type: ignore[misc]
                for mask in (apply_token_mask, reference.apply_token_mask)
            )
            least = logits.element_size() * rows * VOCAB / 2 / 3.35e6  # half of the logits are written, once
            print(
                f"{str(dtype)[6:]:8} {rows:3} rows: {'right' if count == 0 else f'WRONG in {count} places'}, "
                f"{ours:.1f} us, twin {twin:.1f} us, writes alone {least:.1f} us",
                flush=True,
            )
    for rows in SIZES:
        masks, logits = masks_of(rows), torch.randn(rows, VOCAB, device=DEVICE)
        bits, forced = upload_together([masks.bits, masks.forced], DEVICE)
        up = host_us(lambda masks=masks: upload_together([masks.bits, masks.forced], DEVICE))  # type: ignore[misc]
        launch = host_us(lambda at=(logits, bits, forced): apply_token_mask(*at))  # type: ignore[misc]
        print(f"host, {rows:3} rows: upload {up:.0f} us, launch {launch:.1f} us", flush=True)
    count = wrong_tokens()
    print(f"drawn under masks, 64 rows: {'right' if count == 0 else f'WRONG in {count} rows'}")
    return int(bool(wrong + count))


if __name__ == "__main__":
    sys.exit(main())
