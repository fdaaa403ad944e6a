"""A hub's repositories: `huggingface_hub` asks the API, so that its endpoint, tokens and errors are the usual ones."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from octavo_pull.errors import PullError, RefusedError
from octavo_pull.names import choose, safe_name
from octavo_pull.plan import Address, File, Plan
from octavo_pull.source import HuggingFaceSource
from octavo_pull.web import TransientError

LONGEST_TOKEN = 4096


class HuggingFaceOrigin:
    """A repository; `token_file` has a token in it, of which white space around is no part."""

    def __init__(self, source: HuggingFaceSource, token_file: Path | None, seconds: float) -> None:
        self._source, self._seconds = source, seconds
        self._token = _read_token(token_file) if token_file is not None else None
        self._endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def plan(self) -> Plan:
        """The files of the commit that the revision is now."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

        source = self._source
        api = HfApi(endpoint=self._endpoint, token=self._token)
        try:
            info = api.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=self._seconds)
        except (OfflineModeIsEnabled, HFValidationError) as error:
            raise RefusedError(f"{source}: {error}") from error
        except OSError as error:  # the hub's answers that are errors
            raise _of_hub(error, str(source)) from error
        except Exception as error:
            if type(error).__module__.startswith("httpx"):  # its transport's own, of whichever version
                raise TransientError(f"{self._endpoint}: {str(error) or type(error).__name__}") from error
            raise
        if not info.sha:
            raise RefusedError(f"{source}: the hub names no commit")
        siblings = {safe_name(sibling.rfilename): sibling for sibling in info.siblings or []}
        names = choose(siblings, str(source))
        return Plan(str(source), info.sha, tuple(self._file(name, siblings[name], info.sha) for name in names))

    def address(self, file: File) -> Address:
        """Where the hub resolves the file of the pinned commit."""
        token = self._token or _known_token()
        headers = (("Authorization", f"Bearer {token}"),) if token else ()
        return Address(f"{self._endpoint}/{file.address}", headers)

    def renew(self) -> bool:
        """There is one token."""
        return False

    def _file(self, name: str, sibling: Any, commit: str) -> File:
        if sibling.size is None:
            raise RefusedError(f"{self._source}: the hub tells no size of {name}")
        if sibling.lfs is not None:
            digest = f"sha256:{sibling.lfs.sha256}"
        elif sibling.blob_id:
            digest = f"git-sha1:{sibling.blob_id}"
        else:
            raise RefusedError(f"{self._source}: the hub tells no digest of {name}")
        return File(name, sibling.size, digest, f"{self._source.repo}/resolve/{commit}/{quote(name)}")


def _of_hub(error: OSError, what: str) -> PullError | TransientError:
    """What an error of the hub means, in its own words."""
    response = getattr(error, "response", None)
    if response is None:
        return TransientError(f"{what}: {error}")
    said = getattr(error, "server_message", None) or response.headers.get("X-Error-Message") or str(error)
    message = f"{what}: the hub answers {response.status_code}: {said}"
    if response.status_code in (408, 429) or response.status_code >= 500:
        after = response.headers.get("Retry-After", "")
        return TransientError(message, float(after) if after.isdigit() else None)
    if response.status_code in (401, 403):
        message += " (the token comes from --token-file, or HF_TOKEN)"
    return RefusedError(message, response.status_code)


def _read_token(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(LONGEST_TOKEN + 1).strip()
    except OSError as error:
        raise RefusedError(f"--token-file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        token = ""
    if not token or len(token) > LONGEST_TOKEN or not token.isprintable() or " " in token:
        raise RefusedError(f"--token-file {path}: holds no token")
    return token


def _known_token() -> str | None:
    """That of HF_TOKEN, or of an earlier `hf auth login`."""
    from huggingface_hub import get_token

    return get_token()
