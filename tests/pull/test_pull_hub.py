"""`octavo pull hf://…` against a hub on this machine: what is fetched, pinned, verified, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model_hosts import Fault, Hub
from octavo_common.pulled_model import MARKER, PARTIAL, read_marker
from octavo_pull.errors import RefusedError, UnfinishedError
from octavo_pull.http_get import _joined
from pulled import PART, contents, fetch, model_files, noise, nothing_shows

REPO = "team/tiny"
SOURCE = f"hf://{REPO}"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub(REPO, model_files()) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub as at first, and no token of the user's own."""
    server.reset()
    server.token, server.near = None, False
    server.commits.clear()
    server.commit("main", model_files())
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def test_a_repository_is_fetched_whole_and_its_marker_says_of_which_commit(hub: Hub, tmp_path: Path) -> None:
    pulled = fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == model_files()
    marker = read_marker(tmp_path / "m")
    assert marker == pulled.model
    assert (marker.source, marker.revision) == (f"{SOURCE}@main", hub.branches["main"])
    digests = {file.name: (file.digest or "").partition(":")[0] for file in marker.files}
    assert digests == {"config.json": "git-sha1", "tokenizer.json": "git-sha1", "model.safetensors": "sha256"}
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_large_files_come_in_ranges_over_several_connections(hub: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, tmp_path / "m")
    ranges = {asked.headers["range"] for asked in hub.asked if asked.path.startswith("/cdn/")}
    assert len(ranges) == -(-3_000_001 // PART)
    assert hub.bodies("/cdn/") == 3_000_001  # nothing twice


def test_only_what_serving_reads_is_fetched_and_no_pickle(hub: Hub, tmp_path: Path) -> None:
    more = {
        "pytorch_model.bin": b"canary",
        "training_args.bin": b"canary",
        "modeling_evil.py": b"canary",
        "consolidated.safetensors": b"twice",
        "onnx/model.safetensors": b"another framework's",
        "README.md": b"#",
        ".gitattributes": b"",
        "chat_template.jinja": b"{{ messages }}",
        "merges.txt": b"a b",
        "1_Pooling/config.json": b"{}",
        "LICENSE": b"free",
    }
    hub.commit("main", model_files() | more)
    fetch(SOURCE, tmp_path / "m")
    kept = ("chat_template.jinja", "merges.txt", "1_Pooling/config.json", "LICENSE")
    assert contents(tmp_path / "m") == model_files() | {name: more[name] for name in kept}
    assert not hub.count("bin|py$|consolidated|onnx")


def test_a_model_of_pickles_alone_is_refused_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.commit("main", {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"canary"})
    with pytest.raises(RefusedError, match=r"no safetensors, only pytorch_model\.bin; pickles can run code"):
        fetch(SOURCE, tmp_path / "m")
    assert not hub.count("/resolve/")
    assert nothing_shows(tmp_path / "m")


def test_a_connection_that_breaks_off_is_gone_on_with_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/cdn/", times=5, cut=100_000), Fault("tokenizer", cut=3)]
    fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == model_files()
    # What was sent before a break may be lost on its way; what arrived is not asked for again.
    assert hub.bodies("/cdn/") < 3_000_001 + 5 * 100_000
    starts = [int(asked.headers["range"][6:].partition("-")[0]) for asked in hub.asked if "/cdn/" in asked.path]
    assert any(start % PART for start in starts)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_hub_is_waited_for(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.faults = [
        Fault("/api/", times=2, status=status),
        Fault("/resolve/", times=2, status=status, headers={"Retry-After": "0"}),
        Fault("/cdn/", times=3, status=status),
    ]
    fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == model_files()


def test_a_hub_that_stays_busy_ends_in_an_error_that_may_be_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/cdn/", times=1000, status=503)]
    with pytest.raises(UnfinishedError, match=r"model\.safetensors: .* answers 503; tried 4 times") as failed:
        fetch(SOURCE, tmp_path / "m")
    assert failed.value.retryable
    assert nothing_shows(tmp_path / "m")


def test_a_gated_repository_is_told_in_the_hubs_words_and_asked_once(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(RefusedError, match=r"401: Access to model team/tiny is restricted and you are not in the"):
        fetch(SOURCE, tmp_path / "m")
    assert len(hub.asked) == 1


def test_a_token_from_a_file_is_sent_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    (tmp_path / "token").write_text("hf_secret\n")
    fetch(SOURCE, tmp_path / "models" / "m", token_file=tmp_path / "token")
    assert all(("authorization" in asked.headers) == ("/cdn/" not in asked.path) for asked in hub.asked)
    assert "hf_secret" not in (tmp_path / "models" / "m" / MARKER).read_text()


def test_a_redirect_on_the_same_host_gets_the_token_each_time(hub: Hub, tmp_path: Path) -> None:
    hub.token, hub.near = "hf_secret", True
    (tmp_path / "token").write_text("hf_secret")
    fetch(SOURCE, tmp_path / "models" / "m", token_file=tmp_path / "token")
    assert contents(tmp_path / "models" / "m") == model_files()
    assert all(asked.headers["authorization"] == "Bearer hf_secret" for asked in hub.asked)


def test_a_token_of_the_environment_is_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == model_files()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://team/other", "404: Repository not found"),
        (f"{SOURCE}@nowhere", "404: Invalid rev id: nowhere"),
    ],
)
def test_what_is_not_there_is_refused_in_the_hubs_words_and_asked_once(
    hub: Hub, tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        fetch(source, tmp_path / "m")
    assert len(hub.asked) == 1


def test_the_commit_stays_the_same_when_the_branch_moves_between_two_runs(hub: Hub, tmp_path: Path) -> None:
    first = hub.branches["main"]
    hub.faults = [Fault("/cdn/", times=1000, status=503)]
    with pytest.raises(UnfinishedError):
        fetch(SOURCE, tmp_path / "m")
    hub.faults = []
    hub.commit("main", model_files(seed=1))
    assert fetch(SOURCE, tmp_path / "m").model.revision == first
    assert contents(tmp_path / "m") == model_files()


def test_a_commit_that_is_gone_between_two_runs_is_given_up_for_the_branch(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/cdn/", times=1000, status=503)]
    with pytest.raises(UnfinishedError):
        fetch(SOURCE, tmp_path / "m")
    hub.faults = []
    hub.commits.clear()
    new = hub.commit("main", model_files(seed=1))
    assert fetch(SOURCE, tmp_path / "m").model.revision == new
    assert contents(tmp_path / "m") == model_files(seed=1)


def test_a_server_that_falls_silent_is_left_and_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/cdn/", times=2, cut=1000, hold=True)]
    fetch(SOURCE, tmp_path / "m", seconds=0.5)
    assert contents(tmp_path / "m") == model_files()


def test_a_commit_and_a_tag_can_be_asked_for(hub: Hub, tmp_path: Path) -> None:
    old = hub.branches["main"]
    hub.commit("main", model_files(seed=1))
    hub.branches["v1"] = old
    fetch(f"{SOURCE}@{old}", tmp_path / "a")
    fetch(f"{SOURCE}@v1", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == model_files()


def test_a_complete_directory_is_left_alone_without_asking_anybody(hub: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, tmp_path / "m")
    commit = hub.branches["main"]
    hub.commit("main", model_files(seed=1))
    hub.asked.clear()
    assert fetch(SOURCE, tmp_path / "m").was_there
    assert fetch(f"{SOURCE}@{commit}", tmp_path / "m").was_there  # the same by its commit
    assert hub.asked == []


def test_another_source_or_revision_in_the_directory_is_refused(hub: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, tmp_path / "m")
    for other in ("hf://team/other", f"{SOURCE}@v2"):
        with pytest.raises(RefusedError, match=f"has {SOURCE}@main; give another directory for {other}"):
            fetch(other, tmp_path / "m")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes").write_text("mine")
    with pytest.raises(RefusedError, match="has files that were not pulled"):
        fetch(SOURCE, tmp_path / "own")
    assert contents(tmp_path / "own") == {"notes": b"mine"}


def test_a_directory_that_lost_a_file_is_not_taken_for_whole(hub: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(RefusedError, match=r"3000001 bytes of model\.safetensors, which has 5; remove it"):
        fetch(SOURCE, tmp_path / "m")


@pytest.mark.parametrize("path", ["/cdn/", "config.json"])
def test_a_wrong_digest_is_fetched_once_more_and_then_refused(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.faults = [Fault(path, garble=True)]
    fetch(SOURCE, tmp_path / "once")
    assert contents(tmp_path / "once") == model_files()
    hub.faults = [Fault(path, times=1000, garble=True)]
    with pytest.raises(RefusedError, match=r"has another digest than (sha256|git-sha1):[0-9a-f]+, twice"):
        fetch(SOURCE, tmp_path / "always")
    assert not (tmp_path / "always").exists()


def test_addresses_that_expire_are_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    large = model_files(size=40 * PART)
    hub.commit("main", large)
    answer, count = hub.answer, iter(range(10_000))

    def expiring(asked):  # type: ignore[no-untyped-def]  # as the method it stands for
        if "/cdn/" in asked.path and next(count) % 12 == 11:
            hub.expire()
        return answer(asked)

    hub.answer = expiring  # type: ignore[method-assign]
    try:
        fetch(SOURCE, tmp_path / "m")
    finally:
        del hub.answer
    assert contents(tmp_path / "m") == large
    assert 1 < hub.count("resolve/.*safetensors") < 40


def test_a_hub_without_ranges_sends_whole_files(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.faults = [Fault("/cdn/", times=1, cut=50_000)]
    fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == model_files()


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\..\\evil.json", "a//b.json"]
)
def test_a_name_that_leads_elsewhere_refuses_the_whole_model(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.commit("main", model_files() | {name: b"{}"})
    with pytest.raises(RefusedError, match="which is no name inside a directory"):
        fetch(SOURCE, tmp_path / "deep" / "er" / "m")
    assert {path.name for path in tmp_path.rglob("*")} <= {"deep", "er", PARTIAL, "m"}


@pytest.mark.parametrize("location", ["http://elsewhere.test/x", "file:///etc/passwd", "ftp://elsewhere.test/x"])
def test_no_redirect_leads_from_https_to_less(location: str) -> None:
    with pytest.raises(RefusedError, match="redirects from https to"):
        _joined(httpx.URL("https://hub.test/x"), location, "x")


def test_an_empty_directory_is_taken_and_a_mount_point_is_not(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == model_files()
    with pytest.raises(RefusedError, match="is a mount point; give a directory inside it, such as /proc/model"):
        fetch(SOURCE, Path("/proc"))


def test_a_file_that_is_empty_is_a_file(hub: Hub, tmp_path: Path) -> None:
    files = model_files() | {"merges.txt": b"", "many.json": json.dumps({"x": 1}).encode(), "odd name.json": noise(10)}
    hub.commit("main", files)
    fetch(SOURCE, tmp_path / "m")
    assert contents(tmp_path / "m") == files
