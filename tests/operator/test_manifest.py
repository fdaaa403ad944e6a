"""What is refused, with which words: by pydantic here, and the same by a real API server."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import Kube
from manifest_corpus import BAD, GOOD, SOURCE, Case
from octavo_operator.api import ManifestError, load_manifest, parse

HEAD = "apiVersion: octavo.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {name: demo}\n"
VALID = f"{HEAD}spec:\n  {SOURCE}\n"


def titles(case: Case) -> str:
    return case.title


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as error:
        load_manifest(text)
    return str(error.value)


@pytest.mark.parametrize("case", GOOD, ids=titles)
def test_a_good_manifest_is_taken(case: Case) -> None:
    assert parse(case.manifest).name == case.name


@pytest.mark.parametrize("case", BAD, ids=titles)
def test_a_bad_manifest_is_refused_with_the_path_of_the_field(case: Case) -> None:
    with pytest.raises(ManifestError) as error:
        parse(case.manifest)
    (found,) = error.value.errors
    assert found.path == case.path or found.path.startswith((f"{case.path}[", f"{case.path}."))


@pytest.mark.real
async def test_the_api_server_takes_every_good_manifest(octavo: Kube) -> None:
    answers = {case.title: await answer(octavo, case) for case in GOOD}
    assert {title: told for title, told in answers.items() if told} == {}


@pytest.mark.real
async def test_the_api_server_refuses_every_bad_manifest_with_the_path_of_the_field(octavo: Kube) -> None:
    answers = {case.title: (case.path, await answer(octavo, case)) for case in BAD}
    unlike = {title: told for title, (path, told) in answers.items() if path not in told}
    assert unlike == {}


async def answer(kube: Kube, case: Case) -> str:
    """What the API server says against a manifest; nothing where it takes it."""
    try:
        await kube.create(case.manifest, dry_run=True)
    except ApiException as error:
        assert error.status in {400, 422}
        return str(json.loads(str(error.body))["message"])
    return ""


def test_what_is_left_out_gets_its_default() -> None:
    spec = load_manifest(VALID).spec
    assert (spec.replicas, spec.rollout.max_surge, spec.rollout.max_unavailable) == (1, 0, 1)
    assert (spec.termination.propagation_seconds, spec.termination.drain_seconds) == (10, 120)
    assert (spec.server.dtype, spec.networking.service.port, spec.suspend) == ("Auto", 8000, False)


def test_a_typo_gets_a_suggestion() -> None:
    assert refusal(VALID + "  replcas: 2\n") == "spec.replcas: unknown field; did you mean replicas?"
    assert "spec.server.env[0].vale: unknown field; did you mean value?" in refusal(
        VALID + "  server: {env: [{name: A, vale: x}]}\n"
    )


def test_every_error_is_told_at_once() -> None:
    told = refusal(VALID + "  replicas: two\n  suspend: 1\n  whatever: x\n").splitlines()
    assert told[0] == 'spec.replicas: must be an integer, not "two"'
    assert told[1] == "spec.suspend: must be true or false, not 1"
    assert told[2].startswith("spec.whatever: unknown field; known are autoscaling, disruption, model,")


def test_a_key_that_is_there_twice_is_refused_with_its_line() -> None:
    assert "key 'replicas' is there twice" in refusal(VALID + "  replicas: 1\n  replicas: 2\n")
    assert "line 7" in refusal(VALID + "  replicas: 1\n  replicas: 2\n")


def test_other_kinds_in_the_same_text_are_left_alone() -> None:
    claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: x}\n"
    assert load_manifest(f"---\n{claim}---\n{VALID}---\n").name == "demo"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "exactly one LLMDeployment is needed; found 0 of kind LLMDeployment among 0 documents"),
        (f"{VALID}---\n{VALID}", "found 2 of kind LLMDeployment among 2 documents"),
        ("kind: Service", 'kind: must be LLMDeployment, not "Service"'),
        ("just text", "must be a mapping with apiVersion, kind, metadata and spec"),
        ("a: [", "not valid YAML"),
        ("a: &a [*a]", "not valid YAML: line 1, column 8: *a stands inside itself"),
        ("a: !!binary aGVsbG8=", "it has no form in JSON"),
        ("a: .inf", "not a number of JSON"),
        ("? [a]\n: b", "a key must be a string"),
        (VALID.replace("v1alpha1", "v1"), 'apiVersion: must be octavo.dev/v1alpha1, not "octavo.dev/v1"'),
        (VALID.replace("{name: demo}\n", "{}\n", 1), "metadata.name: is required"),
        (VALID + "other: 1\n", "other: unknown field"),
        (
            VALID.replace("{name: demo}\n", "{name: demo, labels: {a b: c}}\n", 1),
            "metadata.labels: the key a b must be",
        ),
        (VALID.replace("{name: demo}\n", "{name: demo, labels: {a: b c}}\n", 1), "metadata.labels.a: "),
        (VALID + "  resources: {cpu: 0.5}\n", "spec.resources.cpu: must be a quantity such as 4, '0.5' in quotes"),
        (VALID + "  resources: {memory: 8GB}\n", "spec.resources.memory: must be a quantity such as 48Gi"),
        (
            VALID.replace("{name: demo}\n", "{name: demo, label: {}}\n", 1),
            "metadata.label: unknown field; did you mean labels?",
        ),
    ],
)
def test_a_text_that_is_no_manifest_is_refused(text: str, told: str) -> None:
    assert told in refusal(text)


@pytest.mark.parametrize(
    ("written", "read"),
    [("2020-01-01", "2020-01-01"), ("1:30", "1:30"), ("1e1x", "1e1x"), ("0o17x", "0o17x"), ("'1'", "1")],
)
def test_text_that_other_yaml_readers_turn_into_something_else_stays_text(written: str, read: str) -> None:
    (variable,) = load_manifest(f"{VALID}  server: {{env: [{{name: A, value: {written}}}]}}\n").spec.server.env
    assert variable.value == read


@pytest.mark.parametrize(("written", "read"), [("0x10", 16), ("010", 8), ("0b11", 3), ("1e2", 100), ("+5", 5)])
def test_numbers_are_read_as_kubectl_reads_them(written: str, read: int) -> None:
    assert load_manifest(f"{VALID}  replicas: {written}\n").spec.replicas == read


@pytest.mark.parametrize(("written", "read"), [("y", True), ("Y", True), ("n", False), ("N", False), ("on", True)])
def test_yes_and_no_are_read_as_kubectl_reads_them(written: str, read: bool) -> None:
    assert load_manifest(f"{VALID}  suspend: {written}\n").spec.suspend is read


def test_keys_that_are_no_texts_are_what_json_makes_of_them() -> None:
    labels = load_manifest(f"{VALID}  podTemplate: {{labels: {{yes: a, 1: b, 1.50: c}}}}\n").spec.pod_template.labels
    assert labels == {"true": "a", "1": "b", "1.5": "c"}
    assert "line 6, column 26: a key must not be null" in refusal(f"{VALID}  podTemplate: {{labels: {{~: a}}}}\n")


def test_metadata_is_judged_as_the_api_server_judges_it() -> None:
    def told(metadata: str) -> str:
        text = VALID.replace("{name: demo}\n", f"{{name: demo, {metadata}}}\n", 1)
        try:
            load_manifest(text)
        except ManifestError as error:
            return str(error)
        return ""

    assert told("labels: {a: null}") == told("annotations: {Example.com/a: ~}") == told("namespace: ''") == ""
    long = "a" * 254
    assert told(f"labels: {{{long}/b: c}}") == f"metadata.labels: the key {long}/b must be a qualified name"
    assert told(f"annotations: {{a: {'x' * 2**18}}}") == "metadata.annotations: have 262145 bytes; 262144 are allowed"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "server: {image: 'a b'}",
            'spec.server.image: must look like ghcr.io/example/octavo-server@sha256:…, not "a b"',
        ),
        (
            "server: {env: [{name: a-b}]}",
            'spec.server.env[0].name: must match ^[A-Za-z_][A-Za-z0-9_]*$, like TRITON_CACHE_DIR, not "a-b"',
        ),
        ("podTemplate: {labels: {a: b c}}", "spec.podTemplate.labels.a: must match pattern '^(([A-Za-z0-9]"),
    ],
)
def test_what_a_text_must_be_is_told_by_an_example_where_there_is_one(more: str, told: str) -> None:
    assert refusal(f"{VALID}  {more}\n").startswith(told)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("server: {env: [{name: A}, {name: A}]}", "spec.server.env: name A is there twice"),
        (
            f"podTemplate: {{labels: {{{', '.join(f'l{index}: x' for index in range(65))}}}}}",
            "spec.podTemplate.labels: must have at most 64 items, not more",
        ),
    ],
)
def test_of_a_list_or_a_mapping_it_is_told_what_is_wrong_in_it(more: str, told: str) -> None:
    assert refusal(f"{VALID}  {more}\n") == told


LEVELS = "\n".join(f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]" for below, name in pairwise("abcdefghij"))
BOMB = f"{HEAD}a: &a [{', '.join('123456789')}]\n{LEVELS}\nspec: *j\n"


def test_aliases_that_stand_for_more_than_memory_holds_are_refused_before_they_are_written_out() -> None:
    assert len(BOMB) < 1000
    assert "aliases stand for more than 10000 values" in refusal(BOMB)


def test_merged_aliases_are_bounded_too() -> None:
    merges = "\n".join(
        f"{name}: &{name} {{<<: [{', '.join([f'*{below}'] * 9)}]}}" for below, name in pairwise("abcdefgh")
    )
    assert "aliases stand for more than" in refusal(f"{HEAD}a: &a {{x: 1}}\n{merges}\n")


def test_an_alias_that_is_used_as_people_use_it_is_read() -> None:
    env = "server: {env: [{name: A, value: &value text}, {name: B, value: *value}]}"
    assert [each.value for each in load_manifest(f"{VALID}  {env}\n").spec.server.env] == ["text", "text"]


def test_aliases_of_aliases_may_not_nest_deeper_than_text_may() -> None:
    chain = "\n".join(f"a{level + 1}: &a{level + 1} [*a{level}]" for level in range(3000))
    assert "nested more than 100 levels deep" in refusal(f"a0: &a0 [1]\n{chain}")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("1__0x", "must be an integer"),
        ("0b_", "0b_ cannot be read as int"),
        ("1__0", "1__0 cannot be read as int"),
        ("0_", "0_ cannot be read as int"),
        ("0x_", "0x_ cannot be read as int"),
        ("9" * 5000, "9… cannot be read as int"),
        ("0x" + "f" * 5000, "f… cannot be read as int"),
        ("!!bool maybe", "maybe cannot be read as bool"),
        ("!!timestamp never", "never cannot be read as timestamp"),
        ("[" * 3000, "nested more than 100 levels deep"),
    ],
)
def test_a_value_that_yaml_readers_choke_on_is_refused_with_its_line(value: str, told: str) -> None:
    message = refusal(f"{VALID}  replicas: {value}\n")
    assert told in message
    assert message.startswith(("not valid YAML: line 6, column ", "spec.replicas: "))
    assert len(message) < 200


def test_a_recursive_alias_is_refused_with_its_line() -> None:
    told = refusal(f"{VALID}  podTemplate:\n    affinity: &x {{nodeAffinity: *x}}\n")
    assert told == "not valid YAML: line 7, column 33: *x stands inside itself"


@pytest.mark.parametrize(("given", "told"), [("[1, 2]", "a list"), ("{a: {b: c}}", "a mapping")])
def test_what_was_given_is_told_by_its_kind_where_it_can_be_long(given: str, told: str) -> None:
    assert refusal(f"{VALID}  replicas: {given}\n") == f"spec.replicas: must be an integer, not {told}"


def test_what_judges_a_manifest_imports_nothing_heavy() -> None:
    code = (
        "import sys, octavo_operator.api, octavo_operator.render, octavo_operator.api.crd\n"
        "heavy = {'kubernetes', 'kopf', 'aiohttp', 'asyncio', 'torch', 'prometheus_client'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
