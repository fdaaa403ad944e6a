"""The demo model's own tool calls: read by the parser that its template chooses, and forced by the grammar of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jsonschema
import numpy
import pytest
import torch
from tokenizers import Tokenizer
from training.demo_model.cases import Case, cases
from training.demo_model.chat_format import render
from transformers import LlamaForCausalLM

from call_grammars import Vocabulary, vocabularies
from octavo_server.frontend.text.output_parsers import OutputFormat, Tool, choose_format
from parsed_messages import Whole, calls, put_together

MODEL: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
MAX_TOKENS: Final = 80


class Demo:
    """The model, decoding greedily in plain PyTorch."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.vocabulary: Vocabulary = dict(vocabularies())["demo"]
        self.form: OutputFormat = choose_format(
            (MODEL / "chat_template.jinja").read_text(), token_ids=self.vocabulary.token_ids
        )
        self._model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        self._end = self.tokenizer.token_to_id("<|im_end|>")

    @torch.inference_mode()
    def answer(self, prompt: str, grammar: str | None = None) -> list[str]:
        """The text of each token; with a grammar, none but those that it allows."""
        matcher = None if grammar is None else self.vocabulary.matcher(grammar)
        ids, cache, pieces = self.tokenizer.encode(prompt).ids, None, []
        for _ in range(MAX_TOKENS):
            found = self._model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            cache, logits = found.past_key_values, found.logits[0, -1]
            if matcher is not None:
                bits = numpy.unpackbits(numpy.frombuffer(matcher.compute_bitmask(), numpy.uint8), bitorder="little")
                if matcher.is_accepting():
                    bits[self._end] = 1
                logits = logits.masked_fill(torch.from_numpy(bits[: len(logits)] == 0), -torch.inf)
            token = int(logits.argmax())
            if token == self._end:
                return pieces
            if matcher is not None and not matcher.consume_token(token):
                raise ValueError(matcher.get_error())
            ids = [token]
            pieces.append(self.tokenizer.decode(ids, skip_special_tokens=False))
        return pieces


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


def asked(demo: Demo, skill: str, count: int) -> list[Case]:
    return list(cases(skill, count, demo.tokenizer, seed=11))


def tools_of(listed: Sequence[dict[str, Any]], *, strict: bool = False) -> list[Tool]:
    return [Tool(tool["function"]["name"], tool["function"]["parameters"], strict) for tool in listed]


def ask(demo: Demo, case: Case, tools: Sequence[Tool], grammar: str | None = None) -> Whole:
    pieces = demo.answer(render(case.messages, case.tools, generation_prompt=True), grammar)
    return put_together(demo.form, pieces, tools=tools)


def test_a_call_of_the_models_own_is_the_one_that_was_asked_for(demo: Demo) -> None:
    for case in asked(demo, "tool calls", 3):
        whole = ask(demo, case, tools_of(case.tools))
        assert calls(whole) == [(case.expected["name"], case.expected["arguments"])]
        assert whole.content == ""


def test_a_strict_grammar_leaves_right_calls_as_they_are(demo: Demo) -> None:
    (case,) = asked(demo, "tool calls", 1)
    tools = tools_of(case.tools, strict=True)
    grammar = demo.form.call_grammar(tools, required=False, parallel=True)
    assert grammar is not None
    assert ask(demo, case, tools, grammar) == ask(demo, case, tools)


@pytest.mark.parametrize("named", [False, True])
def test_a_model_that_would_not_call_is_made_to(demo: Demo, named: bool) -> None:
    for case in asked(demo, "no fitting tool", 3):
        tools = tools_of(case.tools)
        assert ask(demo, case, tools).calls == []
        chosen = tools[-1:] if named else tools
        grammar = demo.form.call_grammar(chosen, required=True, parallel=False)
        whole = ask(demo, case, tools, grammar)
        ((name, arguments),) = calls(whole)
        (schema,) = [tool.parameters for tool in chosen if tool.name == name]
        jsonschema.validate(arguments, schema)
        assert whole.content == ""
