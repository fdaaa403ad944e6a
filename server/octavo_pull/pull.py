"""A pull from beginning to end: look whether it is done, wait for one's turn, resolve, fetch, unpack, show."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import httpx

from octavo_common.pulled_model import MARKER, PARTIAL, PulledFile, PulledModel, missing_part, read_marker
from octavo_pull.errors import ChangedError, RefusedError, UnfinishedError
from octavo_pull.fetch import Downloader
from octavo_pull.lock import Lock
from octavo_pull.open_origin import Options, open_origin
from octavo_pull.partial import Partial, check_space, disk_error
from octavo_pull.plan import Origin
from octavo_pull.source import HuggingFaceSource, OCISource, Source
from octavo_pull.tally import Tally
from octavo_pull.unpack import settle, unpack
from octavo_pull.web import client, patiently

T = TypeVar("T")
_GONE: Final = (404, 410)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is in the directory now, and whether it was there before."""

    model: PulledModel
    was_there: bool
    unverified: tuple[str, ...] = ()


def pull(source: Source, directory: Path, options: Options, tally: Tally) -> Pulled:
    """Make `directory` the model that `source` names.

    Raises:
        PullError: it is not; `retryable` says whether it may be when this is run again.
    """
    target = _checked(directory)
    if (model := _complete(source, target)) is not None:
        return Pulled(model, was_there=True)
    partial = Partial(target)
    done: list[PulledModel] = []

    def waiting(host: str) -> bool:
        tally.phase(f"waiting for another pull, on {host}")
        done.extend(found for found in [_complete(source, target)] if found)
        return bool(done)

    try:
        with Lock(partial.directory, waiting) as lock:
            model = done[0] if done else _complete(source, target)
            if model is not None:
                partial.clear() if lock.held else partial.clear_empty()
                return Pulled(model, was_there=True)
            with client(options.connections, options.seconds) as http:
                pulled = _Pull(source, partial, lock, options, tally, http).run()
            partial.clear()
            return pulled
    except OSError as error:
        if error.filename is None and partial.ranges:
            raise disk_error(error, partial) from error
        raise UnfinishedError(f"{error.filename or target} cannot be written: {error.strerror or error}") from error


class _Pull:
    """One pull that holds the lock."""

    def __init__(
        self, source: Source, partial: Partial, lock: Lock, options: Options, tally: Tally, http: httpx.Client
    ) -> None:
        self._source, self._partial, self._lock = source, partial, lock
        self._options, self._tally, self._http = options, tally, http
        self._waker = threading.Event()

    def run(self) -> Pulled:
        origin = self._patiently(lambda: open_origin(self._source, self._http, self._options))
        resumed = self._partial.resume(str(self._source))
        if not resumed:
            self._begin(origin)
        try:
            self._fetch(origin)
        except ChangedError:
            self._lock.check()
            self._partial.discard()
            raise
        except RefusedError as error:
            if not resumed or error.status not in _GONE:
                raise
            self._tally.note(f"what was begun with is gone ({error}); it is begun anew")
            self._lock.check()
            self._begin(origin)
            self._fetch(origin)
        return self._commit()

    def _begin(self, origin: Origin) -> None:
        self._tally.phase(f"asking for {self._source}")
        self._partial.begin(self._patiently(origin.plan))

    def _fetch(self, origin: Origin) -> None:
        partial, plan = self._partial, self._partial.plan
        done = sum(partial.done(index) for index in range(len(plan.files)))
        ready = len(partial.verified | partial.unpacked)
        self._tally.begin(done=done, total=plan.total, files=ready, total_files=len(plan.files))
        self._tally.phase("downloading")
        check_space(partial)
        downloader = Downloader(
            self._http,
            origin,
            partial,
            self._tally,
            lost=self._lock.lost,
            patience=self._options.patience,
            part_bytes=self._options.part_bytes,
        )
        downloader.run(self._options.connections)

    def _commit(self) -> Pulled:
        partial, plan = self._partial, self._partial.plan
        archives = [index for index, file in enumerate(plan.files) if file.unpack]
        self._lock.check()
        for index in archives:
            if index not in partial.unpacked:
                name = plan.files[index].name
                self._tally.phase(f"unpacking {name}")
                kind, tick = plan.files[index].unpack, self._lock.raise_if_lost
                unpack(partial.path(index), kind, partial.model, name, tick=tick, took=partial.took)
                partial.unpack(index)
        path = self._source.path if isinstance(self._source, OCISource) else ""
        root = settle(partial.model, plan.source, path) if archives or path else partial.model
        checked = {file.name: file.digest for index, file in enumerate(plan.files) if index not in partial.unchecked}
        digests = checked | partial.digests
        paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MARKER)
        files = tuple(
            PulledFile(
                str(path.relative_to(root)), path.stat().st_size, digests.get(str(path.relative_to(partial.model)))
            )
            for path in paths
        )
        self._tally.phase("putting it in place")
        model = partial.commit(root, files, self._lock.check)
        return Pulled(model, was_there=False, unverified=tuple(plan.files[i].name for i in sorted(partial.unchecked)))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self._options.patience, self._waker.wait, str(self._source))


def _checked(directory: Path) -> Path:
    """The directory's own path.

    Raises:
        RefusedError: it cannot be put in place by a rename.
    """
    given = directory.expanduser().absolute()
    try:
        target = given.parent.resolve() / given.name
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"{given.parent} is no directory that can be written: {error.strerror}") from error
    if not target.name or target.name == PARTIAL or PARTIAL in target.parts:
        raise RefusedError(f"DIR {directory}: give a directory of another name")
    if target.is_mount():
        raise RefusedError(f"DIR {directory} is a mount point; give a directory inside it, such as {target / 'model'}")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RefusedError(f"DIR {directory} is no directory")
    return target


def _complete(source: Source, target: Path) -> PulledModel | None:
    """The model if it is there; None if the directory is free.

    Raises:
        RefusedError: something else is there.
    """
    try:
        free = not target.is_dir() or not any(target.iterdir())
    except OSError as error:
        raise UnfinishedError(f"{target} cannot be read: {error.strerror}") from error
    if free:
        return None
    model = read_marker(target)
    if model is None:
        raise RefusedError(f"{target} has files that were not pulled; give another directory, or remove it")
    if not _is_same(source, model):
        raise RefusedError(f"{target} has {model.source}; give another directory for {source}, or remove it")
    if (missing := missing_part(target)) is not None:
        raise RefusedError(f"{target} {missing}; remove it, and pull again")
    return model


def _is_same(source: Source, model: PulledModel) -> bool:
    """Whether what was pulled is what is asked for, also where one names the branch or tag and the other the commit."""
    match source:
        case HuggingFaceSource():
            pinned = str(HuggingFaceSource(source.repo, model.revision))
            return str(source) in (model.source, pinned) and model.source.startswith(f"hf://{source.repo}@")
        case OCISource(digest=str(digest)):
            repository = str(OCISource(source.registry, source.repository, None, None))
            same = model.source.startswith((f"{repository}:", f"{repository}@"))
            return model.revision == digest and same and model.source.partition("#")[2] == source.path
        case _:
            return str(source) == model.source
