"""Which tile a product of few rows takes, by device and shape of the weight: what was measured to be best, and rules.

`tuned_products.json` has what was measured: by the name of the device, by the most rows, by outputs and inputs of the
weight. `benchmarks/gpu_decode.py --only search --write` makes it, in whole decode steps, one choice after the other. A
device that is not in it takes what was measured on one of its architecture. Where there is none, and for shapes that
are not in it, there are rules, with as many stages as the device's shared memory has room for.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import triton

from octavo_kernels.few_rows import BLOCK_ROWS, FewRowsConfig
from octavo_kernels.gemv import GemvConfig
from octavo_kernels.shared_memory import shared_memory

FILE: Final = Path(__file__).with_name("tuned_products.json")
Shape = tuple[int, int]  # rows and columns of the weight


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best configurations of one device, for one row, up to 8 and up to 16, where they are better than the rules.

    more_rows: by the most rows, ascending, as far as a kernel that begins to read the weight before its input is there
    beats the library's. capability: the architecture, "9.0".
    """

    capability: str = ""
    one_row: dict[Shape, GemvConfig] = field(default_factory=dict)
    eight_rows: dict[Shape, FewRowsConfig] = field(default_factory=dict)
    sixteen_rows: dict[Shape, FewRowsConfig] = field(default_factory=dict)
    more_rows: dict[int, dict[Shape, FewRowsConfig]] = field(default_factory=dict)


def one_row(weight: torch.Tensor) -> GemvConfig:
    """A short row is no work for many warps, of which each waits for the others at the end."""
    outputs, inputs = weight.shape
    if inputs <= 1024:
        rule = GemvConfig(2, triton.next_power_of_2(inputs), 4)
    else:
        rule = GemvConfig(1, 2048 if inputs < 4096 else 1024, 8)
    return tuned(weight.device).one_row.get((outputs, inputs), rule)


def few_rows(weight: torch.Tensor, rows: int) -> FewRowsConfig:
    """Without splits."""
    return _measured(weight, rows) or _fitting(FewRowsConfig(32, 128, 4, 6), weight, 1)


def few_rows_of_gates(weight: torch.Tensor, rows: int) -> FewRowsConfig:
    """Of two tiles of the weight a program: one stage fewer fits."""
    return _measured(weight, rows) or _fitting(FewRowsConfig(32, 128, 4, 5, ahead=512), weight, 2)


def few_rows_in_parts(weight: torch.Tensor, rows: int) -> FewRowsConfig:
    """So many splits that there are some two programs a processor, each with work enough."""
    outputs, inputs = weight.shape
    rule = FewRowsConfig(32, 128, 4, 6, splits=max(1, min(8, 8448 // outputs, inputs // 384)))
    return _measured(weight, rows) or _fitting(rule, weight, 1)


def some_rows(weight: torch.Tensor, rows: int) -> FewRowsConfig | None:
    """For more than few; None where the library is as fast, or it is not known."""
    outputs, inputs = weight.shape
    choices = ((most, table.get((outputs, inputs))) for most, table in tuned(weight.device).more_rows.items())
    return next((config for most, config in choices if config is not None and rows <= most), None)


def _measured(weight: torch.Tensor, rows: int) -> FewRowsConfig | None:
    outputs, inputs = weight.shape
    found = tuned(weight.device)
    return (found.eight_rows if rows <= 8 else found.sixteen_rows).get((outputs, inputs))


def _fitting(config: FewRowsConfig, weight: torch.Tensor, tiles: int) -> FewRowsConfig:
    """With fewer stages, if so many of the weight's `tiles` and of x's do not fit."""
    stage = (BLOCK_ROWS + tiles * config.block_n) * config.block_k * weight.element_size()
    return replace(config, num_stages=max(1, min(config.num_stages, shared_memory(weight.device) // stage)))


@cache
def tuned(device: torch.device) -> Tuned:
    """What there is for this device. On the CPU, where kernels are only tried, nothing."""
    if device.type != "cuda":
        return Tuned()
    major, minor = torch.cuda.get_device_capability(device)
    return choose(read(FILE.read_text(encoding="utf-8")), torch.cuda.get_device_name(device), f"{major}.{minor}")


def choose(tables: Mapping[str, Tuned], name: str, capability: str) -> Tuned:
    """That of the device of this name, else of one of its architecture, else an empty one."""
    alike = [table for table in tables.values() if table.capability == capability]
    return tables.get(name) or next(iter(alike), Tuned(capability))


def read(text: str) -> dict[str, Tuned]:
    """The tables in a file, by the device's name."""
    found = {}
    for name, given in json.loads(text).items():
        rows = {int(most): table for most, table in given["rows"].items()}
        one, eight, sixteen = (_table(rows.pop(most, {}), kind) for most, kind in _KINDS)
        more = {most: _table(rows[most], FewRowsConfig) for most in sorted(rows)}
        found[name] = Tuned(given["capability"], one, eight, sixteen, more)
    return found


def to_json(tables: Mapping[str, Tuned]) -> str:
    """What `read` reads, a line for each configuration."""
    parts = []
    for name, table in sorted(tables.items()):
        kinds: dict[str, Mapping[Shape, Any]] = {"1": table.one_row, "8": table.eight_rows, "16": table.sixteen_rows}
        kinds |= {str(most): found for most, found in table.more_rows.items()}
        rows = [f'   "{rows}": {{\n{_lines(found)}\n   }}' for rows, found in kinds.items() if found]
        of_device = f'  "capability": {json.dumps(table.capability)},\n  "rows": {{\n' + ",\n".join(rows) + "\n  }"
        parts.append(f" {json.dumps(name)}: {{\n{of_device}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


_KINDS: Final[tuple[tuple[int, Any], ...]] = ((1, GemvConfig), (8, FewRowsConfig), (16, FewRowsConfig))


def _table(given: Mapping[str, Any], kind: Any) -> dict[Shape, Any]:
    shapes = {shape: [int(size) for size in shape.split("x")] for shape in given}
    return {(outputs, inputs): kind(**given[shape]) for shape, (outputs, inputs) in shapes.items()}


def _lines(found: Mapping[Shape, Any]) -> str:
    each = [f'"{outputs}x{inputs}": {json.dumps(asdict(found[outputs, inputs]))}' for outputs, inputs in sorted(found)]
    return ",\n".join(f"    {line}" for line in each)
