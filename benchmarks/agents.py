"""Agents that train nothing, many in a process.

``python -m benchmarks.agents COUNT REPORTS SECONDS BATCH [FOLDER]``; with the FOLDER of an agent's
certificate they speak TLS, behind the gate that real ones have.

Each listens on a port of its own and keeps AgentService's promises towards one coordinator at a time:
idempotence, numbered events in order, resumption from the positions of a subscription, an attempt
forgotten once its end is acknowledged. The load shall cost little beside what is measured, so messages
are put together from bytes that were encoded before, and only the names of attempts are read.

The ports go to standard output as a JSON list; the process ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp

from nhop.security.gate import Gate
from nhop.security.identity import Role
from nhop.security.rotation import Rotation
from nhop.security.server import LIMITS, Trusted, server_credentials
from nhop.v1 import agent_pb2, types_pb2

ROLES = {"nhop.v1.AgentService": frozenset({Role.COORDINATOR})}
SLOTS = 1
OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]
Key = tuple[str, int, int]

_AGENT, _CHIEF = "agent", "worker/0"
_TASK = types_pb2.TaskId(role=types_pb2.TASK_ROLE_WORKER, index=0)


class Life:
    """What every attempt says, in order: started, ready, ``reports`` reports, ended, attempt ended.

    ``stops`` are the places up to which events come at once; the rest follows after a pause. ``batch``
    is how many go into a message at most.
    """

    def __init__(self, reports: int, seconds: float, batch: int) -> None:
        self.batch = batch
        self.reports = reports
        self.length = reports + 4
        self.stops = [1, 2 + reports // 2, self.length] if reports < 100 else [1, self.length]
        self._pause = seconds / (len(self.stops) - 1)
        self._events = [event.SerializeToString() for event in self._all()]
        self._heads: dict[int, list[bytes]] = {}

    def _all(self) -> Iterator[agent_pb2.Event]:
        at = Timestamp()
        at.FromNanoseconds(time.time_ns())
        started = agent_pb2.TaskStarted(task=_TASK, pid=4242)
        yield agent_pb2.Event(source=_AGENT, sequence=1, time=at, task_started=started)
        yield agent_pb2.Event(source=_CHIEF, sequence=1, time=at, task_ready=agent_pb2.TaskReady())
        loss = 1.0
        for number in range(1, self.reports + 1):
            loss = 0.1 + math.exp(-3 * number / self.reports)
            report = types_pb2.Report(step=number, train_loss=loss, time=at)
            yield agent_pb2.Event(source=_CHIEF, sequence=number + 1, time=at, report=report)
        outcome = types_pb2.TaskOutcome(
            status=types_pb2.TASK_STATUS_COMPLETED,
            step=self.reports,
            train_loss=loss,
            val_loss=loss,
            metrics={"mae": loss},
            phase_seconds={"data": 0.01, "model": 0.1, "graph": 0.2, "steps": 0.4, "evaluation": 0.03},
            exit_code=0,
        )
        ended = agent_pb2.TaskEnded(task=_TASK, outcome=outcome)
        yield agent_pb2.Event(source=_AGENT, sequence=2, time=at, task_ended=ended)
        over = agent_pb2.AttemptEnded(reason=agent_pb2.STOP_REASON_FINISHED)
        yield agent_pb2.Event(source=_AGENT, sequence=3, time=at, attempt_ended=over)

    def pause(self, trial: int) -> float:
        """Seconds between two stops of a trial: half to one and a half times the mean, in no order."""
        return self._pause * (0.5 + trial * 0.618034 % 1)

    def message(self, name: bytes, begin: int, end: int) -> bytes:
        """A StreamEventsResponse of the events ``begin`` to ``end`` of an attempt (``name``: encoded)."""
        attempt = b"\x0a" + _varint(len(name)) + name
        heads = self._heads.get(len(attempt))
        if heads is None:
            heads = [b"\x0a" + _varint(len(attempt) + len(event)) for event in self._events]
            self._heads[len(attempt)] = heads
        parts = zip(heads[begin:end], itertools.repeat(attempt), self._events[begin:end], strict=False)
        return b"".join(itertools.chain.from_iterable(parts))

    def place(self, agent: int, chief: int) -> int:
        """How many events lie before these positions."""
        if agent >= 2:
            return self.length - 3 + agent
        return agent + chief


class Attempt:
    """An attempt that was started: how far it has got, been sent, been acknowledged."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.there = 0
        self.sent = 0
        self.agent = 0
        self.chief = 0


class LeanAgent:
    """One agent. Its handlers give and take encoded messages."""

    def __init__(self, number: int, life: Life) -> None:
        self._life = life
        self._attempts: dict[Key, Attempt] = {}
        self._pending: dict[Key, None] = {}
        self._over: set[tuple[str, int, int]] = set()
        self._wake = asyncio.Event()
        self._stream: object = None
        self._inventory = agent_pb2.GetInventoryResponse(
            hostname=f"scripted-{number}",
            nhop_version=metadata.version("nhop"),
            python_version="3.11.0",
            tensorflow_version="2.21.0",
            cpu_cores=SLOTS,
            slots=SLOTS,
            free_slots=SLOTS,
            task_address="127.0.0.1",
            free_disk_bytes=1 << 40,
            memory_bytes=1 << 34,
            first_port=20000,
            last_port=29999,
            incarnation=f"{number}-{time.time_ns()}",
        )
        self._began = time.monotonic()
        lease = agent_pb2.TaskLease(task=_TASK)
        self._prepared = agent_pb2.PrepareAttemptResponse(leases=[lease]).SerializeToString()

    async def serve(self, tls: Rotation | None) -> tuple[grpc.aio.Server, int]:
        """Serves on a free port of the loopback interface."""
        gate = Gate(None, print) if tls is None else Gate(ROLES, print, trusted=Trusted(tls))
        server = grpc.aio.server(options=[*OPTIONS, *LIMITS], interceptors=[gate])
        handlers = {
            "GetInventory": grpc.unary_unary_rpc_method_handler(self._get_inventory),
            "PrepareAttempt": grpc.unary_unary_rpc_method_handler(self._prepare),
            "StartAttempt": grpc.unary_unary_rpc_method_handler(self._start),
            "StopAttempt": grpc.unary_unary_rpc_method_handler(self._stop),
            "StreamEvents": grpc.stream_stream_rpc_method_handler(self._stream_events),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("nhop.v1.AgentService", handlers),)
        )
        if tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
        await server.start()
        return server, port

    # --- unary calls --------------------------------------------------------------------------

    async def _get_inventory(self, request: bytes, context: Any) -> bytes:
        self._inventory.time.FromNanoseconds(time.time_ns())
        self._inventory.uptime.FromNanoseconds(round(1e9 * (time.monotonic() - self._began)))
        return self._inventory.SerializeToString()

    async def _prepare(self, request: bytes, context: Any) -> bytes:
        key, _ = _attempt(request)
        if key in self._over:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the attempt has ended")
        if len(self._attempts.keys() - self._over - {key}) >= SLOTS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no free slot")
        return self._prepared

    async def _start(self, request: bytes, context: Any) -> bytes:
        key, name = _attempt(request)
        if key not in self._attempts and key not in self._over:
            self._attempts[key] = Attempt(name)
            self._go_on(key, 0)
        return b""

    async def _stop(self, request: bytes, context: Any) -> bytes:
        return b""

    def _go_on(self, key: Key, stop: int) -> None:
        attempt, stops = self._attempts[key], self._life.stops
        attempt.there = stops[stop]
        if attempt.there == self._life.length:
            self._over.add(key)  # its slot is free, before anyone can know
        else:
            asyncio.get_running_loop().call_later(self._life.pause(key[1]), self._go_on, key, stop + 1)
        self._pending[key] = None
        self._wake.set()

    # --- events -------------------------------------------------------------------------------

    async def _stream_events(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        first = agent_pb2.StreamEventsRequest.FromString(await anext(requests))
        self._acknowledge(first.subscribe.positions)
        self._stream = me = object()
        for key, attempt in self._attempts.items():
            attempt.sent = self._life.place(attempt.agent, attempt.chief)
            self._pending[key] = None
        acknowledging = asyncio.create_task(self._read_acknowledgements(requests))
        try:
            while self._stream is me:
                while (message := self._next()) is not None:
                    yield message
                self._wake.clear()
                await self._wake.wait()
        finally:
            acknowledging.cancel()

    def _next(self) -> bytes | None:
        parts: list[bytes] = []
        room = self._life.batch
        while self._pending and room:
            key = next(iter(self._pending))
            attempt = self._attempts.get(key)
            if attempt is None or attempt.sent >= attempt.there:
                del self._pending[key]
                continue
            end = min(attempt.there, attempt.sent + room)
            parts.append(self._life.message(attempt.name, attempt.sent, end))
            room -= end - attempt.sent
            attempt.sent = end
        return b"".join(parts) or None

    async def _read_acknowledgements(self, requests: AsyncIterator[bytes]) -> None:
        async for request in requests:
            self._acknowledge(agent_pb2.StreamEventsRequest.FromString(request).acknowledge.positions)

    def _acknowledge(self, positions: Any) -> None:
        for position in positions:
            key = (position.attempt.study_id, position.attempt.trial, position.attempt.attempt)
            attempt = self._attempts.get(key)
            if attempt is None:
                continue
            if position.source == _AGENT:
                attempt.agent = max(attempt.agent, position.sequence)
            else:
                attempt.chief = max(attempt.chief, position.sequence)
            if attempt.agent == 3:
                del self._attempts[key]


def _attempt(request: bytes) -> tuple[Key, bytes]:
    """The attempt that a request is about, which is its first field, and the same encoded."""
    if request[0] != 0x0A or request[1] > 127:
        raise ValueError("not a request about an attempt")
    name = request[2 : 2 + request[1]]
    attempt = types_pb2.AttemptId.FromString(name)
    return (attempt.study_id, attempt.trial, attempt.attempt), name


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


async def serve(count: int, life: Life, folder: str = "") -> None:
    tls = Rotation(Path(folder), Role.AGENT) if folder else None
    served = [await LeanAgent(number, life).serve(tls) for number in range(count)]
    print(json.dumps([port for _, port in served]), flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    await asyncio.gather(*(server.stop(None) for server, _ in served))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        life = Life(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
        runner.run(serve(int(sys.argv[1]), life, *sys.argv[5:]))
