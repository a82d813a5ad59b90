"""The agent that a coordinator without hosts starts for itself, on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections import deque
from pathlib import Path

import coordinator
from coordinator.agent_link import AgentLink
from coordinator.errors import StudyFailedError
from coordinator.hosts import AgentAddress, Usable
from coordinator.link_errors import HostUnreachableError
from coordinator.sockets import make_private_folder, remove_private_folder
from nhop.security import handshakes

START_LIMIT = 20.0
CLOSE_LIMIT = 15.0
TAIL_LINES = 20
KILL_ROUNDS = 10
PACKAGES = str(Path(coordinator.__file__).resolve().parents[1])


def usable_cores() -> int:
    """CPU cores that this process and its children may use."""
    return len(os.sched_getaffinity(0))


class PrivateAgent:
    """One agent of our own: ``start``, ``closed_by_itself``, ``close``.

    ``state`` is a folder for its attempts, removed at the end; ``log`` takes its stderr, and is
    removed where it stayed empty. ``usable`` is what it has; its GPUs are known once it has started.
    ``folder`` holds its socket; a socket of ours, too. It ends by itself when this process dies, and
    then takes the folder away.
    """

    def __init__(self, state: Path, log: Path, slots: int) -> None:
        self._state = state
        self._log = log
        self.slots = slots
        self.usable = Usable(slots)
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: int | None = None
        self.folder = make_private_folder()

    @property
    def address(self) -> AgentAddress:
        """Where to reach it."""
        return AgentAddress(f"unix:{self.folder}/agent.sock", name="localhost")

    @property
    def pid(self) -> int | None:
        """Its process id; None before ``start``."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> AgentLink:
        """Starts it and waits until it answers; raises StudyFailedError with the end of its log."""
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("ab")
        except OSError as error:
            raise StudyFailedError(f"{self._log}: cannot be written ({error.strerror})") from error
        paths = [PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**handshakes.without(os.environ), "PYTHONPATH": os.pathsep.join(paths)}
        environment.pop("NHOP_TLS", None)  # the coordinator's own; nobody else reaches the agent's socket
        read, self._pipe = os.pipe()
        try:
            with log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "agent"),
                    *("--listen", self.address.target, "--state-dir", str(self._state)),
                    *("--slots", str(self.slots), "--parent-pipe", str(read)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                    pass_fds=(read,),
                    start_new_session=True,
                )
        finally:
            os.close(read)
        link = AgentLink(self.address, private=True)
        try:
            await self._wait_until_ready(link)
        except BaseException:
            await link.close()
            raise
        return link

    async def closed_by_itself(self) -> None:
        """Waits for its death, and raises StudyFailedError with the end of its log."""
        assert self._process is not None
        status = await self._process.wait()
        raise StudyFailedError(f"this machine's agent has died ({_describe(status)}){self._tail()}")

    async def close(self, limit: float = CLOSE_LIMIT) -> None:
        """Ends it in order; past ``limit`` seconds it is killed with all its children. Removes its files."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None and self._process.returncode is None:
            try:
                async with asyncio.timeout(limit):
                    await self._process.wait()
            except TimeoutError:
                _kill_tree(self._process.pid)
                await self._process.wait()
        remove_private_folder(self.folder)
        shutil.rmtree(self._state, ignore_errors=True)
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()
                self._log.parent.rmdir()

    async def _wait_until_ready(self, link: AgentLink) -> None:
        assert self._process is not None
        ready = asyncio.ensure_future(link.inventory(timeout=START_LIMIT, wait=True))
        died = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait((ready, died), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise StudyFailedError(
                    f"this machine's agent did not come up ({_describe(died.result())}){self._tail()}"
                )
            inventory = await ready
            self.usable = Usable(self.slots, inventory.gpus, inventory.quarantined)
        except HostUnreachableError as error:
            raise StudyFailedError(f"this machine's agent did not come up: {error}{self._tail()}") from error
        finally:
            for waiting in (ready, died):
                waiting.cancel()
            await asyncio.gather(ready, died, return_exceptions=True)

    def _tail(self) -> str:
        with contextlib.suppress(OSError), self._log.open(errors="replace") as log:
            lines = deque(log, TAIL_LINES)
            if lines:
                return f"; the end of {self._log}:\n" + "".join(lines).rstrip()
        return f"; its log {self._log} is empty"


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _kill_tree(pid: int) -> None:
    """Kills a process and all its descendants, the children first so that none gets lost."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        parent.suspend()
        for _ in range(KILL_ROUNDS):  # children of a killed zygote come to the agent
            children = [c for c in parent.children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            if not children:
                break
            psutil.wait_procs(children, timeout=0.05)
        parent.kill()
