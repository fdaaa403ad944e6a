"""`octavo pull` from web servers, S3 and registries: the same promises as of a hub, and what is each one's own."""

import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_hosts import OCI_INDEX, OCI_TAR, Bucket, Fault, Files, Registry, hosting, link, sha256sums, tar
from octavo_common.pulled_model import read_marker
from octavo_pull.digests import matches, part_sizes
from octavo_pull.errors import RefusedError, UnfinishedError
from octavo_pull.source import image_source
from pulled import PART, contents, fetch, model_files, noise, nothing_shows

MODEL = model_files(size=1_500_001)
GZIPPED = f"{OCI_TAR}+gzip"
TITLE = "org.opencontainers.image.title"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Files, Bucket, Registry]]:
    servers = Files(), Bucket("models", {}), Registry("team/tiny")
    with hosting(*servers):
        yield servers


@pytest.fixture
def web(servers: tuple[Files, Bucket, Registry]) -> Files:
    servers[0].reset()
    servers[0].files = {"tiny/SHA256SUMS": sha256sums(MODEL)} | {f"tiny/{name}": body for name, body in MODEL.items()}
    return servers[0]


@pytest.fixture
def bucket(servers: tuple[Files, Bucket, Registry], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = servers[1]
    bucket.reset()
    bucket.objects = {f"team/tiny/{name}": body for name, body in MODEL.items()}
    bucket.page, bucket.open, bucket.encrypted, bucket.part_bytes = 1000, False, False, 8 * 2**20
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return bucket


@pytest.fixture
def registry(servers: tuple[Files, Bucket, Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = servers[2]
    registry.reset()
    registry.login, registry.redirects, registry.token_uses = None, False, 1_000_000
    registry.blobs.clear()
    registry.manifests.clear()
    registry.tags.clear()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    return registry


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def archived(web: Files, body: bytes, directory: Path, name: str = "tiny.tar") -> None:
    """Pull an archive that the web server has."""
    web.files[name] = body
    fetch(f"{web.url}/{name}", directory, sha256=digest(body))


# Web servers


def test_a_directory_is_fetched_by_its_list_of_digests(web: Files, tmp_path: Path) -> None:
    web.faults = [Fault("safetensors", times=3, cut=70_000, method="GET")]
    fetch(f"{web.url}/tiny/", tmp_path / "m", sha256=digest(sha256sums(MODEL)))
    assert contents(tmp_path / "m") == MODEL
    marker = read_marker(tmp_path / "m")
    assert marker is not None
    assert {file.name: file.digest for file in marker.files} == {
        name: f"sha256:{digest(body)}" for name, body in MODEL.items()
    }


def test_a_list_or_a_file_with_another_digest_is_refused(web: Files, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=rf"SHA256SUMS has the digest {digest(sha256sums(MODEL))}, not 0000"):
        fetch(f"{web.url}/tiny/", tmp_path / "m", sha256="0" * 64)
    web.files["tiny/tokenizer.json"] = b'{"version": "6.6"}'
    with pytest.raises(RefusedError, match=r"tokenizer\.json has another digest than sha256:"):
        fetch(f"{web.url}/tiny/", tmp_path / "m", sha256=digest(sha256sums(MODEL)))
    assert nothing_shows(tmp_path / "m")


@pytest.mark.parametrize("name", ["tiny.tar", "tiny.tar.gz", "tiny.tgz"])
@pytest.mark.parametrize("folder", ["", "./", "tiny-model/", "export/tiny/"])
def test_an_archive_is_unpacked_wherever_in_it_the_model_lies(
    web: Files, tmp_path: Path, name: str, folder: str
) -> None:
    files = {f"{folder}{name}": body for name, body in MODEL.items()} | {f"{folder}pytorch_model.bin": b"canary"}
    archived(web, tar(files, gzipped=name != "tiny.tar"), tmp_path / "m", name)
    assert contents(tmp_path / "m") == MODEL
    assert {path.name for path in tmp_path.iterdir()} == {"m"}
    marker = read_marker(tmp_path / "m")
    assert marker is not None
    assert {file.name: file.digest for file in marker.files} == {
        name: f"sha256:{digest(body)}" for name, body in MODEL.items()
    }


def test_an_archive_with_another_digest_is_not_unpacked(web: Files, tmp_path: Path) -> None:
    web.files["tiny.tar"] = tar(MODEL)
    with pytest.raises(RefusedError, match=r"tiny\.tar has another digest than sha256:0000"):
        fetch(f"{web.url}/tiny.tar", tmp_path / "m", sha256="0" * 64)
    assert nothing_shows(tmp_path / "m")


# Made when they are used: each worker collects all tests.
BAD_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "'../evil.json', which is no name inside a directory": lambda: tar(MODEL | {"../evil.json": b"{}"}),
    "'/etc/evil.json', which is no name inside a directory": lambda: tar(MODEL | {"/etc/evil.json": b"{}"}),
    "has evil.json as a link or a device": lambda: tar(MODEL, members=(link("evil.json", "/etc/passwd"),)),
    "has evil2.json as a link": lambda: tar(MODEL, members=(link("evil2.json", "config.json", tarfile.LNKTYPE),)),
    "has evil3.json as a link": lambda: tar(MODEL, members=(link("evil3.json", "", tarfile.CHRTYPE),)),
    "unpacks to more than 8 times its size": lambda: tar(MODEL | {"big.json": bytes(100 * 2**20)}, gzipped=True),
    "tar.gz unpacks to more than 8 times": lambda: tar(MODEL | {"big.txt": bytes(100 * 2**20)}, gzipped=True),
    "is no whole archive: unexpected end of data": lambda: tar(MODEL)[:700_000],
    "is no whole archive": lambda: noise(100_000),
    "has no *.safetensors": lambda: tar({"config.json": b"{}"}),
    "has no folder with config.json and *.safetensors": lambda: tar({"a.json": b"{}"}),
    "has 2 folders with": lambda: tar({f"{x}/{name}": body for x in "ab" for name, body in MODEL.items()}),
}


@pytest.mark.parametrize("message", BAD_ARCHIVES)
def test_an_archive_that_is_none_or_leads_elsewhere_is_refused(web: Files, tmp_path: Path, message: str) -> None:
    body = BAD_ARCHIVES[message]()
    name = "tiny.tar.gz" if body.startswith(b"\x1f\x8b") else "tiny.tar"
    with pytest.raises(RefusedError) as refused:
        archived(web, body, tmp_path / "deep" / "m", name)
    assert message in str(refused.value)
    assert nothing_shows(tmp_path / "deep" / "m")
    assert not list(tmp_path.rglob("evil*"))


def test_a_link_to_a_folder_is_not_followed(web: Files, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    archive = tar(MODEL | {"way/evil.json": b"{}"}, members=())
    body = tar({}, members=(link("way", str(tmp_path / "outside")),))[:512] + archive
    archived(web, body, tmp_path / "m")
    assert not list((tmp_path / "outside").iterdir())
    assert contents(tmp_path / "m") == MODEL | {"way/evil.json": b"{}"}


def test_an_archive_that_is_replaced_between_two_runs_is_not_mixed(web: Files, tmp_path: Path) -> None:
    first, second, longer = tar(MODEL), tar(model_files(1_500_001, seed=1)), tar(model_files(1_700_001))
    web.files["tiny.tar"] = first
    web.faults = [Fault("tar", times=2), Fault("tar", times=1000, status=503)]
    with pytest.raises(UnfinishedError):
        fetch(f"{web.url}/tiny.tar", tmp_path / "m", sha256=digest(first))
    web.reset()
    web.files["tiny.tar"] = second
    with pytest.raises(RefusedError, match=r"tiny\.tar has another digest than .*, twice"):
        fetch(f"{web.url}/tiny.tar", tmp_path / "m", sha256=digest(first))
    web.files["tiny.tar"] = longer
    with pytest.raises(
        UnfinishedError, match=rf"tiny\.tar has {len(longer)} bytes and had {len(first)}: it has changed"
    ):
        fetch(f"{web.url}/tiny.tar", tmp_path / "m", sha256=digest(first))
    web.files["tiny.tar"] = first
    fetch(f"{web.url}/tiny.tar", tmp_path / "m", sha256=digest(first))
    assert contents(tmp_path / "m") == MODEL


def test_what_is_not_there_is_asked_for_once(web: Files, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"nothing\.tar: 127\.0\.0\.1 answers 404$"):
        fetch(f"{web.url}/nothing.tar", tmp_path / "m", sha256="0" * 64)
    assert len(web.asked) == 1


def test_a_host_that_does_not_answer_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match=r"127\.0\.0\.1: .*refused.*; tried 4 times"):
        fetch("http://127.0.0.1:9/x.tar", tmp_path / "m", sha256="0" * 64)


# S3


def test_the_objects_below_a_prefix_are_listed_signed_and_fetched(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects |= {"team/tiny/": b"", "team/tiny/pytorch_model.bin": b"canary", "team/tiny-2/config.json": b"{}"}
    bucket.page = 2
    bucket.faults = [Fault("safetensors", times=2, cut=90_000), Fault("list-type|models$", status=503)]
    pulled = fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    assert contents(tmp_path / "m") == MODEL
    assert pulled.model.source == f"s3://models/team/tiny at {bucket.url}"
    assert pulled.unverified == ()
    assert {(file.digest or "").partition(":")[0] for file in pulled.model.files} == {"md5"}
    assert not bucket.count("bin|tiny-2")
    assert len({asked.headers["range"] for asked in bucket.asked if "safetensors" in asked.path}) >= 1_500_001 // PART


def test_objects_of_several_parts_are_verified_by_their_parts(bucket: Bucket, tmp_path: Path) -> None:
    large = model_files(size=13 * 2**20 + 7)
    bucket.objects = {f"team/large/{name}": body for name, body in large.items()}
    bucket.part_bytes = 5 * 2**20
    pulled = fetch("s3://models/team/large/", tmp_path / "m", endpoint=bucket.url)
    assert contents(tmp_path / "m") == large
    assert pulled.unverified == ()
    bucket.part_bytes = 5 * 2**20 + 1  # of no whole MiB: it cannot be told
    pulled = fetch("s3://models/team/large/", tmp_path / "n", endpoint=bucket.url)
    assert contents(tmp_path / "n") == large
    assert pulled.unverified == ("model.safetensors",)


def test_etags_of_encrypted_objects_are_taken_for_no_digests(bucket: Bucket, tmp_path: Path) -> None:
    bucket.encrypted = True
    pulled = fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    assert contents(tmp_path / "m") == MODEL
    assert pulled.unverified == tuple(sorted(MODEL))
    bucket.objects["team/tiny/SHA256SUMS"] = sha256sums(MODEL)
    assert fetch("s3://models/team/tiny", tmp_path / "n", endpoint=bucket.url).unverified == ()


def test_an_object_that_changes_meanwhile_is_begun_anew(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault("safetensors", times=2), Fault("safetensors", times=1000, status=503)]
    with pytest.raises(UnfinishedError):
        fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    bucket.reset()
    other = model_files(size=1_500_001, seed=1)
    bucket.objects["team/tiny/model.safetensors"] = other["model.safetensors"]
    with pytest.raises(UnfinishedError, match=r"model\.safetensors has changed while it was fetched; run it again"):
        fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    assert contents(tmp_path / "m") == other


def test_a_list_of_digests_beside_objects_is_taken(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects["team/tiny/SHA256SUMS"] = sha256sums(MODEL)
    pulled = fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    assert {(file.digest or "").partition(":")[0] for file in pulled.model.files} == {"sha256"}
    bucket.objects["team/tiny/SHA256SUMS"] = sha256sums(MODEL | {"config.json": b"other"})
    with pytest.raises(RefusedError, match=r"config\.json has another digest than sha256"):
        fetch("s3://models/team/tiny", tmp_path / "n", endpoint=bucket.url)


def test_an_object_with_another_digest_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault("tokenizer", times=10, garble=True)]
    with pytest.raises(RefusedError, match=r"tokenizer\.json has another digest than md5:[0-9a-f]{32}, twice"):
        fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)


def test_a_wrong_key_is_told_in_the_stores_words(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RefusedError, match="SignatureDoesNotMatch: The request signature we calculated") as refused:
        fetch("s3://models/team/tiny", tmp_path / "m", endpoint=bucket.url)
    assert "wrong" not in str(refused.value)


def test_nothing_below_a_prefix_and_no_such_bucket_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="there is no object below this prefix"):
        fetch("s3://models/team/none", tmp_path / "m", endpoint=bucket.url)
    with pytest.raises(RefusedError, match="NoSuchBucket: The specified bucket does not exist"):
        fetch("s3://other-models/team/tiny", tmp_path / "m", endpoint=bucket.url)


def test_a_key_from_a_file_and_no_key_at_all(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    text = f"[default]\naws_access_key_id = {bucket.ACCESS}\naws_secret_access_key = {bucket.SECRET}\n"
    (tmp_path / "credentials").write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    fetch("s3://models/team/tiny", tmp_path / "a", endpoint=bucket.url)
    (tmp_path / "credentials").write_text("[default]\nwJalrXUtnFEMI = 1\n")
    with pytest.raises(RefusedError, match="has no key for the profile 'default'") as refused:
        fetch("s3://models/team/tiny", tmp_path / "c", endpoint=bucket.url)
    assert "wJal" not in str(refused.value)
    bucket.open = True
    fetch("s3://models/team/tiny", tmp_path / "b", endpoint=bucket.url, anonymous=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == MODEL


def test_sizes_of_parts_are_guessed_among_the_usual_ones() -> None:
    mib = 2**20
    assert part_sizes(100 * mib, 13) == [8 * mib]
    assert part_sizes(13 * mib, 2) == [8 * mib, 10 * mib, 7 * mib]
    assert part_sizes(5, 1) == [8 * mib, 5 * mib, 16 * mib]
    assert part_sizes(7 * 9 * mib, 9) == [7 * mib]


def test_digests_are_those_that_others_compute(tmp_path: Path) -> None:
    """`git hash-object` says so of "hello\\n", and sha256sum and md5sum of nothing."""
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    assert matches(path, "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a", lambda: None)
    assert matches(path, "git-sha1:ce013625030ba8dba906f756967f9e9ca394464b", lambda: None) is False
    path.write_bytes(b"")
    assert matches(path, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", lambda: None)
    assert matches(path, "md5:d41d8cd98f00b204e9800998ecf8427e", lambda: None)


# Registries


def test_an_image_is_fetched_by_its_layers(registry: Registry, tmp_path: Path) -> None:
    """A later layer's files and deletions count; what else is in an image is left out, its links too."""
    earlier = {"config.json": b"old", "model-old.safetensors": b"old", "drop/a.json": b"{}", "tokenizer.json": b"old"}
    base = tar({"bin/busybox": b"ELF"}, members=(link("bin/sh", "/bin/busybox"),))
    later = tar(MODEL | {".wh.model-old.safetensors": b"", "drop/.wh..wh..opq": b""}, gzipped=True)
    layers = [
        registry.layer(base, OCI_TAR),
        registry.layer(tar(earlier), OCI_TAR),
        registry.layer(later, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ]
    pushed = registry.push("v1", layers)
    registry.redirects = True
    registry.faults = [Fault("elsewhere", times=3, cut=60_000)]
    pulled = fetch(f"oci://{registry.netloc}/team/tiny:v1", tmp_path / "m")
    assert contents(tmp_path / "m") == MODEL
    assert pulled.model.revision == pushed


def titled(registry: Registry, title: str = TITLE) -> list[dict[str, object]]:
    return [registry.layer(body, "application/octet-stream", **{title: name}) for name, body in MODEL.items()]


@pytest.mark.parametrize(
    "layers",
    [
        titled,
        # As oras pushes files of no special type.
        lambda registry: [registry.layer(body, OCI_TAR, **{TITLE: name}) for name, body in MODEL.items()],
        lambda registry: [
            registry.layer(tar(MODEL, gzipped=True), GZIPPED, **{TITLE: "tiny", "io.deis.oras.content.unpack": "true"})
        ],
        lambda registry: [
            registry.layer(body, "application/vnd.cncf.model.weight.v1.raw", **{"org.cncf.model.filepath": name})
            for name, body in MODEL.items()
        ],
        lambda registry: [
            registry.layer(
                tar({name: body}), "application/vnd.cncf.model.weight.v1.tar", **{"org.cncf.model.filepath": name}
            )
            for name, body in MODEL.items()
        ],
    ],
    ids=["files", "oras", "oras-folder", "modelpack-raw", "modelpack-tar"],
)
def test_artifacts_of_files_are_understood(
    registry: Registry, tmp_path: Path, layers: Callable[[Registry], list[dict[str, object]]]
) -> None:
    more = registry.layer(b"canary", "application/octet-stream", **{TITLE: "pytorch_model.bin"})
    pushed = registry.push("v1", [*layers(registry), more])
    fetch(f"oci://{registry.netloc}/team/tiny@{pushed}", tmp_path / "m")
    assert contents(tmp_path / "m") == MODEL
    assert not registry.count(more["digest"])


def test_of_an_index_the_manifest_of_this_platform_is_taken(registry: Registry, tmp_path: Path) -> None:
    mine, other = registry.push("mine", titled(registry)), registry.push("other", [])
    entries = [
        {"mediaType": "x", "digest": other, "size": 1, "platform": {"os": "windows", "architecture": "amd64"}},
        {"mediaType": "x", "digest": mine, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": "x", "digest": mine, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
    ]
    index = registry.keep("latest", OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    assert fetch(f"oci://{registry.netloc}/team/tiny", tmp_path / "m").model.revision == index
    assert contents(tmp_path / "m") == MODEL


def test_a_registry_that_wants_a_login_gets_a_token_and_another_when_it_ends(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("v1", titled(registry))
    registry.login, registry.token_uses, registry.redirects = ("robot", "s3cret"), 2, True
    source = f"oci://{registry.netloc}/team/tiny:v1"
    with pytest.raises(RefusedError, match="UNAUTHORIZED: incorrect username or password"):
        fetch(source, tmp_path / "m")
    config = {"auths": {registry.netloc: {"username": "robot", "password": "s3cret"}}}
    (tmp_path / "docker.json").write_text(json.dumps(config))
    fetch(source, tmp_path / "m", docker_config=tmp_path / "docker.json", connections=1)
    assert contents(tmp_path / "m") == MODEL
    assert registry.count("/token") > 2
    assert "s3cret" not in "".join(path.read_text() for path in (tmp_path / "m").glob(".octavo*"))


def test_a_blob_or_manifest_with_another_digest_is_refused(registry: Registry, tmp_path: Path) -> None:
    pushed = registry.push("v1", titled(registry))
    registry.faults = [Fault("blobs", times=1000, garble=True)]
    with pytest.raises(RefusedError, match="another digest than sha256:"):
        fetch(f"oci://{registry.netloc}/team/tiny:v1", tmp_path / "m")
    registry.faults = [Fault("manifests", times=1000, garble=True)]
    with pytest.raises(RefusedError, match=f"the manifest has the digest sha256:.*, not {pushed}"):
        fetch(f"oci://{registry.netloc}/team/tiny:v1@{pushed}", tmp_path / "n")


def test_what_a_registry_does_not_have_is_told_in_its_words(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="404: MANIFEST_UNKNOWN: manifest unknown"):
        fetch(f"oci://{registry.netloc}/team/tiny:none", tmp_path / "m")
    with pytest.raises(RefusedError, match="404: NAME_UNKNOWN: repository name not known"):
        fetch(f"oci://{registry.netloc}/team/other:v1", tmp_path / "m")


def test_the_same_image_by_tag_and_by_digest_is_the_same(registry: Registry, tmp_path: Path) -> None:
    pushed = registry.push("v1", titled(registry))
    fetch(f"oci://{registry.netloc}/team/tiny:v1", tmp_path / "m")
    registry.asked.clear()
    assert fetch(f"oci://{registry.netloc}/team/tiny@{pushed}", tmp_path / "m").was_there
    assert registry.asked == []
    with pytest.raises(RefusedError, match="give another directory"):
        fetch(f"oci://{registry.netloc}/team/tiny@sha256:{'0' * 64}", tmp_path / "m")


def test_of_several_models_in_an_image_the_one_at_the_path_is_taken(registry: Registry, tmp_path: Path) -> None:
    other = model_files(size=50_000, seed=1)
    both = {f"models/{x}/{name}": body for x, files in (("a", MODEL), ("b", other)) for name, body in files.items()}
    registry.push("v1", [registry.layer(tar(both), OCI_TAR)])
    source = f"oci://{registry.netloc}/team/tiny:v1"
    fetch(f"{source}#models/b", tmp_path / "m")
    assert contents(tmp_path / "m") == other
    with pytest.raises(RefusedError, match=r"has 2 folders with config\.json and"):
        fetch(source, tmp_path / "n")
    with pytest.raises(RefusedError, match=r"#models/c has no \*\.safetensors"):
        fetch(f"{source}#models/c", tmp_path / "o")
    with pytest.raises(RefusedError, match="which is no name inside a directory"):
        fetch(f"{source}#models/../..", tmp_path / "o")


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("team/tiny", "oci://docker.io/team/tiny:latest"),
        ("tiny:v1", "oci://docker.io/tiny:v1"),
        ("registry.test/tiny:v1", "oci://registry.test/tiny:v1"),
        ("localhost:5000/a/b@sha256:" + "0" * 64, "oci://localhost:5000/a/b@sha256:" + "0" * 64),
    ],
)
def test_images_are_named_as_container_runtimes_name_them(image: str, source: str) -> None:
    assert str(image_source(image)) == source


def test_a_title_that_leads_elsewhere_and_a_layer_by_zstd_are_refused(registry: Registry, tmp_path: Path) -> None:
    evil = registry.layer(b"{}", "application/octet-stream", **{TITLE: "../evil.json"})
    registry.push("v1", [*titled(registry), evil])
    with pytest.raises(RefusedError, match="which is no name inside a directory"):
        fetch(f"oci://{registry.netloc}/team/tiny:v1", tmp_path / "m")
    registry.push("v2", [registry.layer(gzip.compress(b""), f"{OCI_TAR}+zstd")])
    with pytest.raises(RefusedError, match="compressed by zstd, which is not understood"):
        fetch(f"oci://{registry.netloc}/team/tiny:v2", tmp_path / "m")


def test_what_another_machine_wrote_without_a_digest_is_fetched_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have crashed before all of it was on the disk, and nothing would tell."""
    large = {**MODEL, "model.safetensors": noise(13 * 2**20)}
    bucket.objects = {f"team/large/{name}": body for name, body in large.items()}

    monkeypatch.setattr("octavo_pull.partial.boot_id", lambda: "another")
    bucket.faults = [Fault("safetensors", times=20), Fault("safetensors", times=1000, status=503)]
    with pytest.raises(UnfinishedError):
        fetch("s3://models/team/large", tmp_path / "m", endpoint=bucket.url)
    monkeypatch.setattr("octavo_pull.partial.boot_id", lambda: "this one")
    bucket.reset()
    fetch("s3://models/team/large", tmp_path / "m", endpoint=bucket.url)
    assert contents(tmp_path / "m") == large
    assert bucket.bodies("safetensors") == 13 * 2**20
