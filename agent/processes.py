"""The processes that the agent answers for: tasks, their end, and what they leave behind.

Tasks are children of the zygote, which reaps them and says so. The agent is a subreaper: when the
zygote dies, its tasks become the agent's own children, and so do processes that outlive their task.
A task is signalled through its pidfd, so that a signal never meets another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.domain import Rung

logger = logging.getLogger(__name__)

SIGNALS = {Rung.STOP: signal.SIGUSR1, Rung.TERMINATE: signal.SIGTERM, Rung.KILL: signal.SIGKILL}
CLEAN_UP_SECONDS = 2.0
"""How long killed leftovers may take to be gone before the agent goes on without them."""
WAIT_STATUS_SECONDS = 2.0
"""How long the zygote may take to reap a task that is gone."""

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Makes orphans among this process's descendants its children; OSError where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a subreaper (prctl)")


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where it is gone or a zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def _stat(pid: int) -> list[bytes] | None:
    """The fields of ``/proc/<pid>/stat`` from the state on; None where they cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def kill_group(pid: int) -> bool:
    """Kills the process group of a task that is gone; whether nothing was left of it."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclass(slots=True)
class _Process:
    pid: int
    pidfd: int
    adopted: bool  # no zygote will reap it
    unwatched: bool = False  # there was no descriptor for it
    timer: asyncio.TimerHandle | None = None


class Processes:
    """The living tasks by pid. ``on_exit`` is called once for each, with its wait status or None."""

    def __init__(
        self,
        on_exit: Callable[[int, int | None], None],
        on_unreaped: Callable[[], None],
        own: Callable[[], Iterable[int]],
    ) -> None:
        """``on_unreaped``: the zygote does not reap; ``own``: children that are no tasks (the zygote)."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._on_unreaped = on_unreaped
        self._own = own
        self._tasks: dict[int, _Process] = {}
        self._child_reaped = asyncio.Event()

    def __contains__(self, pid: int) -> bool:
        return pid in self._tasks

    def add(self, pid: int, *, adopted: bool = False) -> None:
        """A task that lives, or lived a moment ago."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            # Reaped already: the zygote's word about it is on its way, an adopted one's is lost.
            self._tasks[pid] = _Process(pid, -1, adopted)
            self._loop.call_soon(self._look_at, pid)
            return
        except OSError as error:
            # Out of descriptors: the zygote's word has to do, or SIGCHLD where the task is adopted.
            logger.error("no pidfd for task %d: %s", pid, error.strerror)  # noqa: TRY400
            self._tasks[pid] = _Process(pid, -1, adopted, unwatched=True)
            return
        self._tasks[pid] = _Process(pid, pidfd, adopted)
        self._loop.add_reader(pidfd, self._look_at, pid)

    def signal(self, pid: int, rung: Rung) -> None:
        """Sends the signal of a rung; a process that is gone is left alone."""
        process = self._tasks.get(pid)
        if process is None:
            return
        try:
            if process.pidfd >= 0:
                signal.pidfd_send_signal(process.pidfd, SIGNALS[rung])
            elif process.unwatched:
                os.kill(pid, SIGNALS[rung])
        except ProcessLookupError:
            pass
        except PermissionError:
            logger.error("task %d has become another user's (setuid) and cannot be signalled", pid)  # noqa: TRY400

    def reaped_by_zygote(self, pid: int, status: int) -> None:
        """The zygote has reaped a task."""
        if pid in self._tasks:
            self._finish(pid, status)

    def adopt_all(self) -> None:
        """The zygote is dead: its tasks are the agent's children from now on."""
        for process in list(self._tasks.values()):
            process.adopted = True
            if process.pidfd < 0 or process.timer is not None:
                self._look_at(process.pid)

    def child_signalled(self) -> None:
        """For SIGCHLD: reaps leftovers; tasks are reaped when their pidfds say so, if they have one."""
        for process in list(self._tasks.values()):
            if process.unwatched and process.adopted:
                self._look_at(process.pid)
        self._reap_leftovers()
        self._child_reaped.set()

    def strays(self) -> list[int]:
        """Children that are neither the zygote nor a task, and belong to no living task's session."""
        found = []
        for pid in self._children():
            if pid in self._tasks:
                continue
            fields = _stat(pid)
            if fields is not None and int(fields[3]) not in self._tasks:
                found.append(pid)
        return found

    async def clean_up(self, group: int | None = None) -> None:
        """Kills a dead task's process group and all strays, and returns when they are gone."""
        deadline = time.monotonic() + CLEAN_UP_SECONDS
        told: set[int] = set()
        while True:
            self._child_reaped.clear()
            self._reap_leftovers()
            empty = group is None or kill_group(group)
            strays = self.strays()
            if empty and not strays:
                return
            for pid in strays:
                if pid not in told:
                    told.add(pid)
                    logger.warning("killing process %d (%s), left over by a task", pid, _command(pid))
                with contextlib.suppress(ProcessLookupError, PermissionError):  # setuid: not ours to end
                    os.kill(pid, signal.SIGKILL)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._child_reaped.wait()
            except TimeoutError:
                logger.error("processes of a task that ended do not go away: %s", strays or f"group {group}")  # noqa: TRY400
                return

    def needs_clean_up(self, group: int | None) -> bool:
        """Whether a dead task left anything behind; kills its process group, where that is known."""
        return (group is not None and not kill_group(group)) or bool(self.strays())

    def close(self) -> None:
        """Lets go of all processes, without ending them."""
        for process in self._tasks.values():
            self._let_go(process)
        self._tasks.clear()

    def _look_at(self, pid: int) -> None:
        """A task is gone: finds its wait status, or waits for the zygote to tell it."""
        process = self._tasks.get(pid)
        if process is None:
            return
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
        if process.adopted:
            try:
                reaped, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                self._finish(pid, None)
            else:
                if reaped or not process.unwatched:
                    self._finish(pid, status if reaped else None)
        elif process.timer is None:
            process.timer = self._loop.call_later(WAIT_STATUS_SECONDS, self._on_unreaped)

    def _finish(self, pid: int, status: int | None) -> None:
        self._let_go(self._tasks.pop(pid))
        self._on_exit(pid, status)

    def _let_go(self, process: _Process) -> None:
        if process.timer is not None:
            process.timer.cancel()
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)

    def _reap_leftovers(self) -> None:
        for pid in self._children():
            if pid not in self._tasks:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _children(self) -> list[int]:
        own = set(self._own())
        return [pid for pid in children() if pid not in own]


def children() -> list[int]:
    """Pids of this process's children, zombies included."""
    found: list[int] = []
    try:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (thread / "children").read_text().split())
    except OSError:
        pass
    if found:
        return found
    with contextlib.suppress(OSError, psutil.Error):
        found = [child.pid for child in psutil.Process().children()]  # a kernel without that file
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
