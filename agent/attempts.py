"""The attempt directory: all that the agent knows of an attempt, in files.

Beside the files that tasks read and write (see ``nhop_models.contract``) the agent keeps, for itself::

    attempt.json     what was leased, and the limits once it was started (Manifest)
    agent.reports    the agent's own events (EventLog)
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import time
from fractions import Fraction
from pathlib import Path

from agent.domain import AttemptId, Limits, TaskLease
from agent.event_log import FILE_NAME
from agent.left import open_left
from agent.task_places import ENTERED, WRITTEN, remove_tree
from agent.task_user import TaskUser
from agent.written import checked
from nhop_models.contract import (
    DOORBELL_FILE,
    LEASE_FILE,
    TASKS_FOLDER,
    FailureKind,
    Outcome,
    TaskId,
    TaskSpec,
    TaskStatus,
    log_path,
    outcome_path,
    printable,
    spool_path,
    write_atomically,
    write_lease,
)

logger = logging.getLogger(__name__)

DISCARDED_PREFIX = "."
MANIFEST_FILE = "attempt.json"
MAX_OUTCOME_BYTES = 1 << 17
"""Of what a task says at its end: written down as an event, where a byte takes six at the most, it has to be
a record, too."""
LOG_TAIL_BYTES = 8 * 1024
LOG_TAIL_LINES = 30


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What was leased; ``limits`` None until the attempt was started, ``bundles`` are those that it uses.

    ``owner``: whose study it is, as in ``Owners``.
    """

    leases: tuple[TaskLease, ...]
    limits: Limits | None = None
    bundles: tuple[str, ...] = ()
    owner: str = ""

    def lease(self, task: TaskId) -> TaskLease:
        """What a task was given."""
        return next(lease for lease in self.leases if lease.task == task)

    def to_json(self) -> str:
        """For ``attempt.json``."""
        leases = [
            {
                "task": str(each.task),
                "slots": each.slots,
                "port": each.port,
                "gpus": each.gpus,
                "share": str(each.share),
            }
            for each in self.leases
        ]
        limits = None if self.limits is None else dataclasses.asdict(self.limits)
        kept = {"leases": leases, "limits": limits, "bundles": self.bundles, "owner": self.owner}
        return json.dumps(kept)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """From ``attempt.json``; ValueError, KeyError or TypeError where it is damaged."""
        data = json.loads(text)
        leases = tuple(
            TaskLease(TaskId.parse(v["task"]), v["slots"], v["port"], tuple(v["gpus"]), Fraction(v["share"]))
            for v in data["leases"]
        )
        limits = None if data["limits"] is None else Limits(**data["limits"])
        return cls(leases, limits, tuple(data.get("bundles", ())), data.get("owner", ""))


class AttemptDirectory:
    """One attempt's files."""

    def __init__(self, path: Path, user: TaskUser | None = None) -> None:
        """``user``: that of the tasks, where it is not the agent's own."""
        self.path = path
        self._user = user
        self._doorbell: int | None = None

    @classmethod
    def create(
        cls, parent: Path, attempt: AttemptId, manifest: Manifest, user: TaskUser | None = None
    ) -> AttemptDirectory:
        """Makes the directory; OSError where the disk is full, for example, and then leaves nothing."""
        directory = cls(parent / str(attempt), user)
        directory.path.mkdir(mode=0o700)
        doorbell, tasks = directory.path / DOORBELL_FILE, directory.path / TASKS_FOLDER
        try:
            os.mkfifo(doorbell, 0o600)
            tasks.mkdir(mode=0o700)
            directory.write_manifest(manifest)
            if user is not None:
                user.let_in(doorbell, 0o620)
                user.let_in(tasks, WRITTEN)
                user.let_in(directory.path, ENTERED)
        except OSError:
            directory.delete()
            raise
        return directory

    @property
    def events_path(self) -> Path:
        """The agent's own events."""
        return self.path / FILE_NAME

    def spool_path(self, task: TaskId) -> Path:
        """What the task reports."""
        return spool_path(self.path, task)

    def log_path(self, task: TaskId) -> Path:
        """The task's stdout and stderr."""
        return log_path(self.path, task)

    def outcome_path(self, task: TaskId) -> Path:
        """The task's last word."""
        return outcome_path(self.path, task)

    def write_manifest(self, manifest: Manifest) -> None:
        """Keeps what a later agent needs to know."""
        write_atomically(self.path / MANIFEST_FILE, manifest.to_json(), 0o600)

    def read_manifest(self) -> Manifest:
        """What an earlier agent kept; OSError, ValueError, KeyError or TypeError where it is damaged."""
        return Manifest.from_json((self.path / MANIFEST_FILE).read_text())

    def write_spec(self, spec: TaskSpec) -> None:
        """Tells the tasks what to train."""
        spec.write(self.path)

    def renew_lease(self, seconds: float) -> None:
        """Lets the tasks run for ``seconds`` without a living agent; OSError where that cannot be written."""
        try:
            write_lease(self.path, seconds)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # A full disk is no reason to end the tasks: the old file has room for the new time.
            text = repr(time.monotonic() + seconds).encode()
            with (self.path / LEASE_FILE).open("r+b") as file:
                file.write(text)
                file.truncate()

    def end_lease(self) -> None:
        """Makes the tasks of an earlier agent end by themselves, even one that nobody knows of."""
        (self.path / LEASE_FILE).unlink(missing_ok=True)

    def forget_task(self, task: TaskId) -> None:
        """Removes what a task wrote whose fork was lost; it is forked anew."""
        for path in (self.spool_path(task), self.outcome_path(task), self.log_path(task)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.error("cannot remove %s: %s", path, error.strerror)  # noqa: TRY400

    def read_outcome(self, task: TaskId) -> Outcome | None:
        """The task's last word; None where there is none, or a damaged one.

        One that is too large is a failure of the user's code, and one that the system does not let be read
        is one for lack of resources.
        """
        try:
            with open_left(self.outcome_path(task)) as file:
                text = file.read(MAX_OUTCOME_BYTES + 1)
            if len(text) > MAX_OUTCOME_BYTES:
                message = f"{task} said more than {MAX_OUTCOME_BYTES:,} bytes at its end: name fewer metrics"
                return Outcome(TaskStatus.FAILED, FailureKind.USER_CODE, message)
            return checked(Outcome.from_json(text.decode()))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        except OSError as error:
            message = f"the outcome of {task} could not be read by its agent: {error.strerror}"
            return Outcome(TaskStatus.FAILED, FailureKind.RESOURCES, message)

    def log_tail(self, task: TaskId) -> str:
        """The last lines of the task's log, as far as it can be read."""
        try:
            with open_left(self.log_path(task)) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - LOG_TAIL_BYTES))
                data = file.read(LOG_TAIL_BYTES)
        except FileNotFoundError:
            return ""
        except OSError as error:
            logger.error("cannot read %s: %s", self.log_path(task), error.strerror)  # noqa: TRY400
            return ""
        lines = printable(data.decode(errors="replace")).splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def open_doorbell(self) -> int:
        """The reading end of the doorbell, for the event loop."""
        # Opened for writing, too: without a writer it would always be readable, at its end.
        self._doorbell = os.open(self.path / DOORBELL_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._doorbell

    def answer_doorbell(self) -> None:
        """Takes what was rung so far."""
        if self._doorbell is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._doorbell, 1 << 16)

    @property
    def doorbell(self) -> int | None:
        """The open reading end; take it off the event loop before it is closed."""
        return self._doorbell

    def close_doorbell(self) -> None:
        """Closes the reading end."""
        if self._doorbell is not None:
            os.close(self._doorbell)
            self._doorbell = None

    def discard(self) -> None:
        """Gives the directory a name by which nobody takes it for an attempt; it is to be deleted."""
        discarded = self.path.with_name(f"{DISCARDED_PREFIX}{self.path.name}")
        with contextlib.suppress(OSError):  # it is deleted under its own name, then
            self.path = self.path.rename(discarded)

    def delete(self) -> None:
        """Removes the directory and all in it."""
        remove_tree(self.path / TASKS_FOLDER, self._user)
        remove_tree(self.path, None)
