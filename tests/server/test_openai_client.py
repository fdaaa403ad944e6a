"""The `openai` client, unmodified, against `octavo serve`'s processes with a tiny random model."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types.chat import ChatCompletion
from tokenizers import Tokenizer

import serving
import tiny_tokenizers
from tiny_models import config_json, read_checkpoint, reference_logits, write_checkpoint

QUESTION: Any = [{"role": "user", "content": "Grüße, what is a page? 🙂"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizers.byte_level_bpe()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("openai") / "model"
    eos = tokenizer.token_to_id("<|im_end|>")
    config = config_json("LlamaForCausalLM", vocab_size=tokenizer.get_vocab_size(), eos_token_id=eos)
    write_checkpoint(directory, config)
    return tiny_tokenizers.save(tokenizer, directory, chat_template=tiny_tokenizers.CHATML)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[serving.ServerProcess]:
    # One thread: several ones wait for each other where the machine is shared.
    env = {"OMP_NUM_THREADS": "1"}
    with serving.serve(model, fake=False, env=env, api_key=["secret"], max_num_seqs=32) as process:
        process.wait_until_ready()
        engine = process.engine_pid()
        yield process
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(serving.PATIENCE_SECONDS) == 0
        assert not serving.is_alive(engine)


@pytest.fixture(scope="module")
def client(server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, messages: Any = QUESTION, **fields: Any) -> ChatCompletion:
    extra = {"return_token_ids": True} | fields.pop("extra_body", {})
    answer: ChatCompletion = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, extra_body=extra, **{"max_tokens": 40} | fields
    )
    return answer


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "octavo"


def test_a_greedy_chat_is_what_transformers_generates(client: openai.OpenAI, model: Path, tokenizer: Tokenizer) -> None:
    answer = ask(client, logprobs=True, top_logprobs=2)
    prompt: Any = answer.model_extra["prompt_token_ids"] if answer.model_extra else None
    text = f"<|im_start|>user\n{QUESTION[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == tokenizer.encode(text, add_special_tokens=False).ids
    choice: Any = answer.choices[0]
    logits = reference_logits(read_checkpoint(model), prompt + choice.token_ids)
    assert choice.token_ids == logits[len(prompt) - 1 : -1].argmax(-1).tolist()  # each the likeliest after those before
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(choice.token_ids) == len(choice.logprobs.content)
    for entry in choice.logprobs.content:  # greedy: the likeliest token was taken
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_a_stream_put_together_is_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client)
    with client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 3  # in pieces, not at once
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    assert isinstance(whole.usage.prompt_tokens_details.cached_tokens, int)


def test_sampling_with_a_seed_repeats_and_without_one_varies(client: openai.OpenAI) -> None:
    def sample(**fields: Any) -> str:
        return client.completions.create(model="tiny", prompt="hello", max_tokens=24, **fields).choices[0].text

    assert sample(seed=7, temperature=1.5) == sample(seed=7, temperature=1.5)
    assert len({sample(temperature=1.5) for _ in range(4)}) > 1


def test_completions_take_lists_and_echo_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["hello world", "a page"], max_tokens=4, echo=True, logprobs=1, temperature=0
    )
    first, second = answer.choices
    assert first.text.startswith("hello world")
    assert second.text.startswith("a page")
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])


def greedy(
    model: Path, prompt: list[int], answer: list[int], change: Callable[[torch.Tensor, list[int]], None]
) -> list[int]:
    """What transformers' logits give at each place of `answer`, after `change` by the tokens of it before the place."""
    logits = reference_logits(read_checkpoint(model), prompt + answer)[len(prompt) - 1 : -1].double()
    for place, row in enumerate(logits):
        change(row, answer[:place])
    return logits.argmax(-1).tolist()


def test_penalties_and_biases_of_the_client_change_the_answer_as_openai_says(
    client: openai.OpenAI, model: Path, tokenizer: Tokenizer
) -> None:
    plain: Any = ask(client)
    prompt = plain.model_extra["prompt_token_ids"]

    def tokens(**fields: Any) -> list[int]:
        found: Any = ask(client, **fields).choices[0]
        assert found.token_ids != plain.choices[0].token_ids
        return list(found.token_ids)

    def subtract(row: torch.Tensor, before: list[int]) -> None:
        for token, count in Counter(before).items():
            row[token] -= 0.5 * count + 0.25

    answer = tokens(frequency_penalty=0.5, presence_penalty=0.25)
    assert answer == greedy(model, prompt, answer, subtract)

    def repetition(row: torch.Tensor, before: list[int]) -> None:
        for token in {*prompt, *before}:
            row[token] = row[token] / 1.5 if row[token] > 0 else row[token] * 1.5

    answer = tokens(extra_body={"repetition_penalty": 1.5})
    assert answer == greedy(model, prompt, answer, repetition)
    assert tokens(logit_bias={"77": 100}) == [77] * 40
    eos = tokenizer.token_to_id("<|im_end|>")
    assert ask(client, logit_bias={str(eos): 100}).choices[0].finish_reason == "stop"
    later = ask(client, logit_bias={str(eos): 100}, extra_body={"min_tokens": 7})
    assert later.usage is not None and later.usage.completion_tokens == 8
    words = {token: tokenizer.decode([token]) for token in plain.choices[0].token_ids}
    token, word = next(entry for entry in words.items() if tokenizer.encode(entry[1]).ids == [entry[0]])
    assert token not in tokens(extra_body={"bad_words": [word]})


def test_log_probabilities_of_the_prompt_are_those_of_transformers(
    client: openai.OpenAI, model: Path, tokenizer: Tokenizer
) -> None:
    extra = {"prompt_logprobs": 3, "return_token_ids": True}
    chat: Any = ask(client, max_tokens=1, extra_body=extra)
    completion: Any = client.completions.create(model="tiny", prompt="Grüße, a page", max_tokens=1, extra_body=extra)
    texts = completion.choices[0]
    for prompt, found in (
        (chat.model_extra["prompt_token_ids"], chat.model_extra["prompt_logprobs"]),
        (texts.prompt_token_ids, texts.prompt_logprobs),
    ):
        exact = reference_logits(read_checkpoint(model), prompt).double().log_softmax(-1)
        assert len(found) == len(prompt) and found[0] is None
        for token, entries, row in zip(prompt[1:], found[1:], exact[:-1], strict=True):
            order = row.argsort(descending=True).tolist()
            assert list(entries) == list(dict.fromkeys(map(str, [token, *order[:3]])))
            for name, entry in entries.items():
                assert entry["logprob"] == pytest.approx(row[int(name)].item(), abs=1e-4)
                assert entry["rank"] == order.index(int(name)) + 1
                assert entry["decoded_token"] == tokenizer.decode([int(name)], skip_special_tokens=False)


def test_a_stop_string_of_the_answer_ends_it(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content or ""
    stop = text[8:10]
    cut = ask(client, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_mistakes_are_the_clients_typed_exceptions(server: serving.ServerProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=QUESTION, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 600)
    assert long.value.code == "context_length_exceeded"
    assert "600" in long.value.message
    assert "512" in long.value.message
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_fifty_streams_at_once_are_each_the_answer_given_alone(client: openai.OpenAI) -> None:
    texts = [f"question {index} " * (1 + index % 5) for index in range(50)]
    questions: list[Any] = [[{"role": "user", "content": text}] for text in texts]

    def streamed(messages: Any) -> str:
        with client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=12, stream=True
        ) as stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = [ask(client, messages, max_tokens=12).choices[0].message.content for messages in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(streamed, questions)) == alone


def test_a_prompt_longer_than_the_context_hurts_no_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=40, stream=True
    ) as stream:
        first = next(stream)
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny", prompt=[5] * 512)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in [first, *stream])
    assert text == ask(client).choices[0].message.content
