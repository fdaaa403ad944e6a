"""The API's sampling fields: bounds, what reaches the engine, and how the answer's text changes."""

import json
import math
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import serving
import tiny_tokenizers
from octavo_common.pooling_config import PoolingConfig
from octavo_server.errors import RequestError
from octavo_server.frontend import sampling
from octavo_server.frontend.logprobs import described_prompt
from octavo_server.frontend.model import SamplingDefaults, ServedModel
from octavo_server.frontend.openai import ChatCompletionRequest, CompletionRequest
from octavo_server.frontend.sampling import Asked, check_parameters, encode_bad_words, sampling_params
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.ipc import SamplingParams, TokenLogprobs

INTEGERS = {"top_k", "seed", "max_tokens", "min_tokens", "prompt_logprobs", "logprobs", "n"}
NUMBERS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "seed": (-(2**63), 2**63 - 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
    "min_tokens": (0, 2**31 - 1),
    "max_tokens": (0, 2**31 - 1),
    "prompt_logprobs": (0, 20),
    "logprobs": (0, 20),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    model = serving.text_model(tmp_path_factory.mktemp("fields") / "model")
    with serving.serve(model) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def http(server: serving.ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=serving.PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizers.byte_level_bpe()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    text = TextTokenizer(serving.text_model(tmp_path_factory.mktemp("text") / "model"))
    return ServedModel(text, None, SamplingDefaults(), 512, PoolingConfig(32))


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    """Infinity and NaN as Python's JSON spells them."""
    body = json.dumps({"model": "tiny", "prompt": "hello"} | fields)
    return http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})


def complete(http: httpx.Client, **fields: Any) -> Any:
    answer = post(http, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def refused(answer: httpx.Response, param: str) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"]
    return str(error["message"])


# --- bounds

outside = st.one_of(
    st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**127, math.nan, math.inf, -math.inf, 1e308, -1e308, "1", "", True]),
    st.sampled_from([[], [1], {}, {"1": 1}]),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
)


def test_a_number_out_of_bounds_or_of_a_wrong_type_is_refused_by_name_and_never_reaches_the_engine(
    server: serving.ServerProcess, http: httpx.Client
) -> None:
    @settings(deadline=None, max_examples=400)
    @given(field=st.sampled_from(sorted(NUMBERS)), value=outside)
    def refuses(field: str, value: Any) -> None:
        if not allowed(field, value):
            refused(post(http, **{field: value}), field)

    engine, before = server.engine_pid(), server.metric("vllm:prompt_tokens_total")
    refuses()
    assert (server.engine_pid(), server.metric("vllm:prompt_tokens_total")) == (engine, before)


def allowed(field: str, value: Any) -> bool:
    low, high = NUMBERS[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return False
    return field not in INTEGERS or isinstance(value, int) or value.is_integer()


@pytest.mark.parametrize("field", sorted(NUMBERS))
def test_the_bounds_themselves_are_allowed(http: httpx.Client, field: str) -> None:
    for value in NUMBERS[field]:
        least = {"max_tokens": value} if field == "min_tokens" and value < 200 else {}
        answer = post(http, **{"max_tokens": 4, field: value} | least)
        context = field in ("max_tokens", "min_tokens")  # the context is shorter than what the field can spell
        assert answer.status_code == 200 or (context and "tokens" in answer.text and answer.status_code == 400)


@pytest.mark.parametrize(
    ("bias", "param"),
    [
        ({"5": 100.5}, "logit_bias.5"),
        ({"5": -101}, "logit_bias.5"),
        ({"5": math.nan}, "logit_bias.5"),
        ({"5": math.inf}, "logit_bias.5"),
        ({"5": "1"}, "logit_bias.5"),
        ({"5": None}, "logit_bias.5"),
        ({"five": 1}, "logit_bias.five"),
        ({"-1": 1}, "logit_bias.-1"),
        ({"05": 1}, "logit_bias.05"),
        ({"5.0": 1}, "logit_bias.5.0"),
        ({" 5": 1}, "logit_bias. 5"),
        ({"5\n": 1}, "logit_bias.5\n"),
        ({str(2**63): 1}, f"logit_bias.{2**63}"),
        ({"512": 1}, "logit_bias"),
        ({"4294967296": 1}, "logit_bias"),
        ({str(token): 1 for token in range(1025)}, "logit_bias"),
        ([5, 1], "logit_bias"),
        ("5", "logit_bias"),
    ],
)
def test_a_bias_is_a_bounded_map_of_the_models_token_ids(http: httpx.Client, bias: Any, param: str) -> None:
    answer = post(http, logit_bias=bias)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert "logit_bias" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "words", [[""], ["a", 5], "a", [["a"]], ["x" * 257], ["a"] * 129, [" "], ["\u2003"], [None], {"a": 1}]
)
def test_bad_words_are_a_bounded_list_of_words_with_tokens(http: httpx.Client, words: Any) -> None:
    answer = post(http, bad_words=words)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("bad_words")


def test_the_least_length_may_not_exceed_the_longest(http: httpx.Client) -> None:
    refused(post(http, min_tokens=5, max_tokens=4), "min_tokens")
    assert "16" in refused(post(http, min_tokens=17), "min_tokens")  # the longest by default
    assert post(http, min_tokens=16).status_code == 200


def test_log_probabilities_of_a_prompt_are_bounded_and_not_streamed(
    model: ServedModel, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(post(http, prompt_logprobs=1, stream=True), "prompt_logprobs")
    monkeypatch.setattr(sampling, "MAX_PROMPT_LOGPROBS", 100)
    request = CompletionRequest(model="m", prompt="p", prompt_logprobs=4)
    check_parameters(request, model, [[1] * 10, [2] * 10])
    with pytest.raises(RequestError, match="40 prompt tokens"):
        check_parameters(request.model_copy(update={"n": 2}), model, [[1] * 10, [2] * 10])
    with pytest.raises(RequestError, match=r"prompt_logprobs: 21 prompt tokens .* 5 .* more than 100"):
        check_parameters(request, model, [[1] * 10, [2] * 11])
    echo = CompletionRequest(model="m", prompt="p", echo=True, logprobs=9)
    with pytest.raises(RequestError, match="echo: 11 prompt tokens") as caught:
        check_parameters(echo, model, [[1] * 11])
    assert caught.value.param == "echo"
    check_parameters(CompletionRequest(model="m", prompt="p", logprobs=9), model, [[1] * 11])


# --- what the engine is asked for


def test_every_field_reaches_the_engine() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "min_tokens": 2,
        "stop_token_ids": [4, 4, 5],
        "ignore_eos": True,
        "prompt_logprobs": 2,
    }
    request = ChatCompletionRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "logit_bias": {"5": 1, "60": -100},
            "logprobs": True,
            "top_logprobs": 4,
            **fields,
        }
    )
    made = sampling_params(request, SamplingDefaults(), Asked(9, 77, ((1, 2),)))
    fields |= {"stop_token_ids": (4, 5)}
    want = SamplingParams(**fields, max_tokens=9, logit_bias={5: 1.0, 60: -100.0}, bad_words=((1, 2),), logprobs=4)
    assert made == want


def test_the_prompts_logprobs_are_as_many_as_the_more_demanding_field_asks_for() -> None:
    def count(**fields: Any) -> int | None:
        return sampling.prompt_alternatives(CompletionRequest(model="m", prompt="p", **fields))

    assert count() is count(logprobs=3) is count(echo=True) is None
    assert count(echo=True, logprobs=3) == count(echo=True, logprobs=3, prompt_logprobs=1) == 3
    assert count(prompt_logprobs=0) == 0
    assert count(echo=True, logprobs=0, prompt_logprobs=5) == 5


def test_bad_words_are_excluded_at_the_start_and_behind_a_space(model: ServedModel) -> None:
    def encoded(*words: str) -> tuple[tuple[int, ...], ...]:
        request = CompletionRequest(model="m", prompt="p", bad_words=list(words))
        return encode_bad_words(model, request)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(model.tokenizer.encode(text, add_special_tokens=False))

    assert len(ids("hello")) > len(ids(" hello")) == 1  # the tokenizer was trained on it in mid-sentence
    assert encoded("hello") == encoded("  hello", "hello") == (ids("hello"), ids(" hello"))
    assert len(ids("a")) == len(ids(" a")) == 1
    assert encoded("a") == (ids("a"), ids(" a"))
    assert ids(" z") == (*ids(" "), *ids("z"))  # no token of its own: what is excluded is z
    assert encoded("z") == (ids("z"),)


# --- the answer's text; the fake engine answers with the prompt's tokens


def test_special_tokens_are_shown_if_wanted(http: httpx.Client) -> None:
    text = "<|im_start|>hello"
    assert complete(http, prompt=text, max_tokens=50)["text"] == "hello"
    assert complete(http, prompt=text, max_tokens=50, skip_special_tokens=False)["text"] == text


@pytest.mark.parametrize("stream", [False, True])
def test_what_stopped_the_answer_is_part_of_it_if_wanted(
    http: httpx.Client, tokenizer: Tokenizer, stream: bool
) -> None:
    def text(**fields: Any) -> Any:
        answer = post(http, prompt="hello world again", max_tokens=50, stream=stream, **fields)
        assert answer.status_code == 200, answer.text
        if not stream:
            return answer.json()["choices"][0]["text"]
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        return "".join(event["choices"][0]["text"] for event in events)

    assert text(stop="wor") == "hello "
    assert text(stop="wor", include_stop_str_in_output=True) == "hello wor"
    ids = tokenizer.encode("hello world again").ids
    until = tokenizer.decode(ids[:-1])
    assert text(stop_token_ids=ids[-1:]) == until
    assert text(stop_token_ids=ids[-1:], include_stop_str_in_output=True) == "hello world again"


def test_a_stop_string_within_the_least_length_does_not_end_the_answer(
    http: httpx.Client, tokenizer: Tokenizer
) -> None:
    text = "hello hello hello"
    ids = tokenizer.encode(text).ids
    second = next(n for n in range(len(ids)) if tokenizer.decode(ids[:n]).count("hello") == 2)
    fields = {"prompt": text, "stop": "hello", "max_tokens": 50}
    assert complete(http, **fields)["text"] == ""
    answer = complete(http, **fields, min_tokens=second)
    assert (answer["text"], answer["finish_reason"]) == ("hello hello ", "stop")
    assert complete(http, **fields, min_tokens=second - 1)["text"] == "hello "


# --- log-probabilities of the prompt, in vLLM's form


def test_prompt_logprobs_stand_in_a_completions_choices_and_beside_a_chats(http: httpx.Client) -> None:
    choice = complete(http, prompt=[5, 6, 7], prompt_logprobs=1, return_token_ids=True)
    entries = choice["prompt_logprobs"]
    assert entries[0] is None
    assert [list(entry) for entry in entries[1:]] == [["6"], ["7"]]  # the likeliest is the token itself
    assert set(entries[1]["6"]) == {"logprob", "rank", "decoded_token"}
    assert (entries[1]["6"]["logprob"], entries[1]["6"]["rank"]) == (-0.5, 1)
    more = complete(http, prompt=[5, 6, 7], prompt_logprobs=3)["prompt_logprobs"]
    assert [(entry["rank"], token) for token, entry in more[1].items()] == [(1, "6"), (2, "7"), (3, "8")]
    assert "prompt_logprobs" not in complete(http, prompt=[5, 6, 7], echo=True, logprobs=1)
    both = complete(http, prompt=[5, 6, 7], echo=True, logprobs=1, prompt_logprobs=3, max_tokens=1)
    assert both["prompt_logprobs"] == more
    assert [len(top) for top in both["logprobs"]["top_logprobs"][1:]] == [1] * 3
    several = post(http, prompt=[[5, 6, 7], [8, 9]], prompt_logprobs=3, n=2).json()["choices"]
    assert [choice["prompt_logprobs"] == more for choice in several] == [True, True, False, False]
    assert [len(choice["prompt_logprobs"]) for choice in several] == [3, 3, 2, 2]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "ö"}], "prompt_logprobs": 0}
    chat = http.post("/v1/chat/completions", json={**body, "return_token_ids": True}).json()
    ids, entries = chat["prompt_token_ids"], chat["prompt_logprobs"]
    assert entries[0] is None and [list(entry) for entry in entries[1:]] == [[str(token)] for token in ids[1:]]
    assert "prompt_logprobs" not in chat["choices"][0]


def test_a_prompts_token_keeps_the_rank_that_it_shares_and_minus_infinity_has_a_number(model: ServedModel) -> None:
    entries: list[TokenLogprobs | None] = [None, TokenLogprobs([6, 5, 6, 7], [-1.0, -1.0, -1.0, -math.inf], 1)]
    _, found = cast(list[Any], described_prompt(model.tokenizer, entries, 3))
    assert [(token, entry.rank, entry.logprob) for token, entry in found.items()] == [
        (6, 1, -1.0),
        (5, 1, -1.0),
        (7, 3, -9999.0),
    ]
