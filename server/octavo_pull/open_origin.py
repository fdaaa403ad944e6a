"""From a source to what can be asked for its files."""

from dataclasses import dataclass, field
from pathlib import Path

import httpx

from octavo_pull.errors import RefusedError
from octavo_pull.fetch import PART_BYTES
from octavo_pull.plan import Origin
from octavo_pull.source import HTTPSource, HuggingFaceSource, OCISource, S3Source, Source
from octavo_pull.web import Patience


@dataclass(frozen=True, slots=True)
class Options:
    """How to pull; none of it changes what is pulled."""

    connections: int = 8
    token_file: Path | None = None
    docker_config: Path | None = None
    anonymous: bool = False
    patience: Patience = field(default_factory=Patience)
    part_bytes: int = PART_BYTES
    seconds: float = 30.0  # that a server may be silent


def open_origin(source: Source, http: httpx.Client, options: Options) -> Origin:
    """What can be asked for the files of a source. Libraries of the other kinds are not imported."""
    try:
        match source:
            case HuggingFaceSource():
                from octavo_pull.hugging_face import HuggingFaceOrigin

                return HuggingFaceOrigin(source, options.token_file, options.seconds)
            case S3Source():
                from octavo_pull.s3 import S3Origin

                return S3Origin(source, http, anonymous=options.anonymous, seconds=options.seconds)
            case HTTPSource():
                from octavo_pull.http_source import HTTPOrigin

                return HTTPOrigin(source, http)
            case OCISource():
                from octavo_pull.oci import OCIOrigin

                return OCIOrigin(source, http, options.docker_config)
    except ModuleNotFoundError as error:
        raise RefusedError(f"{source} needs the module {error.name!r}: pip install 'octavo[pull]'") from error
