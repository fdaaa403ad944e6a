"""The benchmarks of `octavo bench`. What they measure is in `octavo_server.bench`, which is imported when they run."""

import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from octavo_cli.bench_options import (
    COUNT,
    COUNTS,
    PROMPTS,
    FiniteRange,
    make_workload,
    parameters_of,
    repeat_option,
    workload_options,
)
from octavo_cli.bench_run import Setting, benchmark
from octavo_server.bench.workloads import SharedPrefix

_NO_SWAP: Final = {"swap_space": 0.0}  # pinning host memory takes seconds, and these runs have no use for it


@click.command()
@click.option("--batch", type=COUNTS, default="1,8,64,256", show_default=True, help="Requests in a step.")
@click.option("--context", type=COUNT, default=1024, show_default=True, help="Tokens of each request, on average.")
@click.option("--steps", type=COUNT, default=48, show_default=True, help="Timed steps, of which the median counts.")
@benchmark()
def decode(setting: Setting, batch: list[int], context: int, steps: int) -> None:
    """Milliseconds of a step in which every request decodes: scheduling, forward pass, greedy sampling.

    \b
    octavo bench decode demo --batch 1,8 --context 256
    octavo bench decode --random-weights config.json --dtype bfloat16
    """
    from octavo_server.bench.decode import time_decode

    with setting.engine_of(max_num_seqs=max(*batch, 1), **_NO_SWAP) as bench:
        figures = time_decode(bench, batch, context, steps=steps, seed=setting.seed)
        setting.tell(figures, bench.surroundings(), batch=batch, context=context, steps=steps)


@click.command()
@click.option("--prompts", type=PROMPTS, default="1x8192,32x2048", show_default=True, help="Requests x prompt tokens.")
@repeat_option(3)
@benchmark()
def prefill(setting: Setting, prompts: list[tuple[int, int]], repeat: int) -> None:
    """Prompt tokens a second: whole prompts of which one token is wanted each.

    \b
    octavo bench prefill demo --prompts 1x256,8x64
    """
    from octavo_server.bench.prefill import time_prefill

    with setting.engine_of(**_NO_SWAP) as bench:
        figures = time_prefill(bench, prompts, repeat=repeat, seed=setting.seed)
        setting.tell(figures, bench.surroundings(), prompts=prompts, repeat=repeat)


@click.command()
@click.option("--input-tokens", type=COUNTS, default="128,512,1024,2048,4096", show_default=True, help="Of a prompt.")
@repeat_option(9)
@benchmark()
def ttft(setting: Setting, input_tokens: list[int], repeat: int) -> None:
    """Time to the first token on an idle engine, from token ids to the token; every prompt is new.

    \b
    octavo bench ttft demo --input-tokens 32,256
    """
    from octavo_server.bench.prefill import time_first_token

    with setting.engine_of(**_NO_SWAP) as bench:
        figures = time_first_token(bench, input_tokens, repeat=repeat, seed=setting.seed)
        setting.tell(figures, bench.surroundings(), input_tokens=input_tokens, repeat=repeat)


@click.command()
@workload_options
@click.option(
    "--prefix-caching/--no-prefix-caching", default=False, show_default=True, help="Share pages between requests."
)
@click.option("--prefix-cost", is_flag=True, help="Instead: with and without prefix caching in turns; what it costs.")
@repeat_option(1)
@benchmark()
def throughput(
    setting: Setting, workload: str | None, prefix_caching: bool, prefix_cost: bool, repeat: int, **fields: Any
) -> None:
    """Output tokens a second of requests that are all there at once and are served to their ends.

    \b
    octavo bench throughput demo --requests 16 --input-tokens 64 --output-tokens 32
    octavo bench throughput --random-weights config.json --workload a
    octavo bench throughput --random-weights config.json --workload b --prefix-cost --repeat 2
    """
    from octavo_server.bench.throughput import time_prefix_cost, time_throughput

    requests = make_workload(workload, **fields)
    with setting.engine_of(**_NO_SWAP) as bench:
        if prefix_cost:
            figures = time_prefix_cost(bench, requests, repeat=repeat, seed=setting.seed)
        else:
            figures = time_throughput(bench, requests, prefix_caching=prefix_caching, repeat=repeat, seed=setting.seed)
        setting.tell(figures, bench.surroundings(), **parameters_of(requests), repeat=repeat)


@click.command()
@click.option("--requests", type=COUNT, default=64, show_default=True, help="Number of requests.")
@click.option("--shared-tokens", type=COUNT, default=4096, show_default=True, help="With which each prompt begins.")
@click.option("--own-tokens", type=COUNT, default=64, show_default=True, help="Of a prompt, behind them.")
@click.option("--output-tokens", type=COUNT, default=16, show_default=True, help="Of an answer.")
@click.option("--compare", is_flag=True, help="Also without prefix caching.")
@repeat_option(3)
@benchmark()
def prefix(setting: Setting, compare: bool, repeat: int, **lengths: int) -> None:
    """Seconds for requests with a common beginning, all there at once, from an empty prefix cache.

    \b
    octavo bench prefix demo --requests 8 --shared-tokens 256 --own-tokens 16 --compare
    """
    from octavo_server.bench.throughput import time_prefix

    with setting.engine_of(**_NO_SWAP) as bench:
        figures = time_prefix(bench, SharedPrefix(**lengths), compare=compare, repeat=repeat, seed=setting.seed)
        setting.tell(figures, bench.surroundings(), **lengths, repeat=repeat)


@click.command()
@workload_options
@click.option(
    "--preemption-mode",
    "modes",
    type=click.Choice(["auto", "swap", "recompute"]),
    multiple=True,
    default=("auto", "swap", "recompute"),
    show_default=True,
    help="May be given several times; each is a run.",
)
@click.option(
    "--pool",
    type=FiniteRange(0.0, 1.0, min_open=True),
    default=0.25,
    show_default=True,
    help="Share of the pages that the requests of a step need at their ends.",
)
@benchmark()
def swap(setting: Setting, workload: str | None, modes: tuple[Any, ...], pool: float, **fields: Any) -> None:
    """Throughput with a KV cache that is too small, by what becomes of preempted requests; and the copies of pages.

    \b
    octavo bench swap demo --requests 16 --input-tokens 64 --output-tokens 64 --swap-space 0.1
    """
    from octavo_server.bench.swap import time_copies, time_steps_beside, time_swap

    requests = make_workload(workload, **fields)
    with setting.engine_of(swap_space=8.0) as bench:
        figures = time_swap(bench, requests, modes, share=pool, seed=setting.seed)
        if bench.num_host_pages:
            figures += time_copies(bench)
        if bench.device.type == "cuda":
            figures += time_steps_beside(bench, batch=min(64, bench.limits.max_num_seqs), seed=setting.seed)
        setting.tell(figures, bench.surroundings(), **parameters_of(requests), pool=pool)


@click.command()
@click.option(
    "--checkpoint-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --random-weights: where a checkpoint is written, and found again.  [default: a temporary directory]",
)
@click.option("--patience", type=COUNT, default=300, show_default=True, help="Seconds that a start may take.")
@repeat_option(1)
@benchmark(profile=False)
def startup(setting: Setting, checkpoint_dir: Path | None, patience: int, repeat: int) -> None:
    """Seconds from the process of a real server to the first token over HTTP, the weights being in the page cache.

    cold: no kernel has been compiled before. warm: the caches are those of the start before; the fastest of --repeat.

    \b
    octavo bench startup demo
    octavo bench startup --random-weights config.json --checkpoint-dir /tmp/checkpoint
    """
    from octavo_server.bench.random_model import has_weights, write_model
    from octavo_server.bench.report import surroundings
    from octavo_server.bench.startup import time_startup
    from octavo_server.worker.device import pick_device, pick_dtype

    config, target = setting.config(), setting.target
    with tempfile.TemporaryDirectory(prefix="octavo-checkpoint-") as folder:
        directory = target.directory
        if target.random:
            directory = checkpoint_dir or Path(folder)
            if not has_weights(directory, target.shape):
                _check_empty(directory)
                click.echo(f"octavo: writing random weights to {directory} …", err=True)
                write_model(target.directory / "config.json", directory, weights=True)
        elif checkpoint_dir is not None:
            raise click.UsageError("--checkpoint-dir is for --random-weights: a model has its weights already")
        command = [sys.executable, "-m", "octavo_cli", "serve", str(directory), "--port", "0", *setting.flags()]
        figures = time_startup(directory, command, warm=repeat, patience=patience)
    device = pick_device(config.device)
    setting.tell(figures, surroundings(device, pick_dtype(config.dtype, target.shape, device)), repeat=repeat)


def _check_empty(directory: Path) -> None:
    """Raises click.UsageError where writing a checkpoint could overwrite what belongs to somebody."""
    if directory.is_dir() and any(directory.iterdir()):
        raise click.UsageError(
            f"--checkpoint-dir {directory}: it holds files, and no checkpoint of this shape that was written before; "
            "give a new or an empty directory"
        )


@click.command()
@click.option(
    "--decode",
    type=PROMPTS,
    default="64x1024,64x8192,256x1024,256x8192",
    show_default=True,
    help="Attention, one token a request: requests x context.",
)
@click.option(
    "--prefill",
    type=PROMPTS,
    default="1x8192,4x2048,16x512",
    show_default=True,
    help="Causal attention: requests x prompt tokens.",
)
@click.option(
    "--rows",
    type=COUNTS,
    default="1,8,64,256",
    show_default=True,
    help="Requests in a step of the model alone, a token each.",
)
@benchmark(profile=False)
def kernels(setting: Setting, decode: list[tuple[int, int]], prefill: list[tuple[int, int]], rows: list[int]) -> None:
    """Attention alone, and the model alone with next to no context, in the model's shape; its weights are not read.

    \b
    octavo bench kernels demo --decode 4x256 --prefill 1x256 --rows 1,8
    """
    from octavo_server.bench.kernels import time_attention, time_model
    from octavo_server.bench.report import surroundings
    from octavo_server.worker.device import fix_threads, pick_device, pick_dtype

    config, shape = setting.config(), setting.target.shape
    device = pick_device(config.device)
    fix_threads(device)
    dtype = pick_dtype(config.dtype, shape, device)
    figures = time_attention(shape, device, dtype, decodes=decode, prefills=prefill)
    figures += time_model(shape, device, dtype, rows)
    setting.tell(figures, surroundings(device, dtype), decode=decode, prefill=prefill, rows=rows)
