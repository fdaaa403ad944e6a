"""The demo model's files, tokenizer and chat template, and the split of its data. No server is needed here."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from training.demo_model.cases import SKILL_NAMES, cases
from training.demo_model.chat_format import SPECIAL_TOKENS, assistant_text, render
from training.demo_model.conversations import conversation
from training.demo_model.episode import Context, is_held_out
from training.demo_model.grading import right
from training.demo_model.skills_json import in_json
from training.demo_model.skills_talk import explanation, joke, outside, smalltalk, story
from training.demo_model.skills_text import arithmetic, copying, counting, spelling

MODEL = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
FILES = {
    *("README.md", "chat_template.jinja", "model.safetensors", "tokenizer.json"),
    *("config.json", "generation_config.json", "tokenizer_config.json"),
}


@cache
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shipped_tokenizer()


def dumped(value: Any, **options: Any) -> str:
    """`tojson` as transformers defines it for chat templates."""
    return json.dumps(value, ensure_ascii=False, **options)


def rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]], prompt: bool = False) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = dumped
    template = environment.from_string((MODEL / "chat_template.jinja").read_text())
    return template.render(messages=messages, tools=tools or None, add_generation_prompt=prompt)


def test_the_directory_holds_the_hugging_face_files_and_nothing_else() -> None:
    assert {p.name for p in MODEL.iterdir() if p.name != "__pycache__"} == FILES
    assert sum((MODEL / name).stat().st_size for name in FILES) <= 16 * 1024 * 1024


def test_the_config_is_a_llama_with_grouped_query_attention() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert config["num_attention_heads"] > config["num_key_value_heads"] > 0
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["max_position_embeddings"] >= 2048


def test_every_token_id_has_an_embedding_and_the_ends_are_known(tokenizer: Tokenizer) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    generation = json.loads((MODEL / "generation_config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert generation["eos_token_id"] == [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]


def test_the_weights_are_tied_and_of_the_configured_shape() -> None:
    safetensors = pytest.importorskip("safetensors")
    config = json.loads((MODEL / "config.json").read_text())
    with safetensors.safe_open(MODEL / "model.safetensors", framework="numpy") as weights:
        names = set(weights.keys())
        shape = weights.get_slice("model.embed_tokens.weight").get_shape()
    assert shape == [config["vocab_size"], config["hidden_size"]]
    assert "lm_head.weight" not in names and config["tie_word_embeddings"]
    assert len({n.split(".")[2] for n in names if n.startswith("model.layers.")}) == config["num_hidden_layers"]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2048").tokens == ["2", "0", "4", "8"]


def test_the_template_says_what_the_model_was_trained_on() -> None:
    rng = Random(1)
    for _ in range(60):
        messages, tools = conversation(rng, 400)
        assert rendered(messages, tools) == render(messages, tools)
        assert rendered(messages[:1], tools, prompt=True) == render(messages[:1], tools, generation_prompt=True)


def test_the_template_takes_content_parts_developer_messages_and_arguments_as_text() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n'
    )
    assert rendered(messages, []) == expected


def test_special_tokens_are_single_and_are_hidden_when_decoding(tokenizer: Tokenizer) -> None:
    for token in SPECIAL_TOKENS:
        (token_id,) = tokenizer.encode(token).ids
        assert tokenizer.decode([token_id], skip_special_tokens=True) == ""
    (call,) = tokenizer.encode("<tool_call>").ids
    assert tokenizer.decode([call], skip_special_tokens=True) == "<tool_call>"


def test_no_held_out_prompt_occurs_in_training(tokenizer: Tokenizer) -> None:
    talk = ("jokes", "explanations", "stories", "out of scope")
    plain = (*talk, "arithmetic", "spelling", "counting", "copying", "JSON, schema from user")
    asked = {c.messages[-1]["content"] for skill in plain for c in cases(skill, 60, tokenizer)}
    rng = Random(2)
    trained = {m["content"] for _ in range(1500) for m in conversation(rng, 500)[0] if m["role"] == "user"}
    assert len(trained) > 10_000 and len(asked) > 300
    assert not asked & trained


def test_near_copies_of_a_prompt_are_on_its_side_of_the_split() -> None:
    rng = Random(3)
    for _ in range(200):
        word = "".join(rng.choice("abcdefgh") for _ in range(6))
        assert is_held_out(f"Spell {word}.") == is_held_out(f"spell  {word.upper()}")


def test_the_reference_answers_are_graded_right_and_others_wrong(tokenizer: Tokenizer) -> None:
    for make in (in_json, arithmetic, copying, counting, spelling, explanation, joke, outside, smalltalk, story):
        for seed in range(30):
            episode = make(Context(Random(seed), held_out=True))
            assert right(episode.grader, assistant_text(episode.messages[-1]), episode.expected), (make, seed)
            assert not right(episode.grader, "I am not sure, perhaps 123456789.", episode.expected)


def test_cases_are_the_same_for_the_same_seed(tokenizer: Tokenizer) -> None:
    for skill in SKILL_NAMES[:5]:
        first, second = (list(cases(skill, 5, tokenizer, seed=4)) for _ in range(2))
        assert first == second


def test_the_model_card_has_a_score_for_every_skill() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for skill in SKILL_NAMES:
        assert re.search(rf"^\| {re.escape(skill)} \| \d+ / \d+ \|", card, re.MULTILINE), skill
