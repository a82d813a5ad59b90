"""Data at a URL: fetched whole to this host, once for all tasks that read it, and read as a local file.

The cache has a folder for each state of each URL, ``<hash of the URL>-<hash of the state>/<name>``;
the state is the entity tag, or the time of change, and the size. Who uses one holds a shared lock on
it for as long as its process lives; who fetches or removes holds the lock of the whole cache.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from nhop_models import urls
from nhop_models.base import DataError
from nhop_models.contract import CACHE_VARIABLE
from nhop_models.urls import Trouble

Result = TypeVar("Result")

STALL_SECONDS = 60.0
"""Without an answer, or a byte, for so long a URL is given up."""
MOST_BYTES = 20 << 30
"""What the cache may hold; what is in use stays all the same."""
MOST_FILES = 100_000
"""Files of a folder."""
_SPARE_BYTES = 64 << 20  # room that is left to others on the disk
_ROUNDS = 3  # of data that changes while it is fetched
_TAGS = (
    "ETag", "etag", "md5Hash", "generation", "Content-MD5", "CRC", "checksum", "mtime", "LastModified",
    "last_modified", "Last-Modified", "created",
)  # fmt: skip
"""By what the filesystems of fsspec tell a changed object, the best first."""

_held: set[Path] = set()  # entries of the cache that this process has locked
_fetched: dict[str, str] = {}  # local path -> URL, of this process


class NotNowError(DataError):
    """The data cannot be had at the moment; another attempt may."""


@dataclass(frozen=True, slots=True)
class _File:
    remote: str
    local: str  # relative to the entry of the cache
    size: int | None


@dataclass(frozen=True, slots=True)
class _Remote:
    """What is at a URL now."""

    filesystem: Any
    files: tuple[_File, ...]
    state: str

    @property
    def size(self) -> int:
        return sum(file.size or 0 for file in self.files)


def fetch(url: str) -> Path:
    """Returns the local copy of a file or a folder at any URL that fsspec opens.

    It is fetched unless this host has it in its present state; it is there for as long as the
    process lives, and must not be changed. A path is returned as it is. Raises DataError with the
    URL, the cause and the remedy, NotNowError (a DataError) where the cause may pass, and OSError
    where this host has no room.
    """
    if not urls.is_url(url):
        return Path(url)
    name = urls.file_name(url) or "data"
    if (problem := urls.why_not_opened(url)) is not None:
        raise DataError(f"{url}: {problem}")
    cache = _Cache(_folder(), hashlib.sha256(url.encode()).hexdigest()[:24])
    try:
        path = _current(url, name, cache)
    except NotNowError as error:
        entry = cache.newest()
        if entry is None and isinstance(error, _UnreachableError):
            raise DataError(*error.args) from error
        if entry is None:
            raise
        print(f"{error}; what was fetched of it before is used", flush=True)
        path = entry / name
    _fetched[str(path)] = url
    return path


def with_urls(text: str) -> str:
    """A message in which the local copies of this process have the names of their URLs."""
    for path, url in _fetched.items():
        text = text.replace(path, url)
    return text


class _UnreachableError(NotNowError):
    """Nobody answers: as final as a wrong URL, where there is no copy yet."""


def _current(url: str, name: str, cache: _Cache) -> Path:
    for _ in range(_ROUNDS):
        remote = _in_time(lambda: _look(url, name), url)
        entry = cache.use(remote.state)
        if entry is not None:
            print(f"{url}: fetched before", flush=True)
            return entry / name
        with cache.locked():
            entry = cache.use(remote.state)  # another task may have fetched it meanwhile
            if entry is not None:
                return entry / name
            started = time.monotonic()
            cache.make_room(remote.size, url)
            with cache.temporary(remote.state) as folder:
                _download(remote, folder, url)
                if _in_time(lambda: _look(url, name), url).state == remote.state:
                    cache.keep(folder)
            entry = cache.use(remote.state)
        if entry is not None:
            seconds = time.monotonic() - started
            print(f"{url}: fetched, {remote.size} bytes in {seconds:.1f} s", flush=True)
            return entry / name
    raise NotNowError(f"{url}: changes while it is fetched: wait until it has been written")


def _look(url: str, name: str) -> _Remote:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    info = filesystem.info(path)
    if info["type"] != "directory":
        found, files = {path: info}, [_File(path, name, info.get("size"))]
    else:
        found = filesystem.find(path, detail=True)
        if len(found) > MOST_FILES:
            raise DataError(f"{url}: {len(found)} files; {MOST_FILES} are the most: pack them into fewer")
        files = []
        for remote, details in found.items():
            below = (
                remote[len(path.rstrip("/")) :].lstrip("/") if remote.startswith(path.rstrip("/")) else remote
            )
            if not below or below.endswith("/"):
                continue  # what stands for an empty folder where there are none
            if ".." in PurePosixPath(below).parts or PurePosixPath(below).is_absolute():
                raise DataError(f"{url}: has a file with the name {below!r}, which is not below it")
            files.append(_File(remote, f"{name}/{below}", details.get("size")))
        if not files:
            raise FileNotFoundError(path)
        folders = {str(parent) for file in files for parent in PurePosixPath(file.local).parents}
        both = next((file.local for file in files if file.local in folders), None)
        if both is not None:
            raise DataError(
                f"{url}: {both} is a file and a folder, too, which no disk has: rename one of them"
            )
    state = hashlib.sha256()
    for file in files:
        state.update(f"{file.local}\0{file.size}\0{_tag(found[file.remote])}\n".encode())
    return _Remote(filesystem, tuple(files), state.hexdigest()[:24])


def _tag(info: Mapping[str, Any]) -> str:
    known = next((str(info[key]) for key in _TAGS if info.get(key) is not None), None)
    return known if known is not None else str(sorted(info.items()))


def _download(remote: _Remote, folder: Path, url: str) -> None:
    paths = [folder / file.local for file in remote.files]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    _in_time(
        lambda: remote.filesystem.get([file.remote for file in remote.files], [str(path) for path in paths]),
        url,
        progress=lambda: _bytes_below(folder),
    )
    for file, path in zip(remote.files, paths, strict=True):
        if file.size is not None and path.stat().st_size != file.size:
            raise NotNowError(
                f"{url}: {path.stat().st_size} bytes of {path.name} came, not {file.size}: try again later"
            )


def _in_time(work: Callable[[], Result], url: str, progress: Callable[[], int] = lambda: 0) -> Result:
    """What ``work`` returns; DataError where it fails, or does not get on for STALL_SECONDS."""
    result: list[Result] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failure.append(error)
        finally:
            done.set()

    # A thread, because not every library of fsspec takes a time limit. One that hangs ends with the process.
    threading.Thread(target=run, name="nhop-fetch", daemon=True).start()
    seen, since = 0, time.monotonic()
    while not done.wait(min(1.0, STALL_SECONDS)):
        if (now := progress()) != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since >= STALL_SECONDS:
            raise NotNowError(
                f"{url}: no answer for {STALL_SECONDS:.0f} s: look at the network; try again later"
            )
    if failure:
        _raise(failure[0], url)
    return result[0]


def _raise(error: BaseException, url: str) -> None:
    no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if no_room or isinstance(error, (DataError, MemoryError)) or not isinstance(error, Exception):
        raise error
    diagnosis = urls.diagnose(error)
    kinds = {Trouble.UNREACHABLE: _UnreachableError, Trouble.PASSING: NotNowError}
    raise kinds.get(diagnosis.trouble, DataError)(f"{url}: {diagnosis.why}") from error


def _folder() -> Path:
    given = os.environ.get(CACHE_VARIABLE, "")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "nhop" / "fetched"


class _Cache:
    """The folder of the cache, for one URL; ``key`` is the URL's hash."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def use(self, state: str) -> Path | None:
        """The entry of a state, which stays until this process ends; None where it is not there."""
        return self._hold(self._folder / f"{self._key}-{state}")

    def newest(self) -> Path | None:
        """As ``use``, of the state that was used last."""
        entries = sorted(self._folder.glob(f"{self._key}-*"), key=_used, reverse=True)
        return next((path for entry in entries if (path := self._hold(entry)) is not None), None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else fetches or removes; what an earlier one left unfinished is removed."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for leftover in self._folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def temporary(self, state: str) -> Iterator[Path]:
        """A folder to fetch into, removed unless it is kept; needs ``locked``."""
        # With a name of its own: a download that was given up may still write below its own.
        folder = self._folder / f".{self._key}-{state}.{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path) -> None:
        """Makes a temporary folder, which is whole now, the entry of its state."""
        folder.rename(folder.with_name(folder.stem.removeprefix(".")))

    def make_room(self, size: int, url: str) -> None:
        """Removes what was not used for the longest time; OSError where that is not enough. ``locked``."""
        entries = sorted(self._folder.glob("*-*"), key=_used)
        total = sum(map(_bytes_below, entries))
        for entry in entries:
            free = shutil.disk_usage(self._folder).free
            if total + size <= MOST_BYTES and size + _SPARE_BYTES <= free:
                return
            bytes_of_it = _bytes_below(entry)
            if self._remove(entry):
                total -= bytes_of_it
        free = shutil.disk_usage(self._folder).free
        if size + _SPARE_BYTES > free:
            why = f"{url} has {size} bytes, and {self._folder} has room for {max(free - _SPARE_BYTES, 0)}"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {why}: make room on this host")

    def _hold(self, entry: Path) -> Path | None:
        if entry in _held:
            return entry
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # unlocked by the end of the process
        try:
            os.utime(entry)
            if entry.stat().st_ino == os.fstat(descriptor).st_ino:
                _held.add(entry)
                return entry
        except FileNotFoundError:
            pass  # removed while it was waited for
        os.close(descriptor)
        return None

    def _remove(self, entry: Path) -> bool:
        descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.rename(entry.with_name(f".{entry.name}")), ignore_errors=True)
        except BlockingIOError:
            return False  # in use
        finally:
            os.close(descriptor)
        return True


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(root, name).lstat().st_size
    return total
