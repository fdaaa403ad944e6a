"""What a model elsewhere is: its revision, or one small file of it, for who wants to know it and not have it."""

from octavo_pull.digests import has_digest
from octavo_pull.errors import RefusedError, UnfinishedError
from octavo_pull.http_get import get_small
from octavo_pull.open_origin import Options, open_origin
from octavo_pull.source import Source
from octavo_pull.web import TransientError, client


def resolve(source: Source, options: Options) -> str:
    """The revision that `source` is now: a commit, a digest; asked for once.

    Raises:
        PullError: it cannot be told.
    """
    try:
        with client(1, options.seconds) as http:
            return open_origin(source, http, options).plan().revision
    except TransientError as error:
        raise UnfinishedError(str(error)) from error


def peek(source: Source, name: str, limit: int, options: Options) -> bytes:
    """The file's content, of at most `limit` bytes; asked for once, and verified where the source tells a digest.

    Raises:
        PullError: it cannot be had, or lies in an archive.
    """
    what = f"{name} of {source}"
    try:
        with client(1, options.seconds) as http:
            origin = open_origin(source, http, options)
            found = next((file for file in origin.plan().files if file.name == name), None)
            if found is None:
                raise RefusedError(f"{what} is in an archive, which is not unpacked for it")
            body = get_small(http, origin.address(found), {}, limit, what).content
    except TransientError as error:
        raise UnfinishedError(f"{what}: {error}") from error
    if has_digest(body, found.digest) is False:
        raise RefusedError(f"{what} has another digest than {found.digest}")
    return body
