"""Models of manifests that are elsewhere: downloaded once, into a cache of this machine."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from octavo_cli.errors import FAILED, WRONG_INPUT, CommandError
from octavo_common.json_fields import ModelConfigError, read_json_object
from octavo_common.pulled_model import read_marker

if TYPE_CHECKING:
    from octavo_operator.api.model_source import ModelSource
    from octavo_pull.source import Source

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9.]+")
_LONGEST_NAME: Final = 80
CONFIG: Final = "config.json"
LONGEST_CONFIG: Final = 4 * 1024 * 1024
ASK_SECONDS: Final = 10.0


def source_of(source: "ModelSource") -> "Source | None":
    """What is to be downloaded for a manifest's `spec.model.source`; None if it is here, or only in a cluster.

    Raises:
        CommandError: it is none that can be.
    """
    if not source.is_downloaded and source.oci is None:
        return None
    from octavo_operator.render.pull import pull_source
    from octavo_pull.errors import RefusedError
    from octavo_pull.source import image_source, parse_source

    try:
        if source.oci is not None:
            return image_source(source.oci.image, source.oci.path)
        sha256 = source.http.sha256 if source.http is not None else None
        endpoint = source.s3.endpoint if source.s3 is not None else None
        return parse_source(pull_source(source), sha256=sha256, endpoint=endpoint)
    except RefusedError as error:
        raise CommandError(f"spec.model.source: {error}", exit_code=WRONG_INPUT) from error


def pull_for(source: "Source") -> Path:
    """The directory with the model, which is downloaded if it is not there, with progress on stderr.

    Raises:
        CommandError: it cannot be had.
    """
    from octavo_cli.pull_progress import PullProgress
    from octavo_pull.errors import PullError
    from octavo_pull.open_origin import Options
    from octavo_pull.pull import pull
    from octavo_pull.tally import Tally

    directory, tally = cache_directory(source), Tally()
    try:
        with PullProgress(tally, as_json=False):
            pull(source, directory, Options(), tally)
    except PullError as error:
        code = FAILED if error.retryable else WRONG_INPUT
        raise CommandError(f"the model cannot be had: {error}", exit_code=code) from error
    return directory


def config_of(source: "Source") -> dict[str, Any]:
    """The model's config.json: of the cache, else from where the model is, which is asked once.

    Raises:
        ModelConfigError: it cannot be read, and why.
    """
    from octavo_pull.errors import PullError
    from octavo_pull.open_origin import Options
    from octavo_pull.peek import peek

    directory = cache_directory(source)
    if read_marker(directory) is not None:
        return read_json_object(directory / CONFIG)
    try:
        content = json.loads(peek(source, CONFIG, LONGEST_CONFIG, Options(seconds=ASK_SECONDS)))
    except PullError as error:
        raise ModelConfigError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ModelConfigError(f"{CONFIG} of {source} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelConfigError(f"{CONFIG} of {source} must hold a JSON object")
    return content


def cache_directory(source: "Source") -> Path:
    """Where a source's model is kept: a name that people recognise, and a digest of the source."""
    given = os.environ.get("OCTAVO_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "octavo"
    text = str(source)
    name = _NOT_IN_NAMES.sub("-", text.partition("://")[2]).strip("-.")[:_LONGEST_NAME]
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return base.expanduser().absolute() / "models" / f"{name}-{digest}"
