"""Where tasks may write on this host, beside their attempt directory, and what they are told of it.

With a user of their own they can read or write nothing else of the state directory, below which is then::

    user-<uid>/home/       their home, which outlives them: what libraries fetch once, for example
    user-<uid>/tmp/<key>/  temporary files of an attempt; a short name, for sockets are made there
    user-<uid>/fetched/    what they fetched from URLs
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from agent.domain import AttemptId
from agent.task_user import TaskUser, become, capabilities
from nhop.security import handshakes
from nhop_models.contract import CACHE_VARIABLE

logger = logging.getLogger(__name__)

FETCHED = "fetched"
ENTERED, WRITTEN = 0o710, 0o770
"""Permissions of folders that tasks pass through, and of those in which they write."""
REMOVAL_SECONDS = 60.0
_OF_THE_AGENT = (
    "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID",
    "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "NHOP_TLS", "NOTIFY_SOCKET", "STATE_DIRECTORY",
    "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC",
)  # fmt: skip
"""Variables that are for the agent alone, most of them from systemd."""


class TaskPlaces:
    """The places of tasks on one host; ``user`` None: tasks run as the agent's own user, in its own."""

    def __init__(self, state_dir: Path, user: TaskUser | None) -> None:
        self.user = user
        self._base = state_dir if user is None else state_dir / f"user-{user.uid}"

    def open(self, *entered: Path) -> None:
        """Makes the places, and lets tasks pass through ``entered``; raises OSError."""
        if self.user is None:
            return
        folders = {self._base: ENTERED, self._temporary: ENTERED, self._home: WRITTEN, self._fetched: WRITTEN}
        for path, mode in {**dict.fromkeys(entered, ENTERED), **folders}.items():
            path.mkdir(mode=0o700, exist_ok=True)
            self.user.let_in(path, mode)

    def clean(self, kept: Collection[AttemptId]) -> None:
        """Removes what an earlier agent left but files of ``kept``, whose tasks may live; raises OSError."""
        if self.user is None:
            return
        places = {self._temporary_of(attempt) for attempt in kept}
        for path in set(self._temporary.iterdir()) - places:
            remove_tree(path, self.user)

    def command(self, command: Sequence[str]) -> tuple[str, ...]:
        """The command, with what makes it run as the tasks' user."""
        return (*command,) if self.user is None else (*become(self.user, capabilities()), *command)

    @property
    def umask(self) -> int:
        """That of tasks: the agent reads and removes what they make, by the group. -1: the agent's own."""
        return -1 if self.user is None else 0o007

    @property
    def _home(self) -> Path:
        return self._base / "home"

    @property
    def _temporary(self) -> Path:
        return self._base / "tmp"

    @property
    def _fetched(self) -> Path:
        return self._base / FETCHED

    def _temporary_of(self, attempt: AttemptId) -> Path:
        return self._temporary / hashlib.sha256(str(attempt).encode()).hexdigest()[:12]

    def furnish(self, attempt: AttemptId) -> None:
        """Makes the place of an attempt's temporary files; raises OSError."""
        if self.user is not None:
            path = self._temporary_of(attempt)
            path.mkdir(mode=0o700, exist_ok=True)
            self.user.let_in(path, WRITTEN)

    def clear(self, attempt: AttemptId) -> None:
        """Removes the temporary files of an attempt that has ended."""
        if self.user is not None:
            remove_tree(self._temporary_of(attempt), self.user)

    def of_attempt(self, attempt: AttemptId) -> dict[str, str]:
        """Variables of an attempt's tasks, on top of the zygote's."""
        variables = {CACHE_VARIABLE: str(self._fetched)}
        if self.user is not None:
            variables["TMPDIR"] = str(self._temporary_of(attempt))
        return variables

    def of_zygote(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The zygote's variables, from the agent's."""
        environment = handshakes.without(environment)  # TensorFlow's gRPC would write into the logs of tasks
        kept = {name: value for name, value in environment.items() if name not in _OF_THE_AGENT}
        if self.user is None:
            return kept
        kept = {name: value for name, value in kept.items() if not name.startswith("XDG_")}
        names = {"USER": self.user.name, "LOGNAME": self.user.name, "PYTHONNOUSERSITE": "1"}
        return {**kept, **names, "HOME": str(self._home), "TMPDIR": str(self._home)}


def remove_tree(path: Path, user: TaskUser | None) -> None:
    """Removes a folder in which tasks have written, with all in it; logs what stays.

    ``user`` is theirs, None: the agent's own. What a task has closed to all but its user is removed as that
    user, and what lies too deep for this process by one that knows no depth.
    """
    _remove(path)
    if not path.exists():
        return
    # What is the agent's own cannot be removed by the tasks' user: that is said, and no error. Root needs no
    # permissions, and changes none: in the moment of it a task could have put a link there.
    opening = "" if user is None and os.geteuid() == 0 else 'chmod -R u+rwx -- "$1"; '
    script = f'{opening}rm -rf -- "$1"'
    becoming = () if user is None else become(user, capabilities())
    command = [*becoming, "/bin/sh", "-c", script, "sh", str(path)]
    try:
        subprocess.run(command, capture_output=True, check=False, timeout=REMOVAL_SECONDS, env=_PLAIN)
    except (OSError, subprocess.SubprocessError) as error:
        logger.error("%s: cannot be removed: %s", path, error)  # noqa: TRY400
    _remove(path)
    if path.exists():
        logger.error("%s: cannot be removed; look at the permissions of what is in it", path)


def _remove(path: Path) -> None:
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)


_PLAIN = {"PATH": os.defpath}
