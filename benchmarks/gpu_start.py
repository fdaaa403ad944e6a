"""Times the engine's start on a GPU, with nothing compiled before and with all compiled, and checks what it leaves.

    python benchmarks/gpu_start.py [--model DIR] [--layers N] [--starts cold warm] [--read] [--json FILE]

Without a model it writes one of random weights in the shape of Llama-3.1-8B, of `--layers` layers (0.44 GB each, and
2.1 GB for embedding and head). Its files are then in the page cache. A start is timed from the creation of the process
to its first token. Then requests of many sizes and kinds are sent, after which Triton's cache must hold no kernel that
it did not hold when the engine was ready. `--read` times reading the weights alone, by threads and sizes of buffers.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support")]

from engine_process import EngineProcess  # noqa: E402
from octavo_server.ipc import Starting  # noqa: E402

CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 128001,
}
NOISE_BYTES: Final = 64 * 2**20
SHARD_BYTES: Final = 4 * 2**30


def tensor_shapes(layers: int) -> dict[str, list[int]]:
    hidden, width, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes = {"model.embed_tokens.weight": [vocab, hidden]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": [hidden],
            prefix + "self_attn.q_proj.weight": [hidden, hidden],
            prefix + "self_attn.k_proj.weight": [kv, hidden],
            prefix + "self_attn.v_proj.weight": [kv, hidden],
            prefix + "self_attn.o_proj.weight": [hidden, hidden],
            prefix + "post_attention_layernorm.weight": [hidden],
            prefix + "mlp.gate_proj.weight": [width, hidden],
            prefix + "mlp.up_proj.weight": [width, hidden],
            prefix + "mlp.down_proj.weight": [hidden, width],
        }
    return shapes | {"model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden]}


def write_model(directory: Path, layers: int) -> int:
    """A checkpoint in bf16, in shards; returns its bytes."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}), encoding="utf-8")
    noise = (torch.randn(NOISE_BYTES // 2) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    shards: list[dict[str, list[int]]] = [{}]
    taken = 0
    for name, shape in tensor_shapes(layers).items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if taken and taken + size > SHARD_BYTES:
            shards.append({})
            taken = 0
        shards[-1][name] = shape
        taken += size
    weight_map, total = {}, 0
    with ThreadPoolExecutor(16) as pool:
        for number, shapes in enumerate(shards):
            file = f"model-{number}.safetensors"
            weight_map |= dict.fromkeys(shapes, file)
            total += write_shard(directory / file, shapes, noise, pool)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return total


def write_shard(path: Path, shapes: dict[str, list[int]], noise: bytes, pool: ThreadPoolExecutor) -> int:
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        first = 8 + len(head)
        jobs = [
            pool.submit(os.pwrite, file.fileno(), memoryview(noise)[: min(len(noise), end - at)], first + at)
            for at in range(0, end, len(noise))
        ]
        for job in jobs:
            job.result()
    return end


def kernels_in(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*.cubin")}


def start(model: Path, cache: Path, *, check: bool, config: dict[str, Any]) -> dict[str, Any]:
    """One start: seconds to ready and to the first token, phases, and what the requests after it compiled."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    begin = time.monotonic()
    with EngineProcess(model, device="cuda", **config) as engine:
        ready = engine.ready()
        ready_seconds = time.monotonic() - begin
        engine.add("first", list(range(64)), ignore_eos=True, max_tokens=1)
        engine.finish("first")
        found: dict[str, Any] = {
            "ready, s": round(ready_seconds, 2),
            "first token, s": round(time.monotonic() - begin, 2),
            "phases": {name: round(seconds, 2) for name, seconds in ready.phases.items()},
            "figures": {name: round(figure, 2) for name, figure in ready.figures.items()},
            "said at": {m.phase: round(m.seconds, 2) for m in engine.inbox if isinstance(m, Starting)},
            "kernels": len(kernels_in(cache)),
        }
        if check:
            before = kernels_in(cache)
            send_many(engine)
            found["kernels compiled after ready"] = sorted(kernels_in(cache) - before)
        found["log"] = engine.log.read_text()
    return found


def send_many(engine: EngineProcess) -> None:
    """Requests of many lengths, one at a time and together, with all that can be asked for."""
    choose = random.Random(0)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "logprobs": 5},
        {"temperature": 0.7, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": 0.1, "prompt_logprobs": 2},
    ]
    for round_, count in enumerate((1, 1, 1, 1, 2, 3, 5, 9, 17, 33, 70, 150, 256)):
        names = [f"{round_}-{index}" for index in range(count)]
        longest = (15, 300, 1500, 9000)[round_] if round_ < 4 else choose.choice((100, 700, 3000))
        for index, name in enumerate(names):
            length = longest if count == 1 else choose.randint(1, max(2, longest // (1 + count // 8)))
            prompt = [choose.randrange(100_000) for _ in range(length)]
            engine.add(name, prompt, ignore_eos=True, max_tokens=6 + index % 5, **kinds[(index + round_) % len(kinds)])
        engine.finish(*names)


def time_reading(model: Path) -> dict[str, float]:
    """GB/s of reading all weights to the GPU."""
    import torch

    from octavo_server.model_files import weight_files
    from octavo_server.worker import weight_stream
    from octavo_server.worker.checkpoint_file import CheckpointFile

    tensors = [tensor for path in weight_files(model) for tensor in CheckpointFile(path).tensors.values()]
    places = {t.name: torch.empty(t.shape, dtype=torch.bfloat16, device="cuda") for t in tensors}
    size, found = sum(tensor.num_bytes for tensor in tensors), {}
    for threads in (1, 4, 8, 16):
        for mib in (16, 64):
            weight_stream.BUFFER_BYTES = mib * 2**20  # type: ignore[misc]
            seconds = []
            for _ in range(2):
                begin = time.perf_counter()
                pieces = [p for t in tensors for p in weight_stream.pieces_of(t, places[t.name], mib * 2**20)]
                weight_stream.stream(pieces, torch.device("cuda"), threads)
                seconds.append(time.perf_counter() - begin)
            found[f"{threads} threads, {mib} MiB"] = round(size / min(seconds) / 1e9, 1)
    begin = time.perf_counter()
    for path in weight_files(model)[:1]:
        with CheckpointFile(path) as file:
            some = list(file.tensors)[:20]
            for name in some:
                places[name].copy_(file.read(name))
            torch.cuda.synchronize()
            read = sum(file.tensors[name].num_bytes for name in some)
    found["one thread out of the memory map"] = round(read / (time.perf_counter() - begin) / 1e9, 1)
    for path in weight_files(model):
        with CheckpointFile(path) as file:
            for name in list(file.tensors)[::7]:
                if not torch.equal(places[name].cpu(), file.read(name)):
                    raise RuntimeError(f"{name} was not read as it is in the file")
    return found


def time_imports() -> dict[str, float]:
    """The better of two, of a Python that imports it and ends."""
    found = {}
    for name in ("torch", "octavo_server.engine_start", "octavo_server.frontend.server"):
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            seconds.append(time.perf_counter() - begin)
        found[name] = round(min(seconds), 2)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model directory; by default one is written, and removed")
    parser.add_argument("--layers", type=int, default=8, help="of the model that is written (default 8)")
    parser.add_argument("--starts", nargs="*", choices=("cold", "warm"), default=["cold", "warm"])
    parser.add_argument("--read", action="store_true", help="time reading the weights alone")
    parser.add_argument("--imports", action="store_true", help="time imports alone")
    parser.add_argument("--config", type=json.loads, default={}, help="further fields of the engine's config, in JSON")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="octavo-start-") as directory:
        model = arguments.model or Path(directory) / "model"
        if arguments.model is None:
            begin = time.perf_counter()
            size = write_model(model, arguments.layers)
            print(f"{size / 1e9:.1f} GB written in {time.perf_counter() - begin:.1f} s", flush=True)
        if arguments.imports:
            report["imports, s"] = time_imports()
            print("imports, s:", report["imports, s"], flush=True)
        cache = Path(directory) / "cache"
        for number, kind in enumerate(arguments.starts):
            if kind == "cold":
                shutil.rmtree(cache, ignore_errors=True)
                cache.mkdir()
            last = number == len(arguments.starts) - 1
            found = report[f"{number} {kind}"] = start(model, cache, check=last, config=arguments.config)
            print(f"== {kind}\n{found.pop('log')}{json.dumps(found, indent=1)}", flush=True)
        if arguments.read:
            report["reading, GB/s"] = time_reading(model)
            print("reading, GB/s:", json.dumps(report["reading, GB/s"], indent=1), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(found.get("kernels compiled after ready") for found in report.values()))


if __name__ == "__main__":
    sys.exit(main())
