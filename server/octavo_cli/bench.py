"""`octavo bench`: a group of benchmarks, each in `octavo_cli.bench_commands`."""

from typing import Final

import click

from octavo_cli.lazy import LazyGroup, SubCommand

_MODULE: Final = "octavo_cli.bench_commands"
BENCHMARKS: Final[dict[str, SubCommand]] = {
    "throughput": SubCommand(_MODULE, "throughput", "Output tokens a second, of many requests at once."),
    "decode": SubCommand(_MODULE, "decode", "Milliseconds of a step in which every request decodes."),
    "prefill": SubCommand(_MODULE, "prefill", "Prompt tokens a second."),
    "ttft": SubCommand(_MODULE, "ttft", "Time to the first token on an idle engine."),
    "prefix": SubCommand(_MODULE, "prefix", "Seconds for requests with a common beginning."),
    "swap": SubCommand(_MODULE, "swap", "Throughput where the KV cache is too small, and the copies of pages."),
    "startup": SubCommand(_MODULE, "startup", "Seconds from the process to the first token over HTTP."),
    "kernels": SubCommand(_MODULE, "kernels", "Attention alone, and the model alone."),
}


@click.group(cls=LazyGroup, table=BENCHMARKS)
def bench() -> None:
    """Time a model on this machine: a directory, `demo`, or a shape with random weights.

    The engine runs in this process, without HTTP and text (but for `startup`). What comes out is a table, or with
    --json one JSON object that also says on what it was measured.

    \b
    Examples:
      octavo bench decode demo --batch 1,8 --context 256
      octavo bench throughput --random-weights config.json --workload b
      octavo bench throughput ./my-model --requests 64 --input-tokens 100-1000
      octavo bench ttft ./my-model --input-tokens 128,2048 --json
      octavo bench startup ./my-model
    """
