"""The agent's side of the zygote: starts it, asks it for forks, replaces it when it dies.

Messages are JSON, one a packet, on a SOCK_SEQPACKET socket pair::

    agent -> zygote  {"op": "fork", "id": n, "directory": "...", "task": "worker/0", "environment": {}}
    zygote -> agent  {"op": "ready", "tensorflow": "2.21.0", "python": "3.11.7"}    once, when it can fork
                     {"op": "forked", "id": n, "pid": p, "start_ticks": t}
                     {"op": "fork_failed", "id": n, "error": "..."}
                     {"op": "exited", "pid": p, "status": s}                        s as waitpid gives it

The zygote is started by exec, which is safe at any time; the agent itself never forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.background import log_exception
from agent.domain import AttemptId, Failure
from agent.outcome import signal_name
from nhop_models.contract import FailureKind, TaskId

logger = logging.getLogger(__name__)

READY_SECONDS = 120.0
"""How long a zygote may import before it counts as hung."""
FORK_SECONDS = 10.0
"""How long a zygote may owe an answer to a fork request before it counts as hung."""
QUICK_SECONDS = 10.0
"""A zygote that lived shorter than this, or was ended because it hung, died quickly."""
MAX_QUICK_DEATHS = 5
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
_MAX_MESSAGE_BYTES = 1 << 16
_LARGEST_PID = 1 << 22  # of Linux, on any machine
_LOG_BYTES = 1 << 20
_STDERR_TAIL_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """A task to fork; ``environment`` comes on top of the zygote's."""

    attempt: AttemptId
    task: TaskId
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)


class ZygoteObserver(Protocol):
    """Who is told what became of forks."""

    def task_forked(self, request: ForkRequest, pid: int, start_ticks: int) -> None:
        """A task lives."""

    def fork_failed(self, request: ForkRequest, failure: Failure) -> None:
        """A task could not be forked."""

    def task_reaped(self, pid: int, status: int) -> None:
        """A task is gone."""

    def zygote_died(self, lost: Sequence[ForkRequest]) -> Awaitable[None]:
        """The zygote is dead. ``lost`` forks may have happened; they are repeated after this returns."""


def _pid(value: object) -> int:
    """A process that is neither the first one nor, as 0 and -1 are for signals, several; ValueError."""
    return _whole(value, 2, _LARGEST_PID + 1)


def _whole(value: object, first: int, end: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not first <= value < end:
        raise ValueError(f"{value!r:.50} is not a whole number from {first} on and below {end}")
    return value


class Zygote:
    """The zygote of an agent, one process after the other."""

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        observer: ZygoteObserver,
        environment: Mapping[str, str] | None = None,
        umask: int = -1,
    ) -> None:
        """``command`` is given ``--fd N``; its output goes to ``log_path``.

        ``environment`` None: this process's; ``umask`` as for ``subprocess.Popen``.
        """
        self._loop = asyncio.get_running_loop()
        self._command = tuple(command)
        self._log_path = log_path
        self._environment = environment
        self._umask = umask
        self._observer = observer
        self._waiting: OrderedDict[int, ForkRequest] = OrderedDict()  # not sent
        self._sent: OrderedDict[int, ForkRequest] = OrderedDict()  # not answered
        self._next_id = 1
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._started_at = 0.0
        self._answer_timer: asyncio.TimerHandle | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._quick_deaths = 0
        self._ready = False
        self._hung = False
        self._closing = False
        self._writing = False
        self.python_version = ""
        self.tensorflow_version = ""

    @property
    def pid(self) -> int | None:
        """The process that is the zygote now."""
        return None if self._process is None else self._process.pid

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self._log_path

    def start(self) -> None:
        """Starts a zygote; OSError where the command cannot be executed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, self._open_log() as log:
                self._process = subprocess.Popen(
                    [*self._command, "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=self._environment,
                    umask=self._umask,
                )
            try:
                self._pidfd = os.pidfd_open(self._process.pid)
            except OSError:
                self._process.kill()
                self._process.wait()
                self._process = None
                raise
        except OSError:
            ours.close()
            raise
        ours.setblocking(False)
        self._socket = ours
        self._started_at = self._loop.time()
        self._hung = False
        self._loop.add_reader(self._pidfd, self._died)
        self._loop.add_reader(ours.fileno(), self._read)
        self._expect_answer()

    def fork(self, request: ForkRequest) -> None:
        """Asks for a task; the observer is told what became of it."""
        self._waiting[self._next_id] = request
        self._next_id += 1
        self._send_waiting()

    def withdraw(self, attempt: AttemptId, task: TaskId) -> bool:
        """Drops a request; False where it has gone to the zygote, which then owes an answer."""
        for number, request in self._waiting.items():
            if (request.attempt, request.task) == (attempt, task):
                del self._waiting[number]
                return True
        return False

    def replace(self) -> None:
        """Ends a zygote that does not do its work; a new one follows. Its tasks are not touched."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> None:
        """Ends the zygote for good."""
        self._closing = True
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.gather(self._replacing, return_exceptions=True)
        process, pidfd, ready = self._process, self._pidfd, self._ready
        if process is None or pidfd < 0:
            return
        gone = asyncio.Event()
        self._loop.add_reader(pidfd, gone.set)
        self._close_socket()
        if ready:  # one that still imports does not look at its socket
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), 1.0)
        self.replace()
        await gone.wait()
        self._release_process()
        process.wait()

    # --- messages ---------------------------------------------------------------------------

    def _send_waiting(self) -> None:
        if not self._ready or self._socket is None:
            return
        while self._waiting:
            number, request = next(iter(self._waiting.items()))
            message = {
                "op": "fork",
                "id": number,
                "directory": str(request.directory),
                "task": str(request.task),
                "environment": request.environment,
            }
            try:
                self._socket.send(json.dumps(message).encode())
            except BlockingIOError:
                self._watch_for_room(watch=True)
                return
            except OSError:
                return  # it is dying; the requests wait for the next one
            self._sent[number] = self._waiting.pop(number)
            if len(self._sent) == 1:
                self._expect_answer()
        self._watch_for_room(watch=False)

    def _watch_for_room(self, *, watch: bool) -> None:
        if self._socket is None or watch == self._writing:
            return
        self._writing = watch
        if watch:
            self._loop.add_writer(self._socket.fileno(), self._send_waiting)
        else:
            self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        """Takes all messages that are there."""
        while self._socket is not None:
            try:
                data = self._socket.recv(_MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._socket.fileno())
                self.replace()  # one that has closed its socket is of no use
                return
            try:
                self._take(json.loads(data))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                logger.error("the zygote sent nonsense (%s), and is ended: %.200r", error, data)  # noqa: TRY400
                self.replace()
                return

    def _take(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "ready":
                self.tensorflow_version = str(message["tensorflow"])
                self.python_version = str(message["python"])
                self._ready = True
                self._expect_answer()
                logger.info("zygote %s is ready (TensorFlow %s)", self.pid, self.tensorflow_version)
                self._send_waiting()
            case "forked":
                # Checked before: the request stays, for the next zygote, where it is nonsense.
                pid, ticks = _pid(message["pid"]), _whole(message["start_ticks"], 0, 1 << 63)
                request = self._take_request(message["id"])
                self._quick_deaths = 0
                self._observer.task_forked(request, pid, ticks)
            case "fork_failed":
                request = self._take_request(message["id"])
                text = f"{request.task} could not be forked: {message['error']}"
                self._observer.fork_failed(request, Failure(FailureKind.RESOURCES, text))
            case "exited":
                self._observer.task_reaped(_pid(message["pid"]), _whole(message["status"], 0, 1 << 16))
            case unknown:
                raise ValueError(f"unknown message {unknown!r}")

    def _take_request(self, number: int) -> ForkRequest:
        request = self._sent.pop(number)
        self._expect_answer()
        return request

    def _expect_answer(self) -> None:
        """Gives the zygote time for what it owes now: to get ready, or its next answer to a request."""
        self._expect_nothing()
        if not self._ready:
            self._answer_timer = self._loop.call_later(READY_SECONDS, self._end_hung, READY_SECONDS)
        elif self._sent:
            self._answer_timer = self._loop.call_later(FORK_SECONDS, self._end_hung, FORK_SECONDS)

    def _expect_nothing(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    # --- death ------------------------------------------------------------------------------

    def _end_hung(self, seconds: float) -> None:
        owed = "answered" if self._ready else "ready"
        logger.error(
            "zygote %s was not %s after %g s, and is ended; see %s", self.pid, owed, seconds, self._log_path
        )
        self._hung = True
        self.replace()

    def _died(self) -> None:
        process = self._process
        assert process is not None
        self._read()  # what it said before
        status = process.wait()
        lived = self._loop.time() - self._started_at
        self._close_socket()
        self._release_process()
        if self._closing:
            return
        if lived >= QUICK_SECONDS and not self._hung:
            self._quick_deaths = 0
        self._quick_deaths += 1
        how = signal_name(-status) if status < 0 else f"exit code {status}"
        logger.error("zygote %d died after %.1f s (%s)", process.pid, lived, how)
        lost = list(self._sent.values())
        for number in reversed(self._sent):
            self._waiting[number] = self._sent[number]
            self._waiting.move_to_end(number, last=False)
        self._sent.clear()
        self._replacing = self._loop.create_task(self._replace_dead(lost, how))
        self._replacing.add_done_callback(log_exception)

    async def _replace_dead(self, lost: list[ForkRequest], how: str) -> None:
        try:
            await self._observer.zygote_died(lost)
        except Exception:  # whatever it was: without a new zygote nothing could run here any more
            logger.exception("an unexpected error after the death of the zygote; please report this")
        while True:
            if self._quick_deaths >= MAX_QUICK_DEATHS:
                self._give_up_on_waiting(how)
            if self._quick_deaths > 1:
                pause = FIRST_PAUSE_SECONDS * 2 ** min(self._quick_deaths - 2, 16)
                await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))
            try:
                self.start()
            except OSError as error:
                self._quick_deaths += 1
                how = str(error)
                logger.error("the zygote cannot be started: %s", error)  # noqa: TRY400
            else:
                return

    def _give_up_on_waiting(self, how: str) -> None:
        tail = self._log_tail()
        text = f"the zygote died {self._quick_deaths} times in a row ({how}); see {self._log_path}"
        logger.error("%s; it wrote last:\n%s", text, tail)
        waiting, self._waiting = self._waiting, OrderedDict()
        for request in waiting.values():
            message = f"{request.task} could not be forked: {text}"
            self._observer.fork_failed(request, Failure(FailureKind.INTERNAL, message, tail))

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._watch_for_room(watch=False)
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _release_process(self) -> None:
        self._ready = False
        self._expect_nothing()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._process = None

    def _open_log(self) -> Any:
        with contextlib.suppress(FileNotFoundError):
            if self._log_path.stat().st_size > _LOG_BYTES:
                self._log_path.unlink()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self._log_path, flags, 0o600), "ab")

    def _log_tail(self) -> str:
        try:
            with self._log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _STDERR_TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""
