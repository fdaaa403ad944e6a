"""POST /tokenize and /detokenize, against transformers and the `tokenizers` library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers
from tokenizers import Tokenizer, processors

import serving
import tiny_tokenizers
from octavo_server.frontend import tokenization

TEXT = "Grüße, what is a page? 🙂<|im_end|> again"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello 🙂"}]
TEMPLATE = (
    "{{ bos_token }}{% if tools %}tools: {% for t in tools %}{{ t.function.name }} {% endfor %}\n{% endif %}"
    "{% if polite %}please\n{% endif %}" + tiny_tokenizers.CHATML
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = serving.text_model(tmp_path_factory.mktemp("tokenize") / "model")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return tiny_tokenizers.save(tokenizer, directory, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def truth(model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def http(model: Path) -> Iterator[httpx.Client]:
    with serving.serve(model, api_key=["secret"]) as process:
        process.wait_until_ready()
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=process.url, headers=headers, timeout=serving.PATIENCE_SECONDS) as client:
            yield client


def ask(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(http: httpx.Client, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("special", [None, True, False])
def test_a_text_has_the_tokens_of_transformers(special: bool | None, http: httpx.Client, truth: Any) -> None:
    expected = truth(TEXT, add_special_tokens=special is not False)["input_ids"]
    found = ask(http, "/tokenize", model="tiny", prompt=TEXT, add_special_tokens=special)
    assert found == {"count": len(expected), "max_model_len": 256, "tokens": expected, "token_strs": None}


def test_tokens_are_spelled_as_in_the_vocabulary(http: httpx.Client, truth: Any) -> None:
    found = ask(http, "/tokenize", prompt=TEXT, return_token_strs=True)
    assert found["token_strs"] == truth.convert_ids_to_tokens(found["tokens"])


def test_a_text_may_be_longer_than_the_context(http: httpx.Client) -> None:
    """Who asks wants to know by how much; and long ones have threads of their own."""
    assert ask(http, "/tokenize", prompt="hello " * 50_000)["count"] > 50_000


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": [TOOL]},
        {"chat_template_kwargs": {"polite": True}},
    ],
)
def test_a_chat_has_the_tokens_of_transformers(fields: dict[str, Any], http: httpx.Client, truth: Any) -> None:
    found = ask(http, "/tokenize", model="tiny", messages=MESSAGES, **fields)
    variables = dict(fields)
    expected = truth.apply_chat_template(
        MESSAGES,
        tools=variables.pop("tools", None),
        add_generation_prompt=variables.pop("add_generation_prompt", True),
        return_dict=False,
        **variables.pop("chat_template_kwargs", {}),
    )
    assert found["tokens"] == expected


def test_a_message_is_continued(http: httpx.Client, truth: Any) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "A page is"}]
    found = ask(http, "/tokenize", messages=messages, continue_final_message=True)
    assert found["tokens"] == truth.apply_chat_template(messages, continue_final_message=True, return_dict=False)


def test_a_chat_has_what_surrounds_a_text_only_if_asked_for(http: httpx.Client, truth: Any) -> None:
    plain = ask(http, "/tokenize", messages=MESSAGES)["tokens"]
    surrounded = ask(http, "/tokenize", messages=MESSAGES, add_special_tokens=True)["tokens"]
    assert surrounded == [truth.bos_token_id, *plain]


def test_the_tokens_of_a_chat_are_those_that_it_is_answered_with(http: httpx.Client) -> None:
    counted = ask(http, "/tokenize", messages=MESSAGES)["count"]
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}
    assert ask(http, "/v1/chat/completions", **body)["usage"]["prompt_tokens"] == counted


def test_there_and_back_again(http: httpx.Client, truth: Any) -> None:
    tokens = ask(http, "/tokenize", prompt=TEXT)["tokens"]
    assert ask(http, "/detokenize", model="tiny", tokens=tokens) == {"prompt": truth.decode(tokens)}
    assert ask(http, "/detokenize", tokens=tokens)["prompt"] == "<s>" + TEXT
    assert ask(http, "/detokenize", tokens=[]) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param", "told"),
    [
        ("/tokenize", {}, "prompt", "prompt: this field is required, or messages"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "not both"),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "string"),
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, "tools", "together with messages"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template", "program"),
        ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "polite"),
        ("/detokenize", {"tokens": [10**6]}, "tokens", "token id 1000000 does not exist"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "greater than or equal to 0"),
        ("/detokenize", {"tokens": "abc"}, "tokens", "list"),
        ("/detokenize", {}, "tokens", "required"),
    ],
)
def test_bad_input_is_named(http: httpx.Client, path: str, body: dict[str, Any], param: str, told: str) -> None:
    error = refusal(http, path, **body)
    assert error["param"] == param
    assert told in error["message"]


def test_texts_and_lists_are_bounded(http: httpx.Client) -> None:
    long_text = "a" * (tokenization.MAX_CHARACTERS + 1)
    assert str(tokenization.MAX_CHARACTERS) in refusal(http, "/tokenize", prompt=long_text)["message"]
    assert str(tokenization.MAX_IDS) in refusal(http, "/detokenize", tokens=[1] * (tokenization.MAX_IDS + 1))["message"]
    half = "a" * (tokenization.MAX_CHARACTERS // 2)
    messages = [{"role": "user", "content": half}] * 2
    assert refusal(http, "/tokenize", messages=messages)["param"] == "messages"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_a_key_and_a_model_that_exists_are_needed(path: str, http: httpx.Client) -> None:
    body = {"prompt": "a"} if path == "/tokenize" else {"tokens": [5]}
    assert http.post(path, json=body, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert refusal(http, path, 404, model="other", **body)["code"] == "model_not_found"
