"""The code and data of a study, packed for hosts that do not share this machine's files.

The same folder makes the same archive, byte for byte, so that its digest tells whether a host has it. An
archive is a file without a name: nothing is left of it, however this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from coordinator.domain import Sources, StudySpec
from coordinator.folders import CODE_RULES, DATA_RULES, Entry, PackError, Rules, human, walk

PIECE_BYTES = 1 << 20
_LEVEL = 1  # of gzip: code is small, and data is mostly packed already or numbers


class PackingStoppedError(Exception):
    """Nobody wants the archive any more."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A packed folder (or file): ``name`` is "code" or "data", ``content`` its bytes before packing."""

    name: str
    source: Path
    digest: str
    size: int
    files: int
    content: int
    file: IO[bytes]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.name} {self.source}"

    def describe(self) -> str:
        """Its numbers, for people."""
        files = f"{self.files} file{'s' * (self.files != 1)}"
        return f"{self.source}: {files}, {human(self.content)} ({human(self.size)} packed)"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The archive, in pieces of at most 1 MiB; may be read by several at once."""
        for offset in range(0, self.size, PIECE_BYTES):
            yield await asyncio.to_thread(os.pread, self.file.fileno(), PIECE_BYTES, offset)


@dataclass(frozen=True, slots=True)
class Bundles:
    """What a study needs on its hosts, ``notes`` for the user; a context manager that closes the archives."""

    code: Bundle | None = None
    data: Bundle | None = None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Bundle]:
        return (bundle for bundle in (self.code, self.data) if bundle is not None)

    def put_into(self, spec: StudySpec) -> StudySpec:
        """The study with the digests of its bundles."""
        digests = {bundle.name: bundle.digest for bundle in self}
        training = dataclasses.replace(spec.training, **cast("Any", digests))
        return dataclasses.replace(spec, training=training)

    def close(self) -> None:
        """Gives the archives up."""
        for bundle in self:
            bundle.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def pack(sources: Sources, *more_runs: Path) -> Bundles:
    """Packs what goes along, in a thread; ``more_runs`` are further folders of results.

    Raises PackError, with one clear line, where it cannot be packed.
    """
    stopped = threading.Event()
    sources = dataclasses.replace(sources, runs=(*sources.runs, *more_runs))
    try:
        return await asyncio.to_thread(_pack_all, sources, stopped)
    finally:
        stopped.set()


def _pack_all(sources: Sources, stopped: threading.Event) -> Bundles:
    with contextlib.ExitStack() as stack:
        notes: list[str] = []
        code = data = None
        if sources.code is not None:
            code = _pack("code", sources.code, CODE_RULES, sources, notes, stopped)
            stack.callback(code.file.close)
        if sources.data is not None:
            data = _pack("data", sources.data, DATA_RULES, sources, notes, stopped)
            stack.callback(data.file.close)
        stack.pop_all()
        return Bundles(code, data, tuple(notes))


def _pack(
    name: str, source: Path, rules: Rules, sources: Sources, notes: list[str], stopped: threading.Event
) -> Bundle:
    entries = walk(name, source, rules, sources, notes)
    try:
        file = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115  (the bundle keeps it)
    except OSError as error:
        raise _no_room(name, source, error) from error
    try:
        _write(name, source, entries, file, stopped)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        file.close()
        raise _no_room(name, source, error) from error
    except BaseException:
        file.close()
        raise
    files = [entry for entry in entries if not entry.folder]
    return Bundle(name, source, digest, size, len(files), sum(entry.size for entry in files), file)


def _no_room(name: str, source: Path, error: OSError) -> PackError:
    return PackError(
        name,
        f"{source}: cannot be packed in {tempfile.gettempdir()} ({error.strerror or error}); make "
        "room there, or set TMPDIR to another folder",
    )


def _write(name: str, source: Path, entries: list[Entry], file: IO[bytes], stopped: threading.Event) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in entries:
            if stopped.is_set():
                raise PackingStoppedError
            member = tarfile.TarInfo(entry.name)
            member.mode = 0o755 if entry.executable else 0o644
            if entry.folder:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = entry.size
                with _opened(name, source, entry) as content:
                    tar.addfile(
                        member, cast("IO[bytes]", _Whole(content, name, f"{source}: {entry.name}", stopped))
                    )
            cast("Any", tar).members.clear()  # tarfile keeps them all otherwise


def _opened(name: str, source: Path, entry: Entry) -> IO[bytes]:
    # Not blocking, and no link: it may have become something else since it was looked at.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(entry.path, flags)
    except OSError as error:
        raise PackError(name, f"{source}: {entry.name} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PackError(name, f"{source}: {entry.name} has changed while it was packed; try again")
    return os.fdopen(descriptor, "rb")


class _Whole:
    """A file that gives as many bytes as it is asked for, or raises PackError."""

    def __init__(self, file: IO[bytes], name: str, where: str, stopped: threading.Event) -> None:
        self._file = file
        self._name = name
        self._where = where
        self._stopped = stopped

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if self._stopped.is_set():
            raise PackingStoppedError
        try:
            data = self._file.read(size)
        except OSError as error:
            raise PackError(self._name, f"{self._where} cannot be read ({error.strerror})") from error
        if len(data) < size:
            raise PackError(self._name, f"{self._where} has become shorter while it was packed; try again")
        return data
