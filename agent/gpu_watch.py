"""GPUs as the agent meets them: finds them at its start, and sees to it that they are free again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from agent.background import log_exception
from agent.domain import AttemptId
from agent.gpu_pool import GpuPool
from agent.gpu_release import Departures, Quarantined, Sight
from agent.gpus import GpuInventory, GpusUnreadableError
from agent.leases import NotEnoughError
from agent.processes import start_ticks

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ANSWER_SECONDS = 10.0
"""How long the driver may take for an answer."""
PATIENCE_SECONDS = 1.0
"""How long a request for GPUs waits for those that may be back in a moment."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class GpuWatch:
    """Asks the inventory, in threads of its own, so that a driver that hangs holds up nothing else."""

    def __init__(
        self, inventory: GpuInventory, pool: GpuPool, limit: float, leftovers: Callable[[], Iterable[int]]
    ) -> None:
        """``limit``: seconds until a GPU is quarantined; ``leftovers``: what ended tasks left and lives."""
        self._inventory = inventory
        self._pool = pool
        self._departures = Departures(pool, limit)
        self._leftovers = leftovers
        self._loop = asyncio.get_running_loop()
        self._unanswered: asyncio.Future[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()

    async def find(self) -> None:
        """Adds what the host has to the pool; one whose driver does not answer has nothing."""
        try:
            self._pool.add(await self._ask(self._inventory.devices))
        except GpusUnreadableError as error:
            logger.warning("no GPU can be used: %s (try nvidia-smi; start the agent again)", error)
        for uuid in [gpu.device.uuid for gpu in self._pool]:
            sight = await self._see(uuid)
            if isinstance(sight, Sight):
                self._departures.note_strangers(uuid, sight.listed)

    def depart(self, attempt: AttemptId, pids: Iterable[int]) -> None:
        """The processes of an attempt are gone: gives its GPUs back once the driver has seen that, too."""
        if not self._pool.held(attempt):
            return
        self._departures.begin(attempt, pids, self._loop.time())
        self._wake.set()
        if self._looking is None or self._looking.done():
            self._looking = self._loop.create_task(self._look())
            self._looking.add_done_callback(log_exception)

    async def patiently(self, lease: Callable[[], Result]) -> Result:
        """The result of ``lease``, tried again while GPUs that it lacks may be back in a moment."""
        deadline = self._loop.time() + PATIENCE_SECONDS
        while True:
            try:
                return lease()
            except NotEnoughError as error:
                late = self._loop.time() >= deadline
                if error.resource != "GPUS" or late or not self._departures.pending:
                    raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._looked.wait(), deadline - self._loop.time())

    async def close(self) -> None:
        """Looks no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while self._departures:
            for uuid in self._departures.uuids:
                for said in self._departures.look(uuid, await self._see(uuid), self._loop.time()):
                    if isinstance(said, Quarantined):
                        logger.warning("GPU %s is quarantined: %s", uuid, said.reason)
                    elif said.after_quarantine:
                        logger.warning("GPU %s may be leased again: %s is off it", uuid, said.attempt)
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
                pause = FIRST_PAUSE_SECONDS
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _see(self, uuid: str) -> Sight | str:
        try:
            listed = await self._ask(lambda: self._inventory.pids(uuid))
        except GpusUnreadableError as error:
            return f"the driver does not say which processes are on it: {error}"
        living = {pid for pid in listed if start_ticks(pid) is not None}
        return Sight(listed, frozenset(living.difference(self._leftovers())))

    async def _ask(self, question: Callable[[], Result]) -> Result:
        """The answer of the driver; GpusUnreadableError where it gives none in time."""
        if self._unanswered is not None and not self._unanswered.done():
            raise GpusUnreadableError("it still owes an earlier answer")
        answer: asyncio.Future[Result] = self._loop.create_future()
        self._unanswered = self._loop.create_future()
        done = self._unanswered

        def settle(result: Result | None, error: GpusUnreadableError | None) -> None:
            done.set_result(None)
            if answer.done():  # nobody waits any more
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # no error: it is the question's result

        def ask() -> None:
            result: Result | None = None
            problem: GpusUnreadableError | None = None
            try:
                result = question()
            except GpusUnreadableError as error:
                problem = error
            except Exception as error:  # noqa: BLE001  (whatever it is, it is told in the loop)
                problem = GpusUnreadableError(f"{type(error).__name__}: {error}")
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(settle, result, problem)

        # A daemon: a driver that hangs must not keep the agent from ending.
        threading.Thread(target=ask, name="nhop-nvml", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            raise GpusUnreadableError(f"no answer within {ANSWER_SECONDS:g} s") from None
