"""Files that go between a coordinator and an attempt: what its tasks left, what it shall begin with.

What a task left was written by the user's code as well as by ours: only regular files of the
artifacts folder are given out, and no link is followed (``agent.left``). A file is opened once, so that
a newer one of its name which replaces it meanwhile does not tear it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import IO

from agent.leases import NotEnoughError
from agent.left import FLAGS, StrangeFileError, open_left
from nhop_models.contract import ARTIFACTS_FOLDER, RESTORE_FILE

CHUNK_BYTES = 1 << 20
MAX_GIVEN_BYTES = 16 << 30
"""The largest file that a coordinator may give to an attempt."""
GIVEN_FILES = (RESTORE_FILE,)
"""Files that a coordinator may give to an attempt."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoArtifactError(Exception):
    """There is no such file."""


def open_artifact(directory: Path, name: str) -> IO[bytes]:
    """Opens a file that a task of the attempt left; NoArtifactError where there is none to give out."""
    try:
        folder = os.open(directory / ARTIFACTS_FOLDER, FLAGS | os.O_DIRECTORY)
        try:
            return open_left(name, folder)
        finally:
            os.close(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoArtifactError(f"there is no {name}") from error
    except (StrangeFileError, IsADirectoryError) as error:
        raise NoArtifactError(f"{name} is not a regular file") from error


class GivenFile:
    """A file on its way from the coordinator: under a temporary name until it is whole.

    A context manager: what was not put in place when it ends is removed. Raises NotEnoughError where
    the disk is full, OSError for other trouble.
    """

    def __init__(self, directory: Path, name: str, size: int) -> None:
        self._directory = directory
        self._name = name
        self._size = size
        self._written = 0
        self._temporary = directory / f".{name}.{secrets.token_hex(8)}"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> GivenFile:
        disk = os.statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize
        if free < self._size:
            raise self._no_room(f"{self._size} bytes are wanted, {free} are free")
        try:
            self._file = self._temporary.open("xb", buffering=0)
        except OSError as error:
            raise self._explained(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        """Where it is until it is put in place."""
        return self._temporary

    @property
    def missing(self) -> int:
        """Bytes that are still to come; negative: too many came."""
        return self._size - self._written

    def write(self, data: bytes) -> None:
        """Adds a piece."""
        assert self._file is not None
        self._written += len(data)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._explained(error) from error

    def put_in_place(self) -> None:
        """Gives the whole file its name, in the place of an earlier one."""
        self._temporary.replace(self._directory / self._name)

    def _explained(self, error: OSError) -> Exception:
        return self._no_room(error.strerror) if error.errno in _NO_ROOM else error

    def _no_room(self, why: str | None) -> NotEnoughError:
        text = f"cannot keep {self._name} in the state directory: {why}"
        return NotEnoughError("DISK", 1, 0, text)
