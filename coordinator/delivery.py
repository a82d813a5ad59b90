"""Brings a study's bundles to hosts before their first attempt, once for each life of their agents."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.bundles import Bundles
from coordinator.domain import Failure, Notice, StudySpec
from coordinator.folders import human
from coordinator.instructions import Command, PrepareAttempt, StartAttempt
from coordinator.link_errors import BundleMissingError, TransferError
from nhop_models.contract import FailureKind

UPLOADS_AT_ONCE = 8
"""Hosts that are given bundles at the same time: more would only share the way out of this machine."""

QUIET = 2.0
"""Seconds of an upload before the user is told what goes on."""


@dataclass(frozen=True, slots=True)
class _Upload:
    """To an agent, in one of its lives; the task's result is what went wrong."""

    incarnation: str
    task: asyncio.Task[Failure | None]

    def holds(self, incarnation: str, *, again: bool) -> bool:
        """Whether it is under way, or was a success that still counts."""
        if not self.task.done():
            return True
        good = not self.task.cancelled() and self.task.result() is None
        return good and self.incarnation == incarnation and not again


class Delivery:
    """One study's. Once it has given up, nothing is brought any more.

    ``tell`` is given what takes a while.
    """

    def __init__(self, bundles: Bundles, tell: Callable[[Notice], None] = lambda notice: None) -> None:
        self._bundles = bundles
        self._tell = tell
        self._uploads: dict[str, _Upload] = {}
        self._places = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._over = asyncio.Event()

    @property
    def needed(self) -> bool:
        """Whether there is anything to bring."""
        return any(self._bundles)

    async def ensure(self, link: AgentLink, *, again: bool = False) -> Failure | None:
        """Waits until the agent has the bundles; what went wrong, or None.

        Callers for the same agent share one upload; a failed one is made anew for the next caller, and with
        ``again`` one that was a success, too.
        """
        if not self.needed:
            return None
        if not self._over.is_set():
            upload = self._uploads.get(link.name)
            if upload is None or not upload.holds(link.incarnation, again=again):
                task = asyncio.create_task(self._upload(link))
                upload = self._uploads[link.name] = _Upload(link.incarnation, task)
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait((upload.task, over), return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
            if upload.task.done() and not upload.task.cancelled():
                return upload.task.result()
        return Failure(FailureKind.HOST_LOST, f"{link.name}: the study ends before its files are there")

    async def execute(self, link: AgentLink, command: Command, spec: StudySpec) -> ev.AttemptEvent:
        """Does what the machine wants on a host that has what it needs for that; the outcome is an event."""
        if isinstance(command, PrepareAttempt):
            failure = await self.ensure(link)
            if failure is not None:
                return ev.PrepareFailed(command.attempt, command.host, failure)
            if any(not upload.task.done() for upload in self._uploads.values()):
                # Another host of the attempt may still wait for its files: this lease has to last so long.
                command = dataclasses.replace(command, restores=True)
        try:
            return await link.execute(command, spec)
        except BundleMissingError:
            assert isinstance(command, StartAttempt)
        failure = await self.ensure(link, again=True)
        if failure is None:
            try:
                return await link.execute(command, spec)
            except BundleMissingError:
                message = f"{link.name}: the agent has removed what it was sent; is its disk too small?"
                failure = Failure(FailureKind.RESOURCES, message)
        return ev.StartFailed(command.attempt, command.host, failure)

    def give_up(self) -> None:
        """Ends what is under way; who waits for it gets a failure."""
        self._over.set()
        for upload in self._uploads.values():
            upload.task.cancel()

    async def close(self) -> None:
        """Gives up, and waits until all has ended."""
        self.give_up()
        tasks = [upload.task for upload in self._uploads.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _upload(self, link: AgentLink) -> Failure | None:
        async with self._places:
            for bundle in self._bundles:
                goes_on = Notice(f"{bundle.name} goes to host {link.name}: {human(bundle.size)}")
                telling = asyncio.get_running_loop().call_later(QUIET, self._tell, goes_on)
                try:
                    await link.transfers.put_bundle(bundle)
                except TransferError as error:
                    return Failure(error.failure.kind, f"{bundle.label}: {error.failure.message}")
                except OSError as error:
                    message = f"{bundle.label}: its archive cannot be read ({error.strerror})"
                    return Failure(FailureKind.RESOURCES, message)
                finally:
                    telling.cancel()
        return None
