"""`octavo bench`: its help, its errors, its JSON and its table."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from octavo_cli.bench import BENCHMARKS
from octavo_cli.main import main
from tiny_models import config_json

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["benchmark", "model", "random_weights", "num_parameters", "parameters", "measured_on", "figures"],
    "properties": {
        "random_weights": {"type": "boolean"},
        "num_parameters": {"type": "integer", "minimum": 1},
        "measured_on": {"type": "object", "required": ["device", "dtype", "torch", "octavo", "commit"]},
        "figures": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "value", "unit", "lower_is_better", "details"],
                "properties": {
                    "name": {"type": "string"},
                    "value": {"type": "number"},
                    "unit": {"enum": ["ms", "s", "tok/s", "out tok/s", "GB/s", "%", "us", "TFLOP/s"]},
                    "lower_is_better": {"type": "boolean"},
                },
            },
        },
    },
}


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sets torch's threads by the machine's cores where nothing else says how many."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(config_json("LlamaForCausalLM", vocab_size=300)), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help_with_an_example_that_it_understands(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    flags = set(re.findall(r"--[a-z][a-z-]+", out))
    examples = re.findall(rf"octavo bench {name} (.+)", out)
    assert examples
    assert all(set(re.findall(r"--[a-z][a-z-]+", example)) <= flags for example in examples)


SMALL = ["--num-gpu-blocks-override", "128", "--max-num-seqs", "4", "--device", "cpu"]
QUICK = {
    "decode": ["--batch", "1,2", "--context", "60", "--steps", "4"],
    "prefill": ["--prompts", "1x32,2x16", "--repeat", "1"],
    "ttft": ["--input-tokens", "16", "--repeat", "1"],
    "throughput": ["--requests", "4", "--input-tokens", "8-16", "--output-tokens", "4"],
    "prefix": [
        "--requests",
        "2",
        "--shared-tokens",
        "32",
        "--own-tokens",
        "4",
        "--output-tokens",
        "2",
        "--repeat",
        "1",
    ],
    "swap": [
        "--requests",
        "6",
        "--input-tokens",
        "20",
        "--output-tokens",
        "40",
        "--swap-space",
        "0.01",
        "--pool",
        "0.4",
    ],
}


@pytest.mark.parametrize("name", QUICK)
def test_a_shape_is_timed_and_told_as_json(
    name: str, shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    target = ["--random-weights", str(shape), *SMALL, "--json", "--output", str(file)]
    code, out, err = run(capsys, name, *target, *QUICK[name])
    assert code == 0, err
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert json.loads(file.read_text(encoding="utf-8")) == report
    assert (report["benchmark"], report["model"], report["random_weights"]) == (name, "shape", True)
    assert report["measured_on"]["dtype"] == "float32"
    assert all(figure["name"].startswith(name) for figure in report["figures"])


def test_kernels_are_timed_without_an_engine(shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--decode", "2x16", "--prefill", "1x16", "--rows", "1", "--device", "cpu", "--json"]
    code, out, err = run(capsys, "kernels", "--random-weights", str(shape), *arguments)
    assert code == 0, err
    jsonschema.validate(json.loads(out), SCHEMA)


def test_the_demo_model_is_timed_and_told_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--batch", "1", "--context", "48", "--steps", "2", *SMALL]
    code, out, err = run(capsys, "decode", *arguments)
    assert code == 0, err
    assert out.startswith("demo, its own weights, 0.00708 billion parameters, float32; CPU, ")
    assert re.search(r"^decode-1 +[0-9.]+ +ms +context 4[789], ", out, re.MULTILINE)
    assert "measuring" in err


def test_a_start_is_timed_in_a_real_process(shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "checkpoint"
    arguments = ["--random-weights", str(shape), "--checkpoint-dir", str(directory), *SMALL, "--json"]
    code, out, err = run(capsys, "startup", *arguments)
    assert code == 0, err
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert [figure["name"] for figure in report["figures"]] == ["start-cold", "start-warm"]
    for figure in report["figures"]:
        details = figure["details"]
        assert 0 < details["listening, s"] <= details["ready, s"] <= figure["value"]
        assert "load weights, s" in details
    assert (directory / "model.safetensors.index.json").is_file()


def test_a_directory_that_holds_something_else_is_not_written_over(
    shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("somebody's", encoding="utf-8")
    code, out, err = run(capsys, "startup", "--random-weights", str(shape), "--checkpoint-dir", str(model), *SMALL)
    assert (code, out) == (2, "")
    assert re.match("octavo: bench startup: --checkpoint-dir .*: it holds files, .* give a new or an empty", err)
    assert {path.name: path.read_text(encoding="utf-8") for path in model.iterdir()} == {"tokenizer.json": "somebody's"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decod"], "bench: no command 'decod'; did you mean decode?"),
        (["decode"], "bench decode: give either MODEL or --random-weights CONFIG; neither was given"),
        (
            ["decode", "demo", "--random-weights", "x.json"],
            "bench decode: give either MODEL or --random-weights CONFIG; both",
        ),
        (["decode", "/nowhere"], "bench decode: Invalid value for MODEL: there is no directory '/nowhere'"),
        (["decode", "--random-weights", "/nowhere.json"], "--random-weights: nowhere.json is missing in /"),
        (
            ["decode", "demo", "--batch", "1,0"],
            "bench decode: Invalid value for '--batch': '0' is no number of 1 or more",
        ),
        (["prefill", "demo", "--prompts", "4"], "bench prefill: Invalid value for '--prompts': '4' is no COUNTxTOKENS"),
        (
            ["throughput", "demo", "--input-tokens", "9-3"],
            "bench throughput: Invalid value for '--input-tokens': '9-3' is no",
        ),
        (
            ["throughput", "demo", "--workload", "c"],
            "bench throughput: Invalid value for '--workload': 'c' is not one of",
        ),
        (["swap", "demo", "--pool", "0"], "bench swap: Invalid value for '--pool': 0.0 is not in the range"),
        (["swap", "demo", "--pool", "nan"], "bench swap: Invalid value for '--pool': nan is no finite number"),
        (
            ["throughput", "demo", "--temperature", "inf"],
            "bench throughput: Invalid value for '--temperature': inf is no finite number",
        ),
        (
            ["decode", "demo", "--output", "/nowhere/x.json"],
            "bench decode: Invalid value for '--output': '/nowhere' is no directory that can be written to",
        ),
        (
            ["decode", "demo", "--profile", "/nowhere/x.json"],
            "bench decode: Invalid value for '--profile': '/nowhere' is no directory that can be written to",
        ),
        (
            ["decode", "demo", "--max-num-seqs", "0"],
            "bench decode: --max-num-seqs 0: input should be greater than or equal",
        ),
        (["startup", "demo", "--checkpoint-dir", "x"], "bench startup: --checkpoint-dir is for --random-weights"),
        (["decode", "demo", "--enable-prefix-caching"], "bench decode: there is no option --enable-prefix-caching"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"octavo: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 4}, r"num_attention_heads \(6\) is no multiple of num_key_value_heads \(4\)"),
        ({"hidden_size": None}, "hidden_size is missing; it must be a positive integer"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures is .*GPT2.* supported are Llama"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantized weights are not supported"),
    ],
)
def test_a_shape_that_cannot_be_run_is_told_by_its_field(
    fields: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_json("LlamaForCausalLM", **fields)), encoding="utf-8")
    code, _, err = run(capsys, "decode", "--random-weights", str(path))
    assert code == 2
    assert re.match(f"octavo: --random-weights: {message}", err)


def test_a_context_longer_than_the_models_is_refused(shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "decode", "--random-weights", str(shape), *SMALL, "--context", "4000", "--batch", "1")
    assert code == 1
    assert re.search(r"octavo: --context 4000: .* this engine takes 512 at most", err)


def test_memory_that_is_not_there_is_told_with_the_flags_that_ask_for_it(
    shape: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--num-gpu-blocks-override", "2000000000", "--batch", "1"]
    code, _, err = run(capsys, "decode", "--random-weights", str(shape), *arguments)
    assert code == 1
    assert re.search(r"octavo: no memory for a KV cache of 2000000000 pages .* lower --num-gpu-blocks-override", err)


@pytest.mark.skipif("torch" in sys.modules and __import__("torch").cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "decode", "--random-weights", str(shape), "--device", "cuda")
    assert code == 1
    assert "octavo: --device cuda: torch finds no CUDA device; use --device cpu, or auto" in err
