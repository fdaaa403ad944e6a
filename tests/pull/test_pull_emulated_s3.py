"""`octavo pull s3://…` against moto's S3: `make setup` puts it beside, as it wants other versions."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pulled import contents, fetch, model_files
from serving import until

PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "s3" / "bin" / "python"
BUCKET, PREFIX = "models", "team/a model+ü"
MODEL = model_files(size=12 * 2**20 + 1)

# Run by that python: boto3 uploads as people's tools do, in parts of 5 MiB.
UPLOAD = """
import json, sys, boto3
from boto3.s3.transfer import TransferConfig
url, bucket, files = json.loads(sys.stdin.read())
client = boto3.client("s3", endpoint_url=url)
client.create_bucket(Bucket=bucket)
parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
for key, path in files.items():
    client.upload_file(path, bucket, key, Config=parts)
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the emulator is, with the model in it."""
    if not PYTHON.is_file():
        pytest.skip("moto is not there: make setup")
    directory = tmp_path_factory.mktemp("upload")
    files = {}
    for name, body in MODEL.items():
        (directory / name).write_bytes(body)
        files[f"{PREFIX}/{name}"] = str(directory / name)
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
    with (directory / "log").open("w+") as log:
        arguments = [str(PYTHON), "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        server = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
        try:
            until(lambda: "Running on http" in (directory / "log").read_text() or server.poll() is not None)
            (url,) = {word for word in (directory / "log").read_text().split() if word.startswith("http://127")}
            text = json.dumps([url, BUCKET, files])
            subprocess.run([str(PYTHON), "-c", UPLOAD], input=text, text=True, check=True, env=environment)
            yield url
        finally:
            server.terminate()
            server.wait(20)


def test_what_boto3_uploaded_in_parts_comes_whole_and_verified(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    pulled = fetch(f"s3://{BUCKET}/{PREFIX}", tmp_path / "m", endpoint=endpoint)
    assert contents(tmp_path / "m") == MODEL
    assert pulled.unverified == ()
    kinds = {file.name: (file.digest or "").partition(":")[0] for file in pulled.model.files}
    assert kinds == {"config.json": "md5", "tokenizer.json": "md5", "model.safetensors": "md5-parts"}
    assert httpx.get(f"{endpoint}/{BUCKET}").status_code == 200  # it lives
