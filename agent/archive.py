"""Unpacking an archive that someone else made: regular files and folders, below one new folder, or nothing.

The archive is decompressed into a plain file first, up to a limit, so that nothing is believed of what its
headers say about sizes. Names are checked one by one before anything is made.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from agent.leases import NotEnoughError
from nhop_models.contract import printable

MAX_NAME_BYTES = 2_000
MAX_PART_BYTES = 255
MAX_DEPTH = 200
"""Folders within each other: what removes them goes as deep as Python can."""
_CHUNK = 1 << 20
_HEADER_BYTES = 1 << 20
"""The most that one member's headers may have: tarfile reads long names and the like at once."""
_DAMAGED = (
    tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError, zlib.error,
    gzip.BadGzipFile,
)  # fmt: skip
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArchiveError(Exception):
    """The archive is not as it must be; the message names the member and the cause."""


class UnpackingStoppedError(Exception):
    """Nobody wants the archive any more."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The largest archive that is taken, in bytes as it comes, in bytes unpacked, and in members.

    A coordinator packs at most 1 GiB; headers and padding come on top.
    """

    packed: int = 3 << 29
    unpacked: int = 3 << 29
    members: int = 100_000


def unpack(archive: Path, digest: str, folder: Path, limits: ArchiveLimits, stopped: threading.Event) -> None:
    """Unpacks ``archive``, whose SHA-256 must be ``digest``, into ``folder``, which it makes.

    Raises ArchiveError, NotEnoughError where it is over a limit or the disk is full, OSError, and
    UnpackingStoppedError once ``stopped`` is set; ``folder`` is then not there.
    """
    try:
        with archive.open("rb") as packed:
            found = hashlib.file_digest(packed, "sha256").hexdigest()
            if found != digest:
                raise ArchiveError(f"the SHA-256 of what came is {found}, not {digest}: send it again")
            packed.seek(0)
            with tempfile.TemporaryFile(dir=folder.parent) as plain:
                size = _decompress(packed, plain, limits.unpacked, stopped)
                check_room(folder.parent, size)
                plain.seek(0)
                folder.mkdir(mode=0o700)
                with _removed_on_failure(folder):
                    _extract(_Metered(plain), size, folder, limits.members, stopped)
                    _go_on_unless(stopped)  # what was removed meanwhile may have been made again
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(error.strerror) from error
        raise


def check_room(folder: Path, wanted: int) -> None:
    """Raises NotEnoughError where the disk of ``folder`` has not so many bytes free."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < wanted:
        raise no_room(f"{wanted} bytes are wanted, {free} are free")


def no_room(why: str | None) -> NotEnoughError:
    """The disk is full."""
    return NotEnoughError("DISK", 1, 0, f"cannot keep the bundle in the state directory: {why}")


def too_large(what: str, limit: int) -> NotEnoughError:
    """The archive is over a limit of this agent."""
    return NotEnoughError("BUNDLE", limit + 1, limit, f"the archive is too large: {what}")


@contextlib.contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _decompress(packed: IO[bytes], plain: IO[bytes], limit: int, stopped: threading.Event) -> int:
    size = 0
    try:
        with gzip.GzipFile(fileobj=packed, mode="rb") as stream:
            while data := stream.read(_CHUNK):
                _go_on_unless(stopped)
                size += len(data)
                if size > limit:
                    raise too_large(f"it unpacks to more than {limit} bytes", limit)
                plain.write(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArchiveError(f"not a gzip-compressed archive: {error}") from error
    plain.flush()
    return size


class _Metered(io.RawIOBase):
    """A file of which only as much can be read as was allowed since the last ``allow``.

    tarfile believes the sizes in its headers: it reads a "long name" of a gigabyte into memory at once.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = 0

    def allow(self, size: int) -> None:
        """So many bytes may be read from now on."""
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Reads; ArchiveError where it would be more than is allowed."""
        if not 0 <= size <= self._left:
            raise ArchiveError("the headers of a member are too large, or never end")
        self._left -= size
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes elsewhere."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where the next read begins."""
        return self._file.tell()


def _extract(plain: _Metered, size: int, folder: Path, most: int, stopped: threading.Event) -> None:
    seen: set[str] = set()
    plain.allow(_HEADER_BYTES)
    name = ""
    try:
        with tarfile.open(fileobj=plain, mode="r:") as tar:
            while (member := tar.next()) is not None:
                _go_on_unless(stopped)
                name = member.name
                if len(seen) == most:
                    raise too_large(f"it has more than {most} members", most)
                _check(member, size, folder, seen)
                seen.add(name)
                _make(member, plain, folder / name)
                cast("Any", tar).members.clear()  # tarfile keeps them all otherwise
                plain.allow(_HEADER_BYTES)
            end = tar.offset
    except ArchiveError:
        raise
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _of(name, "is a file, and a folder for other members") from error
    except _DAMAGED as error:
        raise ArchiveError(f"not a tar archive, or damaged behind {_quoted(name)}: {error}") from error
    # tarfile takes a damaged header for the end.
    _check_end(plain, end, size, name)


def _check(member: tarfile.TarInfo, size: int, folder: Path, seen: set[str]) -> None:
    """Raises ArchiveError where ``member`` is not what may be unpacked."""
    name = member.name
    if "\0" in name or not name:
        raise _of(name, "has no name, or a NUL in it")
    if name.startswith("/"):
        raise _of(name, "has an absolute path")
    parts = name.split("/")
    if ".." in parts:
        raise _of(name, "leads out of the folder with '..'")
    if "" in parts or "." in parts:
        raise _of(name, "must be written without '.' and '//'")
    encoded = os.fsencode(name)
    if len(encoded) > MAX_NAME_BYTES or any(len(os.fsencode(part)) > MAX_PART_BYTES for part in parts):
        raise _of(name, f"is longer than {MAX_NAME_BYTES} bytes, or {MAX_PART_BYTES} for one part")
    if len(parts) > MAX_DEPTH:
        raise _of(name, f"is nested more than {MAX_DEPTH} folders deep")
    if member.issym() or member.islnk():
        raise _of(name, f"is a link (to {_quoted(member.linkname)})")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        raise _of(name, "is neither a regular file nor a folder")
    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
        raise _of(name, "ends behind the end of the archive")
    if name in seen:
        raise _of(name, "is there twice")
    if hasattr(tarfile, "data_filter"):  # not in every Python 3.11
        tarfile.data_filter(member, str(folder))


def _make(member: tarfile.TarInfo, plain: _Metered, path: Path) -> None:
    if member.isdir():
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    mode = 0o755 if member.mode & 0o100 else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as target:
        plain.seek(member.offset_data)
        left = member.size
        while left:
            plain.allow(_CHUNK)
            data = plain.read(min(left, _CHUNK))
            left -= len(data)
            target.write(data)


def _check_end(plain: _Metered, offset: int, size: int, name: str) -> None:
    plain.seek(offset)
    while offset < size:
        plain.allow(_CHUNK)
        data = plain.read(min(size - offset, _CHUNK))
        if data.strip(b"\0"):
            raise ArchiveError(f"the archive is damaged behind {_quoted(name)}")
        offset += len(data)


def _go_on_unless(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise UnpackingStoppedError


def _of(name: str, what: str) -> ArchiveError:
    return ArchiveError(f"the member {_quoted(name)} {what}")


def _quoted(name: str) -> str:
    return repr(printable(name)[:200])
