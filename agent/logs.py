"""Logs of tasks for those who read them: as they are, or as they grow until their task has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import IO

from agent.attempt import Attempt
from agent.attempts import AttemptDirectory
from agent.domain import AgentEvent, AttemptEnded, AttemptId, TaskEnded
from agent.leases import NotEnoughError
from agent.left import open_left
from nhop_models.contract import TaskId

CHUNK_BYTES = 1 << 16
MAX_FOLLOWERS = 64
"""Logs that are followed at once; each costs an open file and a look at it now and then."""

LOOK_PAUSE = 0.2
"""Seconds between two looks at a log that is followed: tasks ring for reports, not for what they print."""


class LogReader:
    """A place in a log, which need not be there yet; close it.

    ``offset`` is the first byte wanted, negative: from the end. It reads what was opened even where
    the file is deleted meanwhile. OSError where the file cannot be read.
    """

    def __init__(self, directory: AttemptDirectory, task: TaskId, offset: int = 0) -> None:
        self._directory = directory
        self._task = task
        self._file: IO[bytes] | None = None
        self._place = 0
        self.open()
        self._place = max(0, self.size + offset) if offset < 0 else offset

    @property
    def size(self) -> int:
        """Bytes of the log as it is now."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def open(self) -> None:
        """Opens the log if it is there now."""
        if self._file is None:
            with contextlib.suppress(FileNotFoundError):
                self._file = open_left(self._directory.log_path(self._task))

    def close(self) -> None:
        """Closes the log."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def read(self, end: int | None = None) -> bytes:
        """The next piece, at most 64 KiB and not beyond ``end``; empty where there is no more now."""
        self.open()
        if self._file is None:
            return b""
        if self.size <= self._place and self._replaced():
            self.close()
            self._place = 0
            return await self.read(end)
        length = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - self._place)
        if length <= 0 or self.size <= self._place:
            return b""
        data = await asyncio.to_thread(os.pread, self._file.fileno(), length, self._place)
        self._place += len(data)
        return data

    def _replaced(self) -> bool:
        """Whether the task was forked anew, and writes another file."""
        assert self._file is not None
        try:
            now = self._directory.log_path(self._task).lstat()
        except FileNotFoundError:
            return False
        return not os.path.samestat(now, os.fstat(self._file.fileno()))


class Follower:
    """Somebody who reads a log as it grows."""

    def __init__(self, attempt: Attempt, task: TaskId, offset: int) -> None:
        self.attempt = attempt.id
        self.task = task
        self.reader = LogReader(attempt.directory, task, offset)
        self.over = asyncio.Event()
        if any(_ends(event, task) for _, event in attempt.log.events):
            self.over.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What there is and what is added, until the task has ended."""
        while True:
            over = self.over.is_set()  # asked before the last look: nothing is written after the end
            while data := await self.reader.read():
                yield data
            if over:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_PAUSE):
                    await self.over.wait()


class Followers:
    """Who follows which log of an agent."""

    def __init__(self) -> None:
        self._followers: set[Follower] = set()

    @contextlib.contextmanager
    def add(self, attempt: Attempt, task: TaskId, offset: int) -> Iterator[Follower]:
        """A follower for the time of the context; NotEnoughError where there are too many."""
        if len(self._followers) >= MAX_FOLLOWERS:
            message = f"{MAX_FOLLOWERS} logs are followed on this host already; end one of these first"
            raise NotEnoughError("FOLLOWERS", 1, 0, message)
        follower = Follower(attempt, task, offset)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            follower.reader.close()

    def take(self, attempt: AttemptId, event: AgentEvent) -> None:
        """Something happened in an attempt."""
        for follower in self._of(attempt):
            if _ends(event, follower.task):
                follower.over.set()

    def forget(self, attempt: AttemptId) -> None:
        """The files of an attempt are about to be deleted: what is open stays readable."""
        for follower in self._of(attempt):
            with contextlib.suppress(OSError):
                follower.reader.open()
            follower.over.set()

    def _of(self, attempt: AttemptId) -> list[Follower]:
        return [follower for follower in self._followers if follower.attempt == attempt]


def _ends(event: AgentEvent, task: TaskId) -> bool:
    return isinstance(event, AttemptEnded) or (isinstance(event, TaskEnded) and event.task == task)
