"""S3 and stores that speak like it: `obstore` lists and signs, with credentials from where AWS's tools have them."""

import configparser
import hashlib
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from octavo_pull.errors import PullError, RefusedError
from octavo_pull.http_get import get_small
from octavo_pull.names import choose, safe_name
from octavo_pull.plan import Address, File, Plan
from octavo_pull.sha256sums import LIST_NAME, LONGEST_LIST, parse_sums
from octavo_pull.source import S3Source
from octavo_pull.web import TransientError

SIGNED_FOR: Final = timedelta(hours=1)
MOST_OBJECTS: Final = 100_000
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_PARTS: Final = re.compile(r"[0-9a-f]{32}-[0-9]{1,5}")
_SAID: Final = re.compile(r"<Code>([^<]{1,100})</Code>(?:.*?<Message>([^<]{0,300})</Message>)?", re.DOTALL)
_STATUS: Final = re.compile(r"\b([45][0-9]{2})\b")


class S3Origin:
    """The objects below a prefix."""

    def __init__(self, source: S3Source, client: httpx.Client, *, anonymous: bool, seconds: float) -> None:
        from obstore.store import S3Store

        self._source, self._client = source, client
        options: dict[str, Any] = {} if anonymous else _credentials_of_file()
        endpoint = source.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint"] = endpoint
        self._anonymous = anonymous
        try:
            self._store = S3Store(
                source.bucket,
                **options,
                skip_signature=anonymous,
                client_options={
                    "allow_http": bool(endpoint) and str(endpoint).startswith("http:"),
                    "timeout": timedelta(seconds=seconds),
                },
                # What passes is waited out by the pull itself, and told.
                retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=seconds)},
            )
        except Exception as error:  # of obstore's several; each says what is wrong with the settings
            raise RefusedError(f"{source}: {error}") from error

    def plan(self) -> Plan:
        """The objects as they are listed now; the revision is a digest of the listing."""
        prefix = f"{self._source.prefix}/" if self._source.prefix else ""
        objects: dict[str, Any] = {}
        for found in self._list(prefix):
            name = str(found["path"]).removeprefix(prefix)
            if not name.endswith("/"):  # which some tools put there for a folder
                objects[safe_name(name)] = found
        if not objects:
            raise RefusedError(f"{self._source}: there is no object below this prefix")
        sums = self._sums(prefix) if LIST_NAME in objects else {}
        names = choose(objects, str(self._source))
        files = tuple(_file(name, f"{prefix}{name}", objects[name], sums.get(name)) for name in names)
        told = "".join(f"{file.name}\0{file.size}\0{file.etag}\n" for file in files)
        return Plan(str(self._source), f"listing-sha256:{hashlib.sha256(told.encode()).hexdigest()}", files)

    def address(self, file: File) -> Address:
        """The object's address, signed for an hour."""
        return self._address(file.address)

    def renew(self) -> bool:
        """Every address is signed anew."""
        return False

    def _address(self, key: str) -> Address:
        from obstore import sign

        if self._anonymous:
            url = f"{self._public_base()}/{key}"
            return Address(url)
        try:
            return Address(sign(self._store, "GET", key, SIGNED_FOR))
        except Exception as error:
            raise _of_store(error, str(self._source)) from error

    def _public_base(self) -> str:
        """Where a bucket is that is open to all."""
        endpoint = self._source.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return f"{(endpoint or f'https://s3.{region}.amazonaws.com').rstrip('/')}/{self._source.bucket}"

    def _list(self, prefix: str) -> list[Any]:
        from obstore import list as list_objects

        found: list[Any] = []
        try:
            for chunk in list_objects(self._store, prefix or None):
                found += chunk
                if len(found) > MOST_OBJECTS:
                    raise RefusedError(
                        f"{self._source} has more than {MOST_OBJECTS} objects; give the model's own prefix"
                    )
        except PullError:
            raise
        except Exception as error:
            raise _of_store(error, str(self._source)) from error
        return found

    def _sums(self, prefix: str) -> dict[str, str]:
        answer = get_small(self._client, self._address(f"{prefix}{LIST_NAME}"), {}, LONGEST_LIST, LIST_NAME)
        return {safe_name(name): digest for name, digest in parse_sums(answer.content, str(self._source)).items()}


def _file(name: str, key: str, found: Any, sha256: str | None) -> File:
    tag = str(found["e_tag"]) if found["e_tag"] else None
    bare = (tag or "").strip('"')
    digest = None
    if sha256 is not None:
        digest = f"sha256:{sha256}"
    elif _MD5.fullmatch(bare):
        digest = f"md5:{bare}"
    elif _PARTS.fullmatch(bare):
        digest = f"md5-parts:{bare}"
    return File(name, int(found["size"]), digest, key, etag=tag)


def _of_store(error: Exception, what: str) -> PullError | TransientError:
    """What an error of obstore means: its class says little, its text has the store's answer in it."""
    text = str(error)
    said = _SAID.search(text)
    words = f"{said[1]}: {said[2] or ''}".rstrip(": ") if said else " ".join(text.split())[:300]
    if "169.254." in text or "credential" in text.lower():
        return RefusedError(
            f"{what}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the "
            f"pod an identity, or --anonymous for a public bucket ({words})"[:600]
        )
    if "redirect" in text and "region" in text:
        return RefusedError(f"{what}: the bucket is in another region: set AWS_REGION")
    kind = type(error).__name__
    refused = kind in ("PermissionDeniedError", "UnauthenticatedError", "NotFoundError") or isinstance(
        error, FileNotFoundError | ValueError
    )
    status = _STATUS.search(text)
    if said and not refused:
        refused = said[1] not in ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout")
    if refused or (status and status[1] in ("400", "401", "403", "404")):
        return RefusedError(f"{what}: {words}")
    return TransientError(f"{what}: {words}")


def _credentials_of_file() -> dict[str, str]:
    """Those of the file that AWS_SHARED_CREDENTIALS_FILE names, where the environment has none itself."""
    name = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if not name or os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(Path(name).expanduser().read_text())
        section = parser[profile]
        found = {"access_key_id": section["aws_access_key_id"], "secret_access_key": section["aws_secret_access_key"]}
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"AWS_SHARED_CREDENTIALS_FILE {name} cannot be read: {error}") from error
    except (configparser.Error, KeyError):
        # Not the error's own text: it may quote the line, and the line may be the key.
        raise RefusedError(f"AWS_SHARED_CREDENTIALS_FILE {name} has no key for the profile {profile!r}") from None
    if token := section.get("aws_session_token"):
        found["token"] = token
    return found
