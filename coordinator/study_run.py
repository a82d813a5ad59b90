"""One study under way: the shell around the machine.

A turn takes all events that are waiting, asks the machine, commits what is to be kept in one
transaction, and only then acknowledges the events and does what follows from them. While a
commit is under way the next events gather, so that the commits grow with the load.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from coordinator import events as ev
from coordinator import transitions
from coordinator.agent_link import AgentLink
from coordinator.artifacts import Artifacts
from coordinator.bundles import Bundles
from coordinator.delivery import Delivery
from coordinator.directory import StudyDirectory
from coordinator.domain import (
    AttemptId,
    Notice,
    Reports,
    Study,
    StudySpec,
    StudyState,
    Trial,
    Update,
)
from coordinator.errors import NhopError
from coordinator.event_stream import AGENT, Batch, EventStream, Source
from coordinator.hosts import Usable, slots_for
from coordinator.instructions import (
    Command,
    FileWork,
    ForgetHost,
    Instruction,
    Save,
    SetTimer,
    StartAttempt,
    StopAttempt,
    Tell,
)
from coordinator.log_keeper import LogKeeper, has_failed, write_log
from coordinator.machine import StudyMachine
from coordinator.naming import new_run_id
from coordinator.process import settle
from coordinator.room import Room
from coordinator.store import Item, Store

Observer = Callable[[Update], None]

ENTRIES_A_TURN = 64
"""What a turn takes at most of what is waiting: answers that come meanwhile shall not wait for long."""

UNCOMMITTED_EVENTS = 5000
"""Events of all streams together that may wait for their commit. It bounds memory, and how long the
loop is busy with reports between two looks at anything else; commits are large enough with it."""

BRING_AGAIN = 10.0
"""Seconds until a host that could not be given code or data is tried again."""

LAST_CALLS = 0.5
"""Seconds for commands that are still under way when the study has ended."""

LAST_LOGS = 5.0
"""Seconds then for the logs of failed tasks from slow hosts, unless the study was told to stop."""

_log = logging.getLogger(__name__)


class StudyRun:
    """Runs one study on links that are connected. ``now`` and ``started_at`` as for the machine."""

    def __init__(
        self,
        spec: StudySpec,
        directory: StudyDirectory,
        links: Mapping[str, AgentLink],
        slots: Mapping[str, int],
        *,
        now: float,
        started_at: float,
        observer: Observer,
        released: Callable[[str], None] | None = None,
        bundles: Bundles | None = None,
    ) -> None:
        self._run_id = new_run_id(spec.study_id)
        self.spec = spec = dataclasses.replace(spec, run_id=self._run_id)
        self.directory = directory
        self.machine = StudyMachine(spec, slots, now=now, started_at=started_at)
        self._links = dict(links)
        self.delivery = Delivery(bundles or Bundles(), observer)
        self._observer = observer
        self._released = released
        self._store = Store(directory.database, spec)
        self._inbox: asyncio.Queue[ev.Event | Batch] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: set[asyncio.Task[None]] = set()
        self._transfers: set[asyncio.Task[None]] = set()
        self._held: dict[tuple[AttemptId, str], set[asyncio.Task[None]]] = {}
        self.logs = LogKeeper(
            directory.logs, self._links, lambda work: self._spawn(work, self._commands), self._hold
        )
        self._artifacts = Artifacts(
            directory.path,
            self._links,
            spawn=lambda work: self._spawn(work, self._transfers),
            post=self.post,
            tell=observer,
            hold=self._hold,
            waiting=lambda: self.machine.state is StudyState.STOPPING,
        )
        self._streams: dict[str, tuple[EventStream, asyncio.Task[None]]] = {}
        self._room = Room(UNCOMMITTED_EVENTS)
        self._left: set[str] = set()
        self._slots: dict[str, int] = {}
        for link in self._links.values():
            link.follow(self._run_id)  # from now on: the host could leave before the store is open
        self._timers: set[asyncio.TimerHandle] = set()
        self._crash: BaseException | None = None
        self._crashed = asyncio.Event()

    def post(self, event: ev.Event) -> None:
        """Gives the machine an event; from the loop's thread."""
        self._inbox.put_nowait(event)

    def stop(self, reason: str, limit: float | None = None) -> None:
        """Ends the study; past ``limit`` seconds it ends without waiting for its attempts."""
        self.post(ev.StopRequested(reason))
        if limit is not None:
            self._call_later(limit, ev.StudyAborted(StudyState.STOPPED, reason))

    async def run(self) -> Study:
        """Runs the study to its end and returns it; a defect of ours ends it as FAILED."""
        try:
            await self._store.open()
            for link in list(self._links.values()):
                if link.name not in self._streams:
                    self._follow(link)
                    await asyncio.sleep(0)  # a thousand at once would hold up what runs already
            settle()
            if self.delivery.needed:
                for link in list(self._links.values()):
                    self.post(ev.HostAwaited(link.name))
                    self._spawn(self._bring(link, joined=False), self._tasks)
            self.post(ev.StudyBegun())
            await self._loop()
            await self._finish()
        except (Exception, asyncio.CancelledError) as error:
            await self._abort(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            await self._artifacts.close(self.machine.study().model_trial)
            await self.delivery.close()
            await self._cancel(self._tasks | self._commands | self._transfers)
            for link in self._links.values():
                link.unfollow(self._run_id)
            for timer in self._timers:
                timer.cancel()
            await self._close_store()
        return self.machine.study()

    # --- hosts --------------------------------------------------------------------------------

    def host_joined(self, link: AgentLink, usable: Usable) -> None:
        """A host may be used, or has other slots now."""
        if self.machine.state.ended:
            return
        self._left.discard(link.name)
        if link.name not in self._streams:
            self._links[link.name] = link
            self._follow(link)
        self._slots[link.name] = slots_for(usable, self.spec.cluster)
        self._spawn(self._bring(link, joined=True), self._tasks)

    def host_left(self, name: str) -> None:
        """A host is not wanted any more."""
        self._left.add(name)
        self.post(ev.HostLeft(name))

    def host_changed(self, event: ev.HostEvent) -> None:
        """A host is silent, lost, back, restarted."""
        self.post(event)

    async def _bring(self, link: AgentLink, *, joined: bool) -> None:
        """Gives a host what the study needs, however often that has to be tried; then it may be used."""
        lost = False
        while (failure := await self.delivery.ensure(link)) is not None:
            if self.machine.state is not StudyState.RUNNING or link.name in self._left:
                return
            why = f"it cannot be given what the study needs: {failure.message}"
            if not lost and not joined:
                self.post(ev.HostLost(link.name, why))
            elif not lost:
                self._observer(Notice(f"host {link.name} is not used yet: {why}", warning=True))
            lost = True
            await asyncio.sleep(BRING_AGAIN)
        if link.name not in self._streams or link.name in self._left:
            return
        if joined:  # with the slots that it has by now
            self.post(ev.HostJoined(link.name, self._slots[link.name]))
        else:
            self.post(ev.HostFound(link.name) if lost else ev.HostHeard(link.name))

    def _follow(self, link: AgentLink) -> None:
        link.follow(self._run_id)
        stream = EventStream(link, self.spec, self._inbox.put_nowait, self._room)
        self._streams[link.name] = (stream, self._spawn(stream.run(), self._tasks))

    async def _forget(self, name: str) -> None:
        """Ends what is between the study and a host that has left, unless it is wanted again."""
        while held := [task for (_, host), tasks in self._held.items() if host == name for task in tasks]:
            await asyncio.wait(held)  # its files are still on their way
        if name not in self._left or name not in self._streams:
            return
        stream, reading = self._streams.pop(name)
        stream.finish()
        await asyncio.wait((reading,), timeout=2 * LAST_CALLS)
        reading.cancel()
        if name not in self._streams:
            self._links[name].unfollow(self._run_id)

    def supervise(self, work: Coroutine[Any, Any, None]) -> None:
        """Keeps ``work`` running beside the study; its failure is the study's."""
        self._spawn(work, self._tasks)

    # --- turns --------------------------------------------------------------------------------

    async def _loop(self) -> None:
        crashed = asyncio.ensure_future(self._crashed.wait())
        try:
            while not self.machine.state.ended:
                if self._inbox.empty():
                    get = asyncio.ensure_future(self._inbox.get())
                    try:
                        await asyncio.wait((get, crashed), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        if not get.done():
                            get.cancel()
                    self._raise_crash()
                    work = [get.result()]
                else:
                    work = []
                while not self._inbox.empty() and len(work) < ENTRIES_A_TURN:
                    work.append(self._inbox.get_nowait())
                await self._turn(work)
                self._raise_crash()
        finally:
            crashed.cancel()

    async def _turn(self, work: Sequence[ev.Event | Batch]) -> None:
        now = asyncio.get_running_loop().time()
        reports: list[Reports] = []
        instructions: list[Instruction] = []
        for entry in work:
            if isinstance(entry, Batch):
                for part in entry.reports:
                    if self.machine.is_live(part.attempt):
                        reports.append(part)
                    else:
                        self.machine.late_messages += len(part.rows)
                for event in entry.events:
                    instructions += self._handle(event, now, streamed=True)
            else:
                instructions += self._handle(entry, now)
        await self._carry_out(instructions, reports)
        for entry in work:
            if isinstance(entry, Batch):
                self._acknowledge(entry)
        if self.machine.state is not StudyState.RUNNING:
            self.delivery.give_up()

    def _handle(self, event: ev.Event, now: float, *, streamed: bool = False) -> list[Instruction]:
        if isinstance(event, ev.TaskEnded) and has_failed(event, self.spec.objective):
            self.logs.keep(event)
        if self._released is not None and isinstance(event, ev.AttemptEnded):
            self._released(event.host)
        try:
            return self.machine.handle(event, now)
        except transitions.LateEventError as error:
            _log.debug("%s", error)
            self.machine.late_messages += streamed
            return []

    async def _carry_out(self, instructions: Sequence[Instruction], reports: Sequence[Reports]) -> None:
        items: list[Item] = [i.item for i in instructions if isinstance(i, Save)]
        studies = [item for item in items if isinstance(item, Study)]
        # Only the last state of the study in this turn counts.
        items = [item for item in items if not isinstance(item, Study)] + studies[-1:]
        await self._store.commit(items, reports)
        for instruction in instructions:
            if isinstance(instruction, Command):
                self._spawn(self._execute(instruction), self._commands)
            elif isinstance(instruction, FileWork):
                self._artifacts.begin(instruction)
            elif isinstance(instruction, ForgetHost):
                self._spawn(self._forget(instruction.host), self._tasks)
            elif isinstance(instruction, SetTimer):
                self._call_at(instruction.at, ev.TimerFired(instruction.timer))
        await asyncio.sleep(0)  # commands leave before anything is shown
        for some in reports:
            self._observer(some)
        for item in items:
            if isinstance(item, Study | Trial):
                self._observer(item)
        for instruction in instructions:
            if isinstance(instruction, Tell):
                self._observer(instruction.notice)

    async def _execute(self, command: Command) -> None:
        if isinstance(command, StartAttempt) and command.restore:
            failure = await self._artifacts.give_checkpoint(command)
            if failure is not None:
                self.post(ev.StartFailed(command.attempt, command.host, failure))
                return
        self.post(await self.delivery.execute(self._links[command.host], command, self.spec))

    def _acknowledge(self, batch: Batch) -> None:
        self._room.give(batch.size)
        host = batch.stream.link.name
        # An agent forgets an attempt once all of its own events are acknowledged.
        held = {
            source: tasks
            for source in batch.positions
            if source[1] == AGENT and (tasks := self._held.get((source[0], host)))
        }
        now = {source: number for source, number in batch.positions.items() if source not in held}
        ended = batch.ended.difference(attempt for attempt, _ in held)
        batch.stream.acknowledge(now, ended)
        for source, tasks in held.items():
            rest = {source: batch.positions[source]}
            ended = batch.ended.intersection({source[0]})
            self._spawn(self._acknowledge_later(batch.stream, rest, ended, set(tasks)), self._commands)

    async def _acknowledge_later(
        self,
        stream: EventStream,
        positions: Mapping[Source, int],
        ended: frozenset[AttemptId],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        await asyncio.wait(tasks)
        stream.acknowledge(positions, ended)

    def _hold(self, attempt: AttemptId, host: str, task: asyncio.Task[None]) -> None:
        """Keeps the end of an attempt unacknowledged until ``task``, which needs its files, is through."""
        key = (attempt, host)
        self._held.setdefault(key, set()).add(task)

        def through(task: asyncio.Task[None]) -> None:
            tasks = self._held.get(key, set())
            tasks.discard(task)
            if not tasks:
                self._held.pop(key, None)

        task.add_done_callback(through)

    def link(self, host: str) -> AgentLink:
        """The connection to a host."""
        return self._links[host]

    # --- the end ------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Lets commands and acknowledgements through, within limits."""
        await self._artifacts.close(self.machine.study().model_trial)
        if self.machine.state is not StudyState.STOPPED:
            await self.logs.kept(limit=LAST_LOGS)
        if waited_for := self._commands | self.logs.readers:
            await asyncio.wait(waited_for, timeout=LAST_CALLS)
        while not self._inbox.empty():
            entry = self._inbox.get_nowait()
            if isinstance(entry, Batch):
                self._acknowledge(entry)
        for stream, _ in self._streams.values():
            stream.finish()
        if self._streams:
            await asyncio.wait([reading for _, reading in self._streams.values()], timeout=2 * LAST_CALLS)

    async def _abort(self, error: BaseException) -> None:
        """Ends the study because of a defect: says so, and stops what can still be reached."""
        if isinstance(error, asyncio.CancelledError):
            event = ev.StudyAborted(StudyState.STOPPED, "the coordinator was told to end")
        elif isinstance(error, NhopError):
            event = ev.StudyAborted(StudyState.FAILED, str(error))
        else:
            path = self.directory.logs / "coordinator.log"
            text = "".join(traceback.format_exception(error))
            reason = f"a defect of NHOP: {type(error).__name__}: {error}"
            with suppress(OSError):  # no room for the details
                await asyncio.to_thread(write_log, path, text.encode())
                reason += f"; the details are in {path}"
            event = ev.StudyAborted(StudyState.FAILED, reason)
        if self.machine.state.ended:
            return
        now = asyncio.get_running_loop().time()
        instructions = self.machine.handle(event, now)
        for instruction in instructions:
            if isinstance(instruction, StopAttempt):
                self._spawn(self._execute(instruction), self._commands)
        # The store or the observer may be what has failed: then the caller alone gets to know.
        with suppress(NhopError):
            await self._store.commit([i.item for i in instructions if isinstance(i, Save)], ())
        try:
            with suppress(NhopError):
                self._observer(self.machine.study())
        except Exception:  # noqa: BLE001 - it may be the very thing that has failed
            _log.exception("the observer failed")
        if self._commands:
            await asyncio.wait(self._commands, timeout=LAST_CALLS)

    async def _close_store(self) -> None:
        with suppress(NhopError):
            await self._store.close()

    # --- background work ----------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        group.add(task)

        def done(task: asyncio.Task[None]) -> None:
            group.discard(task)
            if not task.cancelled() and task.exception() is not None and self._crash is None:
                self._crash = task.exception()
                self._crashed.set()

        task.add_done_callback(done)
        return task

    def _raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash

    async def _cancel(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call_later(self, delay: float, event: ev.Event) -> None:
        self._call_at(asyncio.get_running_loop().time() + delay, event)

    def _call_at(self, at: float, event: ev.Event) -> None:
        def fire() -> None:
            self._timers.discard(handle)
            self.post(event)

        handle = asyncio.get_running_loop().call_at(at, fire)
        self._timers.add(handle)
