"""The table of figures and the file of those measured: `benchmarks/results/h100.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo_server.bench.random_model import read_shape
from octavo_server.bench.report import Figure

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from figure_sections import SHAPES, rows_of  # noqa: E402
from figures import RESULTS, TABLE, Measured, holds, table, update, with_excuses  # noqa: E402
from http_figures import LEVELS  # noqa: E402
from http_figures import rows_of as http_rows  # noqa: E402


def test_every_row_measured_is_a_figure_of_the_table_with_its_goals() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        goal = TABLE[row["name"]]
        assert (row["unit"], row["stretch"], row["vllm"]) == (goal.unit, goal.stretch, goal.vllm), row["name"]
        assert row["lower_is_better"] == goal.lower_is_better
        assert goal.goal is None or row["goal"] == goal.goal
        assert isinstance(row["value"], int | float)
        assert row["command"]
        assert not row.get("excused") or goal.alone


def test_goals_are_ahead_of_vllm_and_the_stretch_is_ahead_of_the_goal() -> None:
    for name, goal in TABLE.items():
        sign = -1 if goal.lower_is_better else 1
        if goal.goal is not None and goal.stretch is not None:
            assert sign * goal.stretch > sign * goal.goal, name
        if goal.goal is not None and goal.vllm is not None and not goal.alone:
            assert sign * goal.goal > sign * goal.vllm, name


@pytest.mark.parametrize(
    "name", ["8b-decode-256", "0.6b-decode-8", "8b-ttft-4096", "0.6b-throughput-a", "8b-prefix-cost", "8b-start-warm",
             "http-0.6b-64-tpot", "http-8b-16-ttft", "http-8b-all", "attention-prefill-16x512", "8b-swap"],
)  # fmt: skip
def test_figures_of_the_performance_page_are_in_the_table(name: str) -> None:
    assert name in TABLE


def test_what_is_measured_over_http_is_in_the_table() -> None:
    names = set[str]()
    for model, levels in LEVELS.items():
        found = [
            {"rate": float(text.split(":")[0]), "ttft_ms": {"p50": 1.0}, "tpot_ms": {"p50": 1.0}}
            for text in levels.split(",")
        ]
        rest = dict.fromkeys(("n", "itl_ms", "out_tok_s", "chunks", "s"))
        names |= {row["name"] for row in http_rows(model, {"levels": [{**rest, **level} for level in found]}, "")}
    assert names == {name for name in TABLE if name.startswith("http-")}


def test_a_row_has_the_command_that_measures_it_and_what_the_table_lacks_is_left_out() -> None:
    found = [Figure("decode-8", 6.1, "ms", True, {"context": 1024}), Figure("decode-3", 6.0, "ms", True)]
    (row,) = rows_of("8b", found, "octavo bench decode MODEL")
    assert row.name == "8b-decode-8"
    assert row.command == "octavo bench decode --random-weights benchmarks/shapes/llama-8b.json"
    assert row.more == {"context": 1024}


@pytest.mark.parametrize("model", ["8b", "0.6b"])
def test_the_shapes_are_those_of_the_performance_page(model: str) -> None:
    shape = read_shape(SHAPES[model])
    sizes = (shape.hidden_size, shape.num_layers, shape.num_attention_heads, shape.num_kv_heads, shape.head_dim)
    inner = (shape.intermediate_size, shape.vocab_size, shape.qk_norm, shape.tie_word_embeddings)
    assert (sizes, inner) == {
        "8b": ((4096, 32, 32, 8, 128), (14336, 128256, False, False)),
        "0.6b": ((1024, 28, 16, 8, 128), (3072, 151936, True, True)),
    }[model]


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def test_rows_are_replaced_by_name_and_the_others_kept_with_their_commit(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    update(path, [Measured("8b-decode-1", 5.6, "a"), Measured("8b-ttft-128", 9.0, "b")], device="H100", commit="1")
    update(path, [Measured("8b-decode-1", 5.4, "c", more={"context": 1024})], device="H100", commit="2")
    found = rows(path)
    assert (found["8b-decode-1"]["value"], found["8b-decode-1"]["commit"]) == (5.4, "2")
    assert found["8b-decode-1"]["more"] == {"context": 1024}
    assert (found["8b-ttft-128"]["value"], found["8b-ttft-128"]["commit"]) == (9.0, "1")
    assert json.loads(path.read_text(encoding="utf-8"))["commit"] == "2"


def test_a_figure_that_the_table_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="8b-decode-3"):
        update(tmp_path / "h100.json", [Measured("8b-decode-3", 1.0, "a")], device="H100", commit=None)


def test_the_goal_of_a_run_stands_in_for_one_that_the_table_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    (row,) = update(path, [Measured("8b-swap", 4000, "a", goal=4100)], device="H100", commit="1")
    assert not holds(row)


@pytest.mark.parametrize(("decode", "excused"), [(9.3, True), (9.5, False)])
def test_attention_alone_is_excused_only_while_the_engine_holds(decode: float, excused: bool, tmp_path: Path) -> None:
    measured = [
        Measured("attention-decode-64x8192", 717, "a"),
        Measured("attention-decode-64x1024", 94, "a"),
        Measured("8b-decode-64", decode, "a"),
        Measured("8b-decode-256", 19.3, "a"),
    ]
    found = {row["name"]: row for row in update(tmp_path / "x.json", measured, device="H100", commit="1")}
    assert found["attention-decode-64x8192"].get("excused", False) is excused
    assert "excused" not in found["attention-decode-64x1024"]  # it is at its goal
    without = with_excuses(row for row in found.values() if row["name"] != "8b-decode-256")
    assert not any(row.get("excused") for row in without)
    assert ("MISSED" in table(found.values())) is not excused
