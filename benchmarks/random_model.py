"""Writes a model directory with the shape of a published model, without its weights.

    python benchmarks/random_model.py 8b|0.6b|CONFIG.json DIR [--weights]

DIR gets config.json and a byte-level tokenizer of the right size. `octavo serve DIR --load-format random` serves it;
with --weights there are safetensors with noise besides, 16 GB for 8b, and it can be served like any other.
"""

import argparse
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / name) for name in ("kernels", "server")]

from octavo_server.bench.random_model import write_model  # noqa: E402
from octavo_server.errors import ModelError  # noqa: E402

SHAPES = {"8b": HERE / "shapes/llama-8b.json", "0.6b": HERE / "shapes/qwen3-0.6b.json"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help=f"{', '.join(SHAPES)}, or a config.json")
    parser.add_argument("directory", type=Path, help="is made if it is not there")
    parser.add_argument("--weights", action="store_true", help="write safetensors too")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    try:
        write_model(SHAPES.get(arguments.shape, Path(arguments.shape)), arguments.directory, weights=arguments.weights)
    except ModelError as error:
        print(f"random_model: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.directory} written in {time.perf_counter() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
