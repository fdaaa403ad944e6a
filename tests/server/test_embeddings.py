"""POST /v1/embeddings by the `openai` client, against what transformers makes of the same texts."""

import base64
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tokenizers import Tokenizer, processors

import serving
import tiny_tokenizers
from octavo_common.json_fields import ModelConfigError
from octavo_common.pooling_config import PoolingConfig, read_pooling_config
from octavo_server.errors import RequestError
from octavo_server.frontend.vectors import Form, dimensions, spell
from tiny_models import config_json, read_backbone, reference_pooled, write_backbone, write_checkpoint

TEXTS = ["Grüße, what is a page? 🙂", "The quick brown fox", "a block table says where. " * 12, "hello"]
HIDDEN = 48


def ending(tokenizer: Tokenizer) -> Tokenizer:
    """Puts an end behind each text, as Qwen3-Embedding's does."""
    end = ("<|im_end|>", tokenizer.token_to_id("<|im_end|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[end])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return ending(tiny_tokenizers.byte_level_bpe())


@pytest.fixture(scope="module")
def generating(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model that generates, and says nothing of embeddings."""
    directory = tmp_path_factory.mktemp("generating") / "model"
    write_checkpoint(directory, config_json("LlamaForCausalLM", vocab_size=tokenizer.get_vocab_size()))
    return tiny_tokenizers.save(tokenizer, directory, chat_template=tiny_tokenizers.CHATML)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """An embedding model in Sentence Transformers' layout, trained for short vectors too."""
    directory = tmp_path_factory.mktemp("bare") / "model"
    config = config_json("Qwen3ForCausalLM", vocab_size=tokenizer.get_vocab_size(), matryoshka_dimensions=[16, 32])
    write_backbone(directory, config)
    sentence_transformers(directory, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    return tiny_tokenizers.save(tokenizer, directory)


def sentence_transformers(directory: Path, pooling: dict[str, Any], *modules: str) -> None:
    names = ["Transformer", "Pooling", *(modules or ["Normalize"])]
    listed = [
        {"idx": index, "name": str(index), "path": f"{index}_{name}", "type": f"sentence_transformers.models.{name}"}
        for index, name in enumerate(names)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **pooling}))


@pytest.fixture(scope="module")
def server(generating: Path) -> Iterator[serving.ServerProcess]:
    env = {"OMP_NUM_THREADS": "1"}
    with serving.serve(
        generating, fake=False, env=env, max_num_batched_tokens=64, max_num_seqs=64, max_queued_requests=8
    ) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def bare_server(bare: Path) -> Iterator[serving.ServerProcess]:
    with serving.serve(bare, fake=False, env={"OMP_NUM_THREADS": "1"}) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def client(server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def bare_client(bare_server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{bare_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def embed(client: openai.OpenAI, given: Any, **fields: Any) -> np.ndarray:
    answer = client.embeddings.create(model="tiny", input=given, **fields)
    assert [(one.index, one.object) for one in answer.data] == [(at, "embedding") for at in range(len(answer.data))]
    return np.array([one.embedding for one in answer.data])


def expected(model: Path, tokenizer: Tokenizer, text: str, pooling: str) -> np.ndarray:
    """Of length 1, in float64."""
    vector = reference_pooled(read_backbone(model), tokenizer.encode(text).ids, pooling).numpy()
    return vector / np.linalg.norm(vector)


def refusal(client: openai.OpenAI, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{client.base_url}embeddings", json={"model": "tiny", **body}, timeout=60)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_the_last_tokens_state_of_a_causal_model(client: openai.OpenAI, generating: Path, tokenizer: Tokenizer) -> None:
    found = embed(client, TEXTS)
    truth = [expected(generating, tokenizer, text, "last") for text in TEXTS]
    assert np.abs(found - truth).max() <= 1e-5


def test_what_the_models_files_say(bare_client: openai.OpenAI, bare: Path, tokenizer: Tokenizer) -> None:
    found = embed(bare_client, TEXTS)
    truth = [expected(bare, tokenizer, text, "mean") for text in TEXTS]
    assert np.abs(found - truth).max() <= 1e-5


def test_typed_objects_and_usage(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.embeddings.create(model="tiny", input=TEXTS, user="somebody")
    assert isinstance(answer, openai.types.CreateEmbeddingResponse)
    assert (answer.object, answer.model, len(answer.data)) == ("list", "tiny", 4)
    tokens = sum(len(tokenizer.encode(text).ids) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_base64_and_numbers_say_the_same(client: openai.OpenAI) -> None:
    """The client asks for base64 where nothing is said, and decodes it."""
    numbers = embed(client, TEXTS, encoding_format="float")
    assert (embed(client, TEXTS) == numbers).all()
    raw = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="base64").data[0].embedding
    assert isinstance(raw, str)
    assert (np.frombuffer(base64.b64decode(raw), dtype="<f4") == numbers[0]).all()


def test_every_kind_of_input(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(text).ids for text in TEXTS[:2]]
    whole = embed(client, TEXTS[:2])
    assert (embed(client, ids) == whole).all()
    assert (embed(client, ids[0]) == whole[:1]).all()
    assert (embed(client, TEXTS[0]) == whole[:1]).all()


def test_alone_and_among_others_bit_for_bit(client: openai.OpenAI) -> None:
    """Others: more inputs than the engine is given at a time, and answers that are generated meanwhile."""
    alone = np.concatenate([embed(client, text) for text in TEXTS])
    many = [f"page {number}" for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        talks = [
            pool.submit(client.completions.create, model="tiny", prompt=f"talk {n}", max_tokens=60) for n in range(6)
        ]
        among = embed(client, [*TEXTS, *many, *TEXTS])
        assert all(talk.result().choices[0].text is not None for talk in talks)
    assert (among[:4] == alone).all()
    assert (among[-4:] == alone).all()


def test_as_many_inputs_as_openai_takes(client: openai.OpenAI, server: serving.ServerProcess) -> None:
    """More than requests may be open here: they wait for each other. The answer comes in pieces."""
    found = embed(client, [[5 + number % 100, 7] for number in range(2048)], encoding_format="float")
    assert found.shape == (2048, HIDDEN)
    assert (found[0] == found[100]).all()
    assert (found[0] != found[1]).any()
    assert server.metric("vllm:num_requests_running") == 0
    error = refusal(client, input=["a"] * 2049)
    assert error["param"] == "input"
    assert "2048" in error["message"]


def test_more_inputs_than_there_is_room_for_go_piece_by_piece(
    client: openai.OpenAI, server: serving.ServerProcess
) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 400, "stream": True, "extra_body": {"ignore_eos": True}}
    talks = [client.completions.create(**asked) for _ in range(3)]
    for talk in talks:
        next(iter(talk))
    assert embed(client, [[5 + number % 100, 7] for number in range(100)]).shape == (100, HIDDEN)
    for talk in talks:
        talk.close()
    serving.until(lambda: server.metric("vllm:num_requests_running") == 0)


@pytest.mark.parametrize("count", [16, 32, HIDDEN])
def test_shorter_vectors_are_normalized_again(bare_client: openai.OpenAI, count: int) -> None:
    whole = embed(bare_client, TEXTS, encoding_format="float")[:, :count]
    found = embed(bare_client, TEXTS, dimensions=count)
    assert found.shape == (4, count)
    assert np.abs(found - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() <= 1e-6


def test_vectors_may_stay_as_long_as_they_are(bare_client: openai.OpenAI, bare: Path, tokenizer: Tokenizer) -> None:
    truth = reference_pooled(read_backbone(bare), tokenizer.encode(TEXTS[0]).ids, "mean").numpy()
    for name in ("use_activation", "normalize"):
        [found] = embed(bare_client, TEXTS[0], extra_body={name: False})
        assert np.abs(found - truth).max() <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_cut_off(side: str, client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """Of a text, tokens, but not the end that the tokenizer puts behind it."""
    [*plain, end] = tokenizer.encode(TEXTS[2]).ids
    part = plain[:9] if side == "right" else plain[-9:]
    extra = {"truncate_prompt_tokens": 10, "truncation_side": side}
    assert (embed(client, TEXTS[2], extra_body=extra) == embed(client, [*part, end])).all()
    bare_part = plain[:10] if side == "right" else plain[-10:]
    assert (embed(client, plain, extra_body=extra) == embed(client, bare_part)).all()
    assert (embed(client, TEXTS[2], extra_body=extra | {"add_special_tokens": False}) == embed(client, bare_part)).all()


def test_a_text_beyond_the_context(client: openai.OpenAI) -> None:
    error = refusal(client, input=["a", "word " * 600])
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert "512" in error["message"]
    assert "truncate_prompt_tokens" in error["message"]
    answer = client.embeddings.create(model="tiny", input="word " * 600, extra_body={"truncate_prompt_tokens": -1})
    assert answer.usage.prompt_tokens == 512
    assert embed(client, [5] * 512).shape == (1, HIDDEN)
    assert "513 tokens" in refusal(client, input=[5] * 513)["message"]


def test_a_chat_becomes_one_vector(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hello"}]

    def asked(**fields: Any) -> list[float]:
        body = {"model": "tiny", "messages": messages, **fields}
        answer = httpx.post(f"{client.base_url}embeddings", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["embedding"]

    told = "<|im_start|>user\nhello<|im_end|>\n"
    ids = tokenizer.encode(told, add_special_tokens=False).ids
    begun = tokenizer.encode(told + "<|im_start|>assistant\n", add_special_tokens=False).ids
    assert asked() == embed(client, ids)[0].tolist()
    assert asked(add_generation_prompt=True) == embed(client, begun)[0].tolist()


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"input": ""}, "input", "at least 1 character"),
        ({"input": ["a", ""]}, "input[1]", "at least 1 character"),
        ({"input": []}, "input", "not empty"),
        ({"input": [[]]}, "input[0]", "must not be empty"),
        ({"input": 5}, "input", "should be a string"),
        ({"input": [1.5]}, "input", "should be a string"),
        ({"input": [10**6]}, "input", "token id 1000000 does not exist"),
        ({"input": [-1]}, "input[0]", "greater than or equal to 0"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input", "not both"),
        ({}, "input", "input: this field is required, or messages"),
        ({"input": "a", "add_generation_prompt": True}, "add_generation_prompt", "together with messages"),
        ({"input": "a", "dimensions": 49}, "dimensions", "have 48 dimensions, and 49"),
        ({"input": "a", "dimensions": 24}, "dimensions", "is_matryoshka"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "1 or more, or -1"),
        ({"input": "a", "truncate_prompt_tokens": 513}, "truncate_prompt_tokens", "more than the 512"),
        ({"input": "a", "truncation_side": "left"}, "truncation_side", "together with truncate_prompt_tokens"),
        ({"input": "a", "normalize": True, "use_activation": False}, "normalize", "something else"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "embed_dtype": "float16"}, "embed_dtype", "not supported"),
        ({"input": "a", "endianness": "big"}, "endianness", "not supported"),
        ({"input": "a", "x": 1}, "x", "not known"),
    ],
)
def test_bad_input_is_named(client: openai.OpenAI, body: dict[str, Any], param: str, told: str) -> None:
    error = refusal(client, **body)
    assert error["param"] == param
    assert told in error["message"]


def test_lengths_that_a_model_was_not_trained_for(bare_client: openai.OpenAI) -> None:
    assert "16, 32 or all 48" in refusal(bare_client, input="a", dimensions=24)["message"]


def test_a_model_without_a_head_says_so(bare_client: openai.OpenAI, bare_server: serving.ServerProcess) -> None:
    for path, body in (
        ("completions", {"prompt": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ):
        answer = httpx.post(f"{bare_server.url}/v1/{path}", json={"model": "tiny", **body})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "model_does_not_generate"
        assert "/v1/embeddings" in error["message"]
    assert bare_client.models.retrieve("tiny").model_extra["tasks"] == ["embed"]


def test_a_model_that_generates_says_so(client: openai.OpenAI) -> None:
    assert client.models.retrieve("tiny").model_extra["tasks"] == ["generate", "embed"]


def test_who_leaves_is_not_computed_for(client: openai.OpenAI, server: serving.ServerProcess) -> None:
    body = {"model": "tiny", "input": [[5] * 100] * 1000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{client.base_url}embeddings", json=body, timeout=httpx.Timeout(30.0, read=0.2))
    serving.until(lambda: server.metric("vllm:request_success_total", finished_reason="abort") > 0)
    serving.until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0)
    assert server.metric("vllm:request_success_total", finished_reason="abort") < 1000  # the others were not sent yet


def test_metrics_count_prompts_and_no_answers(client: openai.OpenAI, server: serving.ServerProcess) -> None:
    names = ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count"]
    before = [server.metric(name) for name in names]
    ended = server.metric("vllm:request_success_total", finished_reason="stop")
    usage = client.embeddings.create(model="tiny", input=TEXTS).usage
    after = [server.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [usage.prompt_tokens, 0, 0]
    assert server.metric("vllm:request_success_total", finished_reason="stop") - ended == 4


def test_flags_count_before_files(generating: Path, tokenizer: Tokenizer) -> None:
    """On a server that takes one request at a time: inputs come one behind another."""
    flags = {"pooling": "cls", "pooling_normalize": False, "matryoshka": True, "api_key": ["secret"]}
    flags |= {"max_num_seqs": 1, "max_queued_requests": 0}
    with serving.serve(generating, fake=False, env={"OMP_NUM_THREADS": "1"}, **flags) as process:
        process.wait_until_ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="secret", max_retries=0) as client:
            found = embed(client, TEXTS)
            reference = read_backbone(generating)
            truth = [reference_pooled(reference, tokenizer.encode(text).ids, "cls").numpy() for text in TEXTS]
            assert np.abs(found - truth).max() <= 1e-5
            assert (embed(client, TEXTS, dimensions=7) == found[:, :7]).all()
        assert httpx.post(f"{process.url}/v1/embeddings", json={"model": "tiny", "input": "a"}).status_code == 401


# --- what the files say


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_files_are_read(pooling: dict[str, Any], found: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 48, "is_matryoshka": True}))
    assert read_pooling_config(tmp_path) == PoolingConfig(48, "last", True, None)
    sentence_transformers(tmp_path, pooling)
    assert read_pooling_config(tmp_path) == PoolingConfig(48, found, True, None)


@pytest.mark.parametrize(
    ("pooling", "modules", "told"),
    [
        ({"pooling_mode_max_tokens": True}, [], "pooling_mode_max_tokens, which is not supported"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "which is not supported"),
        ({}, [], "not told"),
        ({"pooling_mode_mean_tokens": True}, ["Dense"], "names Dense, which is not supported"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    pooling: dict[str, Any], modules: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 48}))
    sentence_transformers(tmp_path, pooling, *modules)
    with pytest.raises(ModelConfigError, match=told):
        read_pooling_config(tmp_path)


def test_modules_lie_in_the_models_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 48}))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Pooling", "path": "../elsewhere"}]))
    with pytest.raises(ModelConfigError, match=r"\.\./elsewhere"):
        read_pooling_config(tmp_path)


def test_a_vector_of_zeros_stays_one() -> None:
    assert json.loads(spell(3, [bytes(8)], Form(2, normalized=True, base64=False))) == {
        "index": 3,
        "embedding": [0.0, 0.0],
        "object": "embedding",
    }


def test_the_longest_of_vectors_are_normalized() -> None:
    [x, y] = json.loads(spell(0, [np.array([3e38, 3e38], "<f4").tobytes()], Form(2, True, False)))["embedding"]
    assert math.isclose(x, math.sqrt(0.5), rel_tol=1e-6)
    assert x == y


def test_all_lengths_where_any_means_something() -> None:
    assert dimensions(5, 48, None) == 5
    assert dimensions(None, 48, ()) == 48
    with pytest.raises(RequestError, match="49 are asked for"):
        dimensions(49, 48, None)
