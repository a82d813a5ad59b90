"""The events of one study on one agent: resumed by number, acknowledged after the commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc

from coordinator import convert
from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.domain import AttemptId, Reports, StudySpec
from coordinator.errors import StudyFailedError
from coordinator.link_errors import HostUnreachableError, are_we_cancelled, closed
from coordinator.room import Room
from nhop.v1 import agent_pb2

_log = logging.getLogger(__name__)

Source = tuple[AttemptId, str]

AGENT = "agent"
"""The source of what an agent itself says of an attempt."""

PAUSES = (0.05, 2.0)
"""Seconds until a broken stream is tried again: at first, and at most (doubled each time)."""

STRANGE_FAILURES = 10
"""Failures in a row that are not UNAVAILABLE, without an event between them, that end the study.

They take longer than a heartbeat, which tells whether an agent is there at all.
"""

CLOSE_LIMIT = 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """What one message brought; ``positions`` is to be acknowledged when all of it is committed.

    ``size`` is the room that it takes until then.
    """

    stream: EventStream
    reports: tuple[Reports, ...]
    events: tuple[ev.AttemptEvent, ...]
    positions: Mapping[Source, int]
    size: int

    @property
    def ended(self) -> frozenset[AttemptId]:
        """Attempts that have ended on the host: the agent forgets them once this is acknowledged."""
        return frozenset(event.attempt for event in self.events if isinstance(event, ev.AttemptEnded))


class EventStream:
    """Follows one study on one agent until cancelled; hands each new event over once and in order.

    Events take ``room`` when they come, and the stream is not read on while there is none; whoever
    they are handed to gives it back.
    """

    def __init__(
        self, link: AgentLink, spec: StudySpec, deliver: Callable[[Batch], None], room: Room
    ) -> None:
        self.link = link
        self._study_id = spec.study_id
        self._run_id = spec.run_id or spec.study_id
        self._deliver = deliver
        self._received: dict[Source, int] = {}
        self._committed: dict[Source, int] = {}
        self._unsent: dict[Source, int] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._room = room

    async def run(self) -> None:
        """Reads until ``finish``; raises StudyFailedError where the agent cannot be understood."""
        first, longest = PAUSES
        pause, failures = first, 0
        while not self._closing:
            before = dict(self._received)
            error = await self._follow()
            if error is None or self._closing:
                return
            if self._received != before:
                pause, failures = first, 0
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                # Where heartbeats fail as well it is no agent that answers: that is a lost host.
                failures = failures + 1 if self.link.answers else 0
                hopeless = (grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT)
                if error.code() in hopeless or failures >= STRANGE_FAILURES:
                    raise StudyFailedError(
                        f"{self.link.name}: the event stream failed: {error.details()} ({error.code().name})"
                    )
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    def acknowledge(self, positions: Mapping[Source, int], ended: frozenset[AttemptId]) -> None:
        """Tells the agent that events up to ``positions`` are committed; drops what is known of ``ended``."""
        self._unsent.update(positions)
        self._committed.update(positions)
        if ended:
            # Should this acknowledgement get lost, the agent sends these events once more, they are
            # refused as late ones, and acknowledged again.
            for table in (self._received, self._committed):
                for source in [source for source in table if source[0] in ended]:
                    del table[source]
        self._wake.set()

    def finish(self) -> None:
        """Sends what is to be acknowledged; ``run`` returns once the agent has taken it."""
        self._closing = True
        self._wake.set()

    # --- one connection -----------------------------------------------------------------------

    async def _follow(self) -> grpc.aio.AioRpcError | None:
        """One subscription; the error that ended it, None where ``finish`` did."""
        # The stubs do not know the write and read style.
        try:
            call = cast("Any", self.link.stub).StreamEvents()
        except grpc.aio.UsageError:
            return closed()
        work: list[asyncio.Task[None]] = []
        try:
            await call.write(self._subscription())
            self._unsent = {**self._committed, **self._unsent}
            self._wake.set()
            reading = asyncio.create_task(self._read(call))
            sending = asyncio.create_task(self._send_acknowledgements(call))
            work = [reading, sending]
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and sending.exception() is None:
                return None
            await reading
        except grpc.aio.AioRpcError as error:
            return error
        except asyncio.InvalidStateError:
            return await _status(call)
        except asyncio.CancelledError:
            if are_we_cancelled():
                raise
            return closed()  # one for an earlier certificate of ours: there is a newer connection
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            call.cancel()
        return await _status(call)

    async def _read(self, call: Any) -> None:
        async for response in call:
            await self._take(response)

    def _subscription(self) -> agent_pb2.StreamEventsRequest:
        # Agents take these for acknowledged. The end of an attempt must not be before its turn: what
        # they forget then may still be needed. Their own events come again, and are known.
        has = {source: number for source, number in self._received.items() if source[1] != AGENT}
        has |= {source: number for source, number in self._committed.items() if source[1] == AGENT}
        subscribe = agent_pb2.Subscribe(study_id=self._run_id, positions=_positions(has))
        return agent_pb2.StreamEventsRequest(subscribe=subscribe)

    async def _send_acknowledgements(self, call: Any) -> None:
        """Until ``finish``; a broken call ends it too, and the reader then says why."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            unsent, self._unsent = self._unsent, {}
            if unsent:
                acknowledge = agent_pb2.Acknowledge(positions=_positions(unsent))
                await call.write(agent_pb2.StreamEventsRequest(acknowledge=acknowledge))
            if self._closing:
                # An answer on the same connection: the agent has got what was sent before it.
                with contextlib.suppress(HostUnreachableError):
                    await self.link.inventory(timeout=CLOSE_LIMIT)
                return

    async def _take(self, response: agent_pb2.StreamEventsResponse) -> None:
        size = len(response.events)
        await self._room.take(size)  # first: what is noted as received is handed over in any case
        reports: list[Reports] = []
        events: list[ev.AttemptEvent] = []
        positions: dict[Source, int] = {}
        try:
            for attempt, name, messages in convert.by_source(self._study_id, response.events):
                source = (attempt, name)
                fresh = self._fresh(source, messages)
                positions[source] = self._received[source]
                said, happened = convert.events_from_pb(self.link.name, attempt, name, fresh)
                if said is not None:
                    reports.append(said)
                events += happened
        except convert.ProtocolError as error:
            raise StudyFailedError(f"{self.link.name}: {error}") from error
        self._deliver(Batch(self, tuple(reports), tuple(events), positions, size))

    def _fresh(self, source: Source, messages: list[agent_pb2.Event]) -> list[agent_pb2.Event]:
        """Those that are new, which then count as received."""
        known = self._received.get(source, 0)
        numbers = [message.sequence for message in messages]
        if numbers == list(range(known + 1, known + 1 + len(numbers))):
            self._received[source] = numbers[-1]
            return messages
        fresh: list[agent_pb2.Event] = []
        for message in messages:
            if message.sequence <= known:
                continue
            # A new agent leaves numbers of its own out.
            if message.sequence != known + 1 and source[1] != AGENT:
                _log.warning(
                    "%s: event %d of %s %s came after %d: the agent has lost events",
                    *(self.link.name, message.sequence, *source, known),
                )
            known = message.sequence
            fresh.append(message)
        self._received[source] = known
        return fresh


def _positions(table: Mapping[Source, int]) -> list[agent_pb2.Position]:
    return [
        agent_pb2.Position(attempt=convert.attempt_to_agent(attempt), source=source, sequence=sequence)
        for (attempt, source), sequence in table.items()
    ]


async def _status(call: Any) -> grpc.aio.AioRpcError:
    """Why a call has ended, as an error even where its status is OK."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        code, details = grpc.StatusCode.UNAVAILABLE, "the agent ended the stream"
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)
