"""`octavo plan`: the objects, and a memory bill that follows the manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from octavo_cli.errors import CommandError
from octavo_cli.manifest_file import in_fields
from octavo_cli.memory_plan import server_config
from octavo_cli.plan import CHART_PULL_IMAGE, plan
from octavo_operator.api import load_manifest
from octavo_operator.render import RenderSettings, render
from offline import ask_nobody

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GIB = 2**30

# The shape that Meta publishes for Llama 3.1 8B.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_theta": 500_000.0,
    "bos_token_id": 128_000,
    "eos_token_id": 128_009,
}

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., str]:
    """Writes the GPU example with the model in a directory, changed as asked; returns the file's name."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B))

    def write(change: Change = lambda _: None) -> str:
        document = yaml.safe_load((EXAMPLES / "llama-8b.yaml").read_text())
        document["spec"]["model"]["source"] = {"path": {"path": str(tmp_path / "model")}}
        change(document["spec"])
        file = tmp_path / "manifest.yaml"
        file.write_text(yaml.safe_dump(document))
        return str(file)

    return write


def run(*arguments: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(plan, [*arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout), result.stderr


def test_the_yaml_is_what_the_operator_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_nobody(monkeypatch)
    for file in EXAMPLES.glob("*.yaml"):
        result = CliRunner().invoke(plan, ["-f", str(file), "--server-image", "an/image"], catch_exceptions=False)
        assert list(yaml.safe_load_all(result.stdout)) == render(
            load_manifest(file.read_text()).scaled(), RenderSettings("an/image", CHART_PULL_IMAGE)
        )


def test_the_bill_of_llama_8b_on_an_h100(manifest: Callable[..., str]) -> None:
    told, _ = run("-f", manifest())
    bill = told["memory"]
    assert bill["total_bytes"] == 80 * GIB
    assert bill["weights_bytes"] == 8_030_261_248 * 2  # the published number of parameters, in bfloat16
    assert bill["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert bill["max_model_len"] == 16_384
    room = bill["budget_bytes"] - bill["weights_bytes"] - bill["workspace_bytes"]
    assert 0 <= room - bill["kv_cache_bytes"] < 16 * bill["kv_bytes_per_token"]


def test_the_flags_of_the_manifest_change_the_bill_as_they_change_the_server(manifest: Callable[..., str]) -> None:
    flags = ["--num-gpu-blocks-override=5000", "--block-size", "32"]
    told, _ = run("-f", manifest(lambda spec: spec["server"].update(args=flags)))
    assert (told["memory"]["num_blocks"], told["memory"]["block_size"]) == (5000, 32)


def test_flags_that_the_server_would_refuse_are_refused(manifest: Callable[..., str]) -> None:
    for flags, message in ((["--nope"], "there is no option --nope"), (["--block-size", "17"], "'17' is not one of")):
        with pytest.raises(CommandError, match=message) as refused:
            run("-f", manifest(lambda spec, flags=flags: spec["server"].update(args=flags)))
        assert ": spec.server.args: octavo serve: " in str(refused.value)


def test_a_model_that_cannot_fit_is_refused_with_the_numbers(manifest: Callable[..., str]) -> None:
    with pytest.raises(CommandError, match=r"manifest.yaml: spec.server.maxModelLength: 16384: a req") as refused:
        run("-f", manifest(), "--gpu-memory", "16Gi")
    assert refused.value.exit_code == 1
    assert "--max-model-len" not in str(refused.value)


def test_flags_that_the_user_never_wrote_are_told_as_the_fields_that_they_come_from() -> None:
    text = "--max-model-len 5: lower --max-model-len, or --max-model-lengths and --dtype"
    told = (
        "spec.server.maxModelLength: 5: lower spec.server.maxModelLength, or --max-model-lengths and spec.server.dtype"
    )
    assert in_fields(text) == told


def test_an_unknown_gpu_gives_a_warning_and_no_bill_until_its_memory_is_given(manifest: Callable[..., str]) -> None:
    file = manifest(lambda spec: spec["resources"]["accelerator"].update(products=["NVIDIA-L40S"]))
    told, _ = run("-f", file)
    assert told["memory"] is None
    assert "give --gpu-memory" in told["warnings"][0]
    assert run("-f", file, "--gpu-memory", "48Gi")[0]["memory"]["total_bytes"] == 48 * GIB


def test_of_several_products_the_smallest_counts(manifest: Callable[..., str]) -> None:
    products = ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-SXM4-40GB"]
    file = manifest(lambda spec: spec["resources"]["accelerator"].update(products=products))
    assert run("-f", file)[0]["memory"]["total_bytes"] == 40 * GIB


def test_a_model_on_a_volume_gives_one_warning_no_bill_and_success() -> None:
    told, _ = run("-f", str(EXAMPLES / "llama-8b.yaml"))
    assert told["memory"] is None
    (warning,) = told["warnings"]
    assert warning.startswith("the model cannot be read from here (it is on a volume): no memory bill")
    assert warning.endswith("give its config.json by --model-config")


@pytest.mark.parametrize("what", ["model", "model/config.json"])
def test_a_config_given_by_hand_brings_the_bill_of_a_model_on_a_volume(
    what: str, manifest: Callable[..., str], tmp_path: Path
) -> None:
    manifest()
    options = ["--model-config", str(tmp_path / what), "--gpu-memory", "80GiB"]
    told, _ = run("-f", str(EXAMPLES / "llama-8b.yaml"), *options)
    assert told["memory"]["weights_bytes"] == 8_030_261_248 * 2
    assert told["memory"]["total_bytes"] == 80 * GIB


def test_a_config_given_by_hand_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(CommandError, match="plan: --model-config: ") as refused:
            run("-f", str(EXAMPLES / "llama-8b.yaml"), "--model-config", str(path))
        assert refused.value.exit_code == 2


def test_a_flag_that_only_tells_something_is_no_server(
    manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's own rules refuse --help before; should they ever not, it is no success."""
    flags = lambda *_: ["serve", "demo", "--help"]  # noqa: E731
    monkeypatch.setattr("octavo_operator.render.container_arguments", flags)
    with pytest.raises(CommandError, match="it would not serve"):
        server_config("a.yaml", load_manifest(Path(manifest()).read_text()))


def test_a_directory_that_is_only_in_the_image_gives_one_warning(manifest: Callable[..., str]) -> None:
    told, _ = run("-f", manifest(lambda spec: spec["model"].update(source={"path": {"path": "/only/in/the/image"}})))
    assert told["memory"] is None
    assert len(told["warnings"]) == 1


def test_on_the_cpu_a_memory_limit_that_is_too_low_is_warned_of(tmp_path: Path) -> None:
    text = (EXAMPLES / "llmdeployment.yaml").read_text().replace("2Gi", "256Mi")
    (tmp_path / "small.yaml").write_text(text)
    told, _ = run("-f", str(tmp_path / "small.yaml"))
    assert told["warnings"][-1].startswith("spec.resources.memory: 256Mi is less than the ")


def test_the_bill_and_the_warnings_are_told_on_stderr_and_the_objects_alone_on_stdout() -> None:
    result = CliRunner().invoke(plan, ["-f", str(EXAMPLES / "llmdeployment.yaml")], catch_exceptions=False)
    kinds = [each["kind"] for each in yaml.safe_load_all(result.stdout)]
    assert kinds == ["NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment"]
    assert "Memory on the CPU, for each replica of demo:" in result.stderr
    assert "KV cache per token" in result.stderr
