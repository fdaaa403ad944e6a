"""`octavo serve` as a command line: flags from the configuration, errors of one line that say what to change."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel, Field

from octavo_cli.options import flag, options_of, validated
from octavo_cli.serve import serve
from octavo_cli.vllm_flags import NOT_HERE
from octavo_server.config import ServerConfig


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(serve, arguments, env=env)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """What the server would have been started with."""
    configs: list[ServerConfig] = []

    class Engine:
        """Nothing is started."""

        def __init__(self, environment: dict[str, str]) -> None:
            assert environment == {}  # nobody said where anything is kept

        def discard(self) -> None:
            """There is nothing to end."""

    def run(config: ServerConfig, *, engine: Engine) -> int:
        assert isinstance(engine, Engine)
        configs.append(config)
        return 0

    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr("octavo_cli.serve.EngineChild", Engine)
    monkeypatch.setattr("octavo_server.frontend.server.run", run)
    return configs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_every_field_of_the_configuration_is_a_flag_with_help() -> None:
    text = " ".join(invoke("--help").output.split())
    for name, field in ServerConfig.model_fields.items():
        if name != "model":
            assert flag(name) in text
            assert " ".join((field.description or "?").split())[:30] in text
    assert "[default: 8000]" in text


def test_flags_reach_the_server_in_their_types(model: Path, started: list[ServerConfig]) -> None:
    arguments = ["--port", "0", "--block-size", "32", "--served-model-name", "a", "--served-model-name", "b"]
    result = invoke(str(model), *arguments, "--gpu-memory-utilization", "0.5", env={"OCTAVO_API_KEY": "k"})
    assert result.exit_code == 0, result.output
    (config,) = started
    assert (config.port, config.block_size, config.served_model_name) == (0, 32, ("a", "b"))
    assert (config.gpu_memory_utilization, config.api_key, config.model) == (0.5, ("k",), model)
    assert config.max_num_seqs == ServerConfig(model=model).max_num_seqs


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kv-offloading-size", "2"],
        ["--swap-space=2", "--kv-offloading-size", "2.0"],
        ["--swap-space", "1", "--swap-space", "2"],  # as with any flag the last one counts
    ],
)
def test_another_name_of_a_flag_says_the_same(model: Path, started: list[ServerConfig], arguments: list[str]) -> None:
    assert invoke(str(model), *arguments).exit_code == 0
    assert started[0].swap_space == 2.0


def test_the_flag_goes_before_the_environment(model: Path, started: list[ServerConfig]) -> None:
    invoke(str(model), "--api-key", "x", "--api-key", "y", env={"OCTAVO_API_KEY": "k"})
    assert started[0].api_key == ("x", "y")


@pytest.mark.parametrize("variable", ["OCTAVO_API_KEY", "VLLM_API_KEY"])
def test_an_empty_key_in_the_environment_opens_nothing(model: Path, started: list[ServerConfig], variable: str) -> None:
    result = invoke(str(model), env={variable: ""})
    assert (result.exit_code, started) == (2, [])
    assert f"{variable} is set but empty" in result.output


def test_a_key_on_the_command_line_is_warned_of_and_one_of_the_environment_is_not(
    model: Path, started: list[ServerConfig]
) -> None:
    assert "who lists this machine's processes sees" in invoke(str(model), "--api-key", "sesame").output
    for variable in ("OCTAVO_API_KEY", "VLLM_API_KEY"):
        assert "warning" not in invoke(str(model), env={variable: "sesame"}).output
    both = {"OCTAVO_API_KEY": "ours", "VLLM_API_KEY": "theirs"}
    assert "warning" not in invoke(str(model), "--api-key-file", "keys", env=both).output
    assert [config.api_key for config in started] == [("sesame",)] * 3 + [("ours",)]


def test_one_gpu_is_what_there_is(model: Path, started: list[ServerConfig]) -> None:
    assert invoke(str(model), "--tensor-parallel-size", "1").exit_code == 0
    assert len(started) == 1


def test_a_flag_that_is_answered_as_vllms_is_none_of_ours() -> None:
    ours = {name for option in serve.params for name in (*option.opts, *option.secondary_opts)}
    answered = [flag for flags in NOT_HERE.values() for flag in flags.split()]
    assert len(set(answered)) == len(answered)
    assert not ours & set(answered)


def test_lists_of_origins_are_vllms_json_or_a_flag_each(model: Path, started: list[ServerConfig]) -> None:
    invoke(str(model))
    invoke(str(model), "--allowed-origins", '["https://a", "https://b"]', "--allowed-methods", '["*"]')
    invoke(str(model), "--allowed-origins", "https://a", "--allowed-origins", "https://b", "--allow-credentials")
    lists = [(config.allowed_origins, config.allowed_methods, config.allow_credentials) for config in started]
    two = ("https://a", "https://b")
    usual = ("GET", "POST", "DELETE")
    assert lists == [((), usual, False), (two, ("*",), False), (two, usual, True)]
    assert {config.allowed_headers for config in started} == {("*",)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prot", "1"], "there is no option --prot; did you mean --port?"),
        (["--max_model_len", "1"], "did you mean --max-model-len?"),
        (["--tokens"], "there is no option --tokens\n"),  # nothing is near
        (["--served-model-name", "a", "b"], "b is one word too many: a flag of several values is given for each"),
        (["--tokenizer=x"], "--tokenizer is vLLM's and not here: the tokenizer is the one in the model's directory"),
        (["--enable-force-include-usage"], "requests ask for it: stream_options.include_usage"),
        (["--no-trust-remote-code"], "--trust-remote-code is vLLM's and not here: code that comes with a model"),
        (["-tp", "2"], "-tp is vLLM's and not here: write --tensor-parallel-size"),
        (["-O3"], "--enforce-eager makes none"),
        (["--compilation-config.mode", "3"], "--compilation-config is vLLM's and not here"),
        (["--port", "70000"], "--port 70000: input should be less than or equal to 65535"),
        (["--port", "many"], "--port"),
        (["--dtype", "int4"], "bfloat16"),
        (["--gpu-memory-utilization", "nan"], "--gpu-memory-utilization nan"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size 2: a model is not spread over several GPUs yet"),
        (["--otlp-traces-endpoint", "collector:4317"], "give a URL like http://collector:4318; gRPC is not spoken"),
        (["--swap-space", "1", "--kv-offloading-size", "2"], "--swap-space 1 and --kv-offloading-size 2 are two names"),
        (["--swap-space", "1", "--kv-offloading-size", "x"], "'--kv-offloading-size': 'x' is not a valid float"),
        (["--kv-offloading-size", "-1"], "--swap-space -1.0: input should be greater"),
        (["--max-requests-per-minute", "5"], "--max-requests-per-minute 5: it is for each API key"),
        (["--api-key", "sesame", "--max-tokens-per-minute", "0"], "--max-tokens-per-minute 0: input should be greater"),
        (["--admin-host", "::"], "--admin-host ::: there is no admin port"),
        (["--admin-port", "8000"], "--admin-port 8000: that is --port"),
        (["--ssl-keyfile", "key"], "--ssl-keyfile key: there is no TLS without --ssl-certfile"),
        (["--ssl-ca-certs", "ca"], "--ssl-ca-certs ca: there is no TLS without --ssl-certfile"),
        (["--ssl-certfile", "c", "--ssl-cert-reqs", "2"], "--ssl-cert-reqs 2: nobody's certificate is known"),
        (["--allowed-origins", "*", "--allow-credentials"], "any page could act for its reader"),
        (["--allowed-origins", '["https://a", 1]'], "--allowed-origins: input should be a valid string"),
        (["--max-connections", "0"], "--max-connections 0: input should be greater"),
        (["--api-key", "sesame", "--api-key", ""], "--api-key: string should have at least 1 character"),
    ],
)
def test_a_wrong_flag_is_named(model: Path, started: list[ServerConfig], arguments: list[str], told: str) -> None:
    result = invoke(str(model), *arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output
    assert "sesame" not in result.output
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tool-call-parser", "foo"], "--tool-call-parser foo is unknown; known are hermes, "),
        (["--reasoning-parser", "foo"], "--reasoning-parser foo is unknown; known are deepseek_r1, "),
        (["--chat-template", "/nowhere.jinja"], "--chat-template /nowhere.jinja: there is no such file"),
        (["--chat-template", "{% for %}"], "--chat-template {% for %}: the template is not valid Jinja: "),
        (["--chat-template", "{{ " + "(" * 5000 + "1"], "the template is not valid Jinja"),
    ],
)
def test_what_flags_name_is_looked_for_before_anything_is_started(
    model: Path, started: list[ServerConfig], arguments: list[str], told: str
) -> None:
    result = invoke(str(model), *arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert started == []


def test_flags_of_texts_that_are_right_start_a_server(model: Path, started: list[ServerConfig]) -> None:
    template = "{% generation %}{{ messages | tojson }}{% endgeneration %}"
    invoke(str(model), "--tool-call-parser", "qwen3_xml", "--reasoning-parser", "none", "--chat-template", template)
    assert [(config.tool_call_parser, config.chat_template) for config in started] == [("qwen3_xml", template)]


def test_a_model_that_is_not_there_is_told_with_the_remedy(tmp_path: Path, started: list[ServerConfig]) -> None:
    result = invoke("meta-llama/Llama-3.1-8B")
    assert result.exit_code == 2
    assert "there is no directory 'meta-llama/Llama-3.1-8B'" in result.output
    assert "`octavo pull hf://meta-llama/Llama-3.1-8B Llama-3.1-8B`" in result.output
    assert "`demo`" in result.output
    assert "octavo pull" not in invoke("./nowhere").output  # no name of the hub's
    assert "config.json is missing" in invoke(str(tmp_path)).output
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin" in invoke(str(tmp_path)).output  # named, and not opened
    assert started == []


def test_a_field_that_no_flag_can_give_is_a_mistake_of_ours() -> None:
    class Odd(BaseModel):
        table: dict[str, int] = Field(default_factory=dict)

    with pytest.raises(TypeError, match="no option"):
        options_of(Odd)(lambda: None)


def test_a_contradiction_between_fields_is_told_without_a_flag() -> None:
    class Pair(BaseModel):
        low: int = 1

        def model_post_init(self, context: Any) -> None:
            raise ValueError("low is above high")

    with pytest.raises(click.UsageError, match="low is above high"):
        validated(Pair, {"low": 2})
