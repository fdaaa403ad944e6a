"""Grammars in the engine: in one batch with free rows, under pressure, while masks are slow, and where they fail."""

import json
import random
import re
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import torch

import octavo_server
from octavo_server import grammar_compiler
from octavo_server.engine.core import EngineCore
from octavo_server.grammar_compiler import GrammarError, compile_grammar, read_tokenizer
from octavo_server.grammar_gate import GrammarGate
from octavo_server.grammar_store import MOST_HELD, MOST_KEPT, MOST_WORN, WORN_TOKENS, GrammarStore
from octavo_server.ipc import AddRequest, RequestOutput, SamplingParams
from octavo_server.worker.grammar import GrammarMasks, RequestGrammar, RowMasks
from real_engine import Answer, Asked, add, answers, finish, start
from schema_corpus import SERVED, check

DEMO: Final = Path(octavo_server.__file__).parent / "demo_model"
TOKENIZER: Final = read_tokenizer(DEMO)
OVERLAP: Final = [pytest.param(False, id="step by step"), pytest.param(True, id="overlap")]
PLATE: Final = "[A-Z]{2}-[0-9]{4}( or [A-Z]{2}-[0-9]{4}){0,3}"
WORDS: Final = "([a-z]{2,4} ){18}end"
PATIENCE: Final = 60.0


def regex(pattern: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{pattern}/"}]})


def schema(name: str) -> str:
    return json.dumps({"grammars": [{"json_schema": {**SERVED[name], "x-guidance": {"whitespace_flexible": False}}}]})


def sampling(seed: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "seed": seed, "max_tokens": 80, "logprobs": 2, **changes})


def prompt(length: int, salt: int) -> list[int]:
    return [20 + (17 * index + 31 * salt) % 1900 for index in range(length)]


FREE: Final[dict[str, Asked]] = {
    "greedy": (prompt(19, 1), sampling(1, temperature=0.0, max_tokens=30, ignore_eos=True)),
    "sampled": (prompt(33, 2), sampling(2, top_p=0.9, top_k=50, max_tokens=30, ignore_eos=True)),
    "penalties": (prompt(9, 3), sampling(3, presence_penalty=0.5, bad_words=((5,),), max_tokens=30, ignore_eos=True)),
}
KEPT: Final[dict[str, Asked]] = {
    f"{name} {seed}": (prompt(5 + 7 * seed, seed), sampling(seed, grammar=grammar))
    for seed in range(2)
    for name, grammar in (("plate", regex(PLATE)), ("words", regex(WORDS)), ("tree", schema("tree")))
}


def text_of(answer: Answer) -> str:
    tokens = [token for token, _ in answer if token not in TOKENIZER.eos_tokens]
    return TOKENIZER.decode_bytes(tokens).decode()


def assert_kept(found: dict[str, Answer]) -> None:
    for name, answer in found.items():
        kind, text = name.split()[0], text_of(answer)
        if kind == "tree":
            check(SERVED[kind], text)
        else:
            assert re.fullmatch({"plate": PLATE, "words": WORDS}[kind], text), text


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Answer]:
    """Each alone."""
    core = start(DEMO, async_scheduling=False)
    found = {name: answers(core, {name: asked})[name] for name, asked in (FREE | KEPT).items()}
    core.close(10.0)
    assert_kept({name: found[name] for name in KEPT})
    return found


@pytest.mark.parametrize("overlap", OVERLAP)
def test_in_one_batch_rows_with_a_grammar_and_free_ones_answer_bit_for_bit_as_alone(
    undisturbed: dict[str, Answer], overlap: bool
) -> None:
    core = start(DEMO, async_scheduling=overlap)
    assert answers(core, KEPT | FREE) == undisturbed
    core.close(10.0)


@pytest.mark.parametrize("overlap", OVERLAP)
@pytest.mark.parametrize("mode", ["swap", "recompute"])
def test_a_preempted_answer_goes_on_within_its_grammar(
    undisturbed: dict[str, Answer], mode: str, overlap: bool
) -> None:
    core = start(
        DEMO,
        max_model_len=128,
        num_gpu_blocks_override=16,
        max_num_batched_tokens=32,
        preemption_mode=mode,
        swap_space=0.01,
        async_scheduling=overlap,
    )
    assert answers(core, KEPT | FREE) == undisturbed
    assert core.stats().preemptions > 0
    core.close(10.0)


def test_an_answer_that_began_elsewhere_goes_on_within_its_grammar(undisturbed: dict[str, Answer]) -> None:
    core, name = start(DEMO), "plate 1"
    tokens = [token for token, _ in undisturbed[name]]
    given, params = KEPT[name]
    for cut in (1, 3, len(tokens) - 1):
        add(core, "resumed", given, params, output_token_ids=tokens[:cut])
        answer, _ = finish(core)["resumed"]
        assert [token for token, _ in answer] == tokens[cut:]
    core.close(10.0)


class SlowMasks:
    """Puts in the place of masks' making one that goes on only when free rows have been drawn for."""

    def __init__(self, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn, self.made = threading.Event(), 0
        masks, tokens = core.runner._masks, core.runner._tokens  # type: ignore[attr-defined]
        begin, make, draw = masks.begin, masks.make, tokens.draw

        def begun(rows: Any) -> Any:  # at the beginning of each step that has masks
            self.drawn.clear()
            return begin(rows)

        def slow(rows: Any) -> RowMasks:
            if self.expects_free_rows and not self.drawn.wait(PATIENCE):
                raise TimeoutError("the rows without a grammar wait for those with one")
            self.made += 1
            found: RowMasks = make(rows)
            return found

        def watched(rows: Any, *arguments: Any) -> Any:
            found = draw(rows, *arguments)
            if any(row.state.grammar is None for row in rows):
                self.drawn.set()
            return found

        self.expects_free_rows = True
        monkeypatch.setattr(masks, "begin", begun)
        monkeypatch.setattr(masks, "make", slow)
        monkeypatch.setattr(tokens, "draw", watched)


@pytest.mark.parametrize("overlap", OVERLAP)
def test_rows_without_a_grammar_are_drawn_before_any_mask_is_there(
    undisturbed: dict[str, Answer], overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By events: a mask is not made before they are; if they waited for it, nothing would go on."""
    core = start(DEMO, async_scheduling=overlap)
    warm = answers(core, {"plate 0": KEPT["plate 0"]})  # its grammar is compiled
    slow = SlowMasks(core, monkeypatch)
    add(core, "greedy", *FREE["greedy"])
    while not core.step():  # its first token
        continue
    add(core, "plate 0", KEPT["plate 0"][0], msgspec.structs.replace(KEPT["plate 0"][1], max_tokens=6))
    tokens: dict[str, list[int]] = {"greedy": [], "plate 0": []}
    ended = False
    while core.has_work:
        for output in core.step():
            tokens[output.request_id] += output.token_ids
            ended |= output.request_id == "plate 0" and output.finish_reason is not None
        if ended:
            slow.expects_free_rows = False
            slow.drawn.set()
    assert slow.made >= 6
    assert tokens["plate 0"] == [token for token, _ in warm["plate 0"]][:6]
    assert tokens["greedy"] == [token for token, _ in undisturbed["greedy"]][-len(tokens["greedy"]) :]
    core.close(10.0)


def test_with_overlap_a_step_is_launched_while_a_mask_of_the_one_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host schedules the next step and is free to take messages: `launch` has returned, the mask has not."""
    core = start(DEMO, async_scheduling=True)
    launch, launched, masking = core.runner.launch, threading.Event(), threading.Event()
    masks: GrammarMasks = core.runner._masks  # type: ignore[attr-defined]
    make, outcome = masks.make, list[bool]()

    def slow(rows: Any) -> RowMasks:
        masking.set()
        outcome.append(launched.wait(PATIENCE))
        return make(rows)

    def watched(*arguments: Any) -> Any:
        behind = masking.is_set() and not outcome
        handle = launch(*arguments)
        if behind:
            launched.set()
        elif not outcome:
            masking.wait(PATIENCE)  # the first step has begun with its mask
        return handle

    monkeypatch.setattr(masks, "make", slow)
    monkeypatch.setattr(core.runner, "launch", watched)
    add(core, "plate", prompt(5, 1), sampling(1, grammar=regex(PLATE), max_tokens=5))
    finish(core)
    assert outcome[0]
    core.close(10.0)


def test_on_a_gpu_masks_are_made_behind_the_launch_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    core = start(DEMO, async_scheduling=False)
    answers(core, {"plate 0": KEPT["plate 0"]})
    runner: Any = core.runner
    monkeypatch.setattr(runner, "device", torch.device("cuda"))
    log: list[str] = []

    class Handle:
        def settle_before(self) -> None:
            log.append("waited for the last token")

    class Row:
        class state:
            grammar = object()

    monkeypatch.setattr(runner._masks, "make", lambda rows: log.append(f"made {len(rows)}"))
    wait = runner._begin_masks([Row, Row], Handle())
    assert log == []
    wait()
    assert log == ["waited for the last token", "made 2"]
    monkeypatch.undo()
    core.close(10.0)


def test_a_grammar_that_comes_to_its_limits_ends_its_own_request(undisturbed: dict[str, Answer]) -> None:
    core = start(DEMO)
    hard = regex("(x|xx|xxx){4000}y")  # its lexer grows without end
    add(core, "hard", prompt(9, 1), sampling(1, grammar=hard))
    for name, asked in FREE.items():
        add(core, name, *asked)
    found = finish(core)
    error = found["hard"][1]
    assert (error.finish_reason, error.error_kind) == ("error", "internal")
    assert error.error is not None and "grammar" in error.error and "too many" in error.error
    assert {name: found[name][0] for name in FREE} == {name: undisturbed[name] for name in FREE}
    core.close(10.0)


WEARS: Final = r"(.|\n)*[aeiou](.|\n){399}X"  # each token takes some 200 of its lexer's states


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As there are fewer states, they come to their end sooner."""
    monkeypatch.setattr(grammar_compiler.compile_grammar, "__defaults__", (grammar_compiler.TRIAL_LIMITS,))


@pytest.mark.usefixtures("small_tables")
def test_a_grammar_does_not_wear_out_whatever_answers_came_before(undisturbed: dict[str, Answer]) -> None:
    core, grammar, turns = start(DEMO), regex(WEARS), list[list[Answer]]()
    for turn in range(2):
        for number in range(2):  # at once
            add(core, f"{turn} {number}", prompt(9, number), sampling(number, grammar=grammar, max_tokens=60))
        found = finish(core)
        assert [(end.finish_reason, end.error) for _, end in found.values()] == [("length", None)] * 2
        turns.append([answer for answer, _ in found.values()])
    assert turns[0] == turns[1]  # through whichever table
    core.close(10.0)


def draw(grammar: RequestGrammar, answer: list[int], rng: random.Random) -> int:
    """Any token that may follow; whatever if the grammar has failed."""
    state = SimpleNamespace(grammar=grammar, failed=False, num_prompt=0, token_ids=np.array(answer, dtype=np.int64))
    row: Any = SimpleNamespace(end=len(answer), state=state)
    bits = GrammarMasks(TOKENIZER.vocab_size, None).make([row]).bits.view(np.uint8)
    return int(rng.choice(np.flatnonzero(np.unpackbits(bits, bitorder="little"))))


def walk(grammar: RequestGrammar, most: int) -> list[int]:
    """Random tokens, up to where the grammar fails."""
    rng, answer = random.Random(1), list[int]()
    while len(answer) < most:
        token = draw(grammar, answer, rng)
        if grammar.error is not None:
            break
        answer.append(token)
    return answer


@pytest.mark.usefixtures("small_tables")
def test_what_is_spent_is_given_to_nobody_and_a_matcher_is_renewed_once(store: GrammarStore) -> None:
    grammar = regex(WEARS)
    store.keep(grammar, store.compile(grammar).result())
    store.hold(grammar)
    first, second, third = (RequestGrammar(*store.matcher(grammar)) for _ in range(3))
    lasted = walk(first, 400)
    assert first.error is not None and "too many states" in first.error and 60 < len(lasted) < 400
    assert not store.has(grammar)  # the next one that comes has it compiled again, beside the steps
    assert walk(second, 60) == lasted[:60] and second.error is None  # in a table of its own
    assert len(walk(third, 400)) > 60 and third.error is not None
    store.keep(grammar, store.compile(grammar).result())
    alone = RequestGrammar(*store.matcher(grammar))
    assert store.has(grammar)
    assert len(walk(alone, 400)) > 60 and alone.error is not None and not store.has(grammar)
    store.release(grammar)
    assert store.has_room and not store.is_used


@pytest.mark.usefixtures("small_tables")
def test_a_long_answer_is_taken_in_with_the_fuel_of_several_masks(store: GrammarStore) -> None:
    for seed in range(4):
        rng, answer = random.Random(seed), list[int]()
        begun, joined = (RequestGrammar(compile_grammar(TOKENIZER, regex(WEARS))) for _ in range(2))
        for _ in range(85):
            answer.append(draw(begun, answer, rng))
        draw(joined, answer, rng)
        assert (begun.error, joined.error) == (None, None)


def tokens_of(text: str) -> list[int]:
    return list(TOKENIZER.tokenize_str(text))


class Job:
    """A store whose compilations end when they are told to."""

    def __init__(self, store: GrammarStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: dict[str, Future[Any]] = {}
        monkeypatch.setattr(store, "compile", lambda grammar: self.begun.setdefault(grammar, Future()))

    def end(self, grammar: str) -> None:
        self.begun.pop(grammar).set_result(compile_grammar(TOKENIZER, grammar))


def asked(name: str, grammar: str, **fields: Any) -> AddRequest:
    return AddRequest(1, name, [1, 2], SamplingParams(grammar=grammar, ignore_eos=True), 0.0, **fields)


def names(outputs: list[RequestOutput]) -> dict[str, tuple[str | None, str | None]]:
    return {output.request_id: (output.finish_reason, output.error_kind) for output in outputs}


@pytest.fixture
def store() -> Any:
    made = GrammarStore(lambda: TOKENIZER)
    yield made
    made.close()


def test_requests_wait_for_their_own_grammar_alone(store: GrammarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, job = GrammarGate(store), Job(store, monkeypatch)
    one, other = regex("a+"), regex("b+")
    for name, grammar in (("a1", one), ("b1", other), ("a2", one)):
        assert gate.add(asked(name, grammar)) == []
    assert gate.poll(0.0) == ([], []) and list(job.begun) == [one]  # one at a time
    job.end(one)
    ready, ended = gate.poll(0.0)
    assert [request.request_id for request in ready] == ["a1", "a2"] and ended == []
    assert not any(request.sampling.ignore_eos for request in ready)
    assert ready[0].sampling.grammar is ready[1].sampling.grammar  # one text for all that have it
    assert gate.add(asked("a3", one)) == []
    assert [request.request_id for request in gate.poll(0.0)[0]] == ["a3"]  # passes the one that still waits
    assert gate.num_waiting == 1 and list(job.begun) == [other]
    with pytest.raises(ValueError, match="already in use"):
        gate.add(asked("b1", other))


def test_who_waits_for_a_grammar_may_leave_or_be_late(store: GrammarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, job = GrammarGate(store), Job(store, monkeypatch)
    one = regex("a+")
    for name, deadline in (("stays", None), ("late", 5.0), ("leaves", None)):
        gate.add(asked(name, one, deadline=deadline))
    gate.poll(1.0)
    assert names(gate.abort(["leaves", "unknown", "leaves"])) == {"leaves": ("abort", "internal")}
    ready, ended = gate.poll(5.0)
    assert (ready, names(ended)) == ([], {"late": ("error", "timeout")})
    job.end(one)
    assert [request.request_id for request in gate.poll(6.0)[0]] == ["stays"]


def test_a_grammar_that_fails_here_ends_those_that_have_it(
    store: GrammarStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, job = GrammarGate(store), Job(store, monkeypatch)
    bad, good = regex("a+"), regex("b+")
    for name, grammar in (("bad 1", bad), ("good", good), ("bad 2", bad)):
        gate.add(asked(name, grammar))
    gate.poll(0.0)
    job.begun.pop(bad).set_exception(GrammarError("too much"))
    ready, ended = gate.poll(0.0)
    assert (ready, names(ended)) == ([], {"bad 1": ("error", "internal"), "bad 2": ("error", "internal")})
    job.end(good)
    assert [request.request_id for request in gate.poll(0.0)[0]] == ["good"]
    assert "does not compile here" in caplog.text


def test_without_a_tokenizer_grammars_are_refused() -> None:
    assert names(GrammarGate(None).add(asked("a", regex("a+")))) == {"a": ("error", "invalid")}


def test_compiled_grammars_are_bounded_and_those_in_use_are_kept(store: GrammarStore) -> None:
    gate = GrammarGate(store)
    matcher = compile_grammar(TOKENIZER, regex("a+"))
    for index in range(MOST_HELD):
        store.keep(f"held {index}", matcher)
        gate.add(asked(f"held {index}", f"held {index}"))
        assert len(gate.poll(0.0)[0]) == 1
    assert not store.has_room
    gate.add(asked("beyond", regex("b+")))
    assert gate.poll(0.0) == ([], []) and gate._job is None  # it waits until there is room
    for index in range(2 * MOST_KEPT):
        store.keep(f"kept {index}", matcher)
    assert all(store.has(f"held {index}") for index in range(MOST_HELD))
    assert sum(store.has(f"kept {index}") for index in range(2 * MOST_KEPT)) == MOST_KEPT
    gate.forget([RequestOutput("held 0", [], "stop"), RequestOutput("held 1", [], None)])
    assert store.has_room
    gate.poll(0.0)
    assert gate._job is not None


def test_of_grammars_that_nobody_has_few_are_kept_by_which_long_answers_came(store: GrammarStore) -> None:
    gate, matcher = GrammarGate(store), compile_grammar(TOKENIZER, regex("a+"))
    lengths = {"short": WORN_TOKENS, **{f"long {number}": WORN_TOKENS + 1 for number in range(MOST_WORN + 2)}}
    for name, length in lengths.items():
        store.keep(name, matcher)
        for part in range(2):  # of whose answers the last to end counts as much as the first
            gate.add(asked(f"{name} {part}", name))
            gate.poll(0.0)
        gate.forget([RequestOutput(f"{name} 0", [1] * (length - 9)), RequestOutput("another's", [1])])
        gate.forget([RequestOutput(f"{name} 0", [1] * 8, "stop"), RequestOutput(f"{name} 1", [])])
        assert store.has(name)
        gate.forget([RequestOutput(f"{name} 1", [1], "abort")])
    assert [name for name in lengths if not store.has(name)] == ["long 0", "long 1"]


def test_masks_have_a_bit_for_each_token_and_ends_are_known_for_what_they_are(store: GrammarStore) -> None:
    """Against llguidance's own bits, by one thread and by several."""

    class Row:
        def __init__(self, text: str) -> None:
            self.answer = tokens_of(text)
            self.end = 2 + len(self.answer)
            self.state: Any = type("State", (), {})()
            self.state.grammar = grammar_of(store)
            self.state.failed, self.state.num_prompt = False, 2
            self.state.token_ids = np.array([1, 2, *self.answer], dtype=np.int64)

    masks = GrammarMasks(TOKENIZER.vocab_size, store)
    for texts in (["a"], ["", "a", "aab", "aabb", "a"]):
        rows: Any = [Row(text) for text in texts]
        made = masks.make(rows)
        for row, bits, forced in zip(rows, made.bits, made.forced, strict=True):
            matcher = compile_grammar(TOKENIZER, regex("a+b{2}")).deep_copy()
            matcher.consume_tokens(row.answer)
            assert (
                bits.tobytes()[: -(-TOKENIZER.vocab_size // 8)]
                == bytes(matcher.compute_bitmask())[: -(-TOKENIZER.vocab_size // 8)]
            )
            assert bool(forced) == (len(row.answer) > 0 and TOKENIZER.decode_bytes(row.answer) == b"aabb")
    masks.close()


def grammar_of(store: GrammarStore) -> Any:
    return RequestGrammar(*store.matcher(regex("a+b{2}")))
