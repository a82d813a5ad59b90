"""The output directory of a study: made, locked, and refused where it is in use."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.errors import UsageError
from coordinator.kept_logs import LOGS_FOLDER

DATABASE_FILE = "study.db"
AGENT_FOLDER = "agent"
"""The state of the private agent, for as long as it lives."""


class StudyDirectory:
    """An output directory that only this process writes, until ``close``.

    Made by ``create``; a context manager that closes it.
    """

    def __init__(self, path: Path, lock: int, made: tuple[Path, ...]) -> None:
        self.path = path
        self._lock: int | None = lock
        self._made = made

    @classmethod
    def create(cls, path: Path | str) -> Self:
        """Makes the directory where it is missing, and locks it.

        Raises UsageError where it cannot be written, holds a study, or is used by another coordinator.
        """
        path = Path(path).absolute()
        try:
            made = make_folder(path)
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be made the output directory ({error.strerror}); choose another --output"
            ) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"{path}: is not writable; choose another --output, or change its permissions")
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UsageError(
                f"{path}: another nhop-coordinator writes here; choose another --output"
            ) from None
        except OSError as error:
            os.close(lock)
            raise UsageError(
                f"{path}: cannot be locked ({error.strerror}); choose another --output"
            ) from error
        directory = cls(path, lock, made)
        if directory.database.exists():
            directory.close()
            raise UsageError(f"{path}: already holds a study; choose another --output, or remove it")
        return directory

    @staticmethod
    def in_use(path: Path) -> bool:
        """Whether a coordinator writes to an output directory now."""
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(lock)
        return False

    @property
    def database(self) -> Path:
        """The store (SQLite)."""
        return self.path / DATABASE_FILE

    @property
    def logs(self) -> Path:
        """Logs of failed tasks, of the agent, and of the coordinator's own defects."""
        return self.path / LOGS_FOLDER

    def close(self) -> None:
        """Unlocks; folders that ``create`` made and that are still empty are removed again."""
        if self._lock is None:
            return
        remove_empty(self._made)
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_folder(path: Path) -> tuple[Path, ...]:
    """Makes a folder and those around it where they are missing, all or none; returns them. OSError."""
    path = path.absolute()
    made = tuple(folder for folder in (path, *path.parents) if not folder.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: tuple[Path, ...]) -> None:
    """Removes what ``make_folder`` has made, as far as nothing is in it."""
    with contextlib.suppress(OSError):  # not empty, or gone
        for folder in folders:
            folder.rmdir()
