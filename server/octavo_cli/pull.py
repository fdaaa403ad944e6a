"""`octavo pull`: fetch a model into a directory."""

import json
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from octavo_cli.errors import FAILED, WRONG_INPUT, CommandError

if TYPE_CHECKING:
    from octavo_pull.errors import PullError
    from octavo_pull.pull import Pulled

_FILE = click.Path(path_type=Path)


@click.command(short_help="Fetch a model, verified and whole or not at all.")
@click.argument("source", metavar="SOURCE")
@click.argument("directory", metavar="DIR", type=_FILE, required=False)
@click.option("--sha256", metavar="HEX", help="Digest of an https:// archive, or of a directory's SHA256SUMS.")
@click.option("--endpoint", metavar="URL", help="Address of an S3 store.  [default: AWS's]")
@click.option("--anonymous", is_flag=True, help="Ask S3 without credentials, for a public bucket.")
@click.option("--token-file", metavar="FILE", type=_FILE, help="File with a hub's token.  [default: HF_TOKEN]")
@click.option(
    "--docker-config",
    metavar="FILE",
    type=_FILE,
    help="Docker config file with a registry's password.  [default: $DOCKER_CONFIG/config.json, ~/.docker/config.json]",
)
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Ranges fetched at a time.",
)
@click.option("--resolve", is_flag=True, help="Only tell which revision SOURCE is now; takes no DIR.")
@click.option("--result-file", metavar="FILE", type=_FILE, help="Also write the result there: /dev/termination-log.")
@click.option("--json", "as_json", is_flag=True, help="Print an object a line: progress, and at the end the result.")
def pull(source: str, directory: Path | None, result_file: Path | None, as_json: bool, **given: Any) -> int:
    """Fetch a model into DIR, which is there whole in the end, or not at all.

    \b
    SOURCE is one of
      hf://ORG/NAME[@REVISION]            a repository of the Hugging Face Hub (HF_ENDPOINT: of another)
      s3://BUCKET/PREFIX                  the objects below a prefix (AWS_* variables)
      https://HOST/NAME.tar --sha256 HEX  an archive; .tar.gz, too
      https://HOST/DIR/ --sha256 HEX      what SHA256SUMS in it lists, whose digest HEX is
      oci://REGISTRY/REPO:TAG[@sha256:…]  an image with the model in it, or an artifact of files

    Run again, it goes on where it was; if DIR is complete, it does nothing. Exits with 1 if trying again may help, with
    2 if not.
    """
    from octavo_cli.pull_progress import PullProgress
    from octavo_pull.errors import PullError, RefusedError
    from octavo_pull.open_origin import Options
    from octavo_pull.peek import resolve
    from octavo_pull.pull import pull as fetch
    from octavo_pull.source import parse_source
    from octavo_pull.tally import Tally

    if given.pop("resolve") == (directory is not None):
        raise CommandError(
            "pull: give a DIR to fetch the model into, or --resolve, and not both", exit_code=WRONG_INPUT
        )
    signal.signal(signal.SIGTERM, _end)
    tally = Tally()
    try:
        try:
            parsed = parse_source(source, sha256=given.pop("sha256"), endpoint=given.pop("endpoint"))
        except RefusedError as error:
            _keep(result_file, str(error))
            raise CommandError(f"pull: {error}", exit_code=WRONG_INPUT) from error
        if directory is None:
            _tell_revision(str(parsed), resolve(parsed, Options(**given)), result_file, as_json=as_json)
            return 0
        with PullProgress(tally, as_json=as_json):
            pulled = fetch(parsed, directory, Options(**given), tally)
    except PullError as error:
        _tell_error(error, result_file, as_json=as_json)
        raise CommandError(f"pull: {error}", exit_code=FAILED if error.retryable else WRONG_INPUT) from error
    _tell(pulled, directory, result_file, as_json=as_json)
    return 0


def _tell_revision(source: str, revision: str, result_file: Path | None, *, as_json: bool) -> None:
    result = {"source": source, "revision": revision}
    _keep(result_file, json.dumps(result))
    click.echo(json.dumps({"event": "resolved", **result}) if as_json else revision)


def _end(number: int, frame: FrameType | None) -> None:
    """In order, so that the lock is given back. A container's first process is not ended by the signal itself."""
    raise SystemExit(128 + number)


def _tell_error(error: "PullError", result_file: Path | None, *, as_json: bool) -> None:
    _keep(result_file, str(error))
    if as_json:
        click.echo(json.dumps({"event": "error", "message": str(error), "retryable": error.retryable}))


def _tell(pulled: "Pulled", directory: Path, result_file: Path | None, *, as_json: bool) -> None:
    from octavo_pull.partial import gib

    model = pulled.model
    size = sum(file.size for file in model.files)
    result: dict[str, Any] = {"source": model.source, "revision": model.revision}
    result |= {"files": len(model.files), "bytes": size}
    _keep(result_file, json.dumps(result))
    if as_json:
        more = {"directory": str(directory), "wasThere": pulled.was_there, "unverified": list(pulled.unverified)}
        click.echo(json.dumps({"event": "done", **result, **more}))
        return
    was = "was there already" if pulled.was_there else "is complete"
    click.echo(f"{directory} {was}: {model.source}, revision {model.revision}, {len(model.files)} files, {gib(size)}")


def _keep(path: Path | None, text: str) -> None:
    """A termination log that cannot be written is no reason to fail."""
    if path is None:
        return
    try:
        path.write_text(f"{text}\n")
    except OSError as error:
        click.echo(f"octavo: warning: --result-file {path}: {error.strerror}", err=True)
