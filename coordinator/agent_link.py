"""The coordinator's side of one agent: one channel, commands with deadlines, a heartbeat.

Every command ends in an event, failures included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc

from coordinator import convert
from coordinator import events as ev
from coordinator.domain import AttemptId, Failure, StudySpec
from coordinator.hosts import AgentAddress, Inventory
from coordinator.instructions import CheckAttempt, Command, PrepareAttempt, StartAttempt, StopAttempt
from nhop.v1 import agent_pb2, agent_pb2_grpc
from nhop_models.contract import FailureKind, TaskId

Response = TypeVar("Response")

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)
CALLS_AT_ONCE = 100
TRANSFERS_AT_ONCE = 16
RETRY_PAUSE = 0.1
LOG_BYTES = 256 << 10
PIECE_BYTES = 1 << 20
ACCEPTS = "nhop-accepts"
STALL_LIMIT = 30.0
"""Seconds without a byte after which the transfer of a file is given up."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of a link in seconds.

    ``command`` is the deadline of a command with its retries, ``prepare`` that of a PrepareAttempt
    (another host may have room), ``heartbeat`` the time between two and the deadline of one,
    ``lost`` the time without any after which the host counts as lost.
    """

    command: float = 10.0
    prepare: float = 2.0
    heartbeat: float = 2.0
    lost: float = 30.0


class HostUnreachableError(Exception):
    """The agent does not answer; the message says why, in the user's words."""


class TransferError(Exception):
    """A file could not be fetched or given; ``passing``: it may work a little later."""

    def __init__(self, failure: Failure, *, passing: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.passing = passing


class AgentLink:
    """One agent. ``name`` is what its host is called everywhere."""

    def __init__(self, address: AgentAddress, patience: Patience | None = None) -> None:
        self.address = address
        self.name = address.name
        self._patience = patience or Patience()
        self._channel = grpc.aio.insecure_channel(address.target, options=CHANNEL_OPTIONS)
        self.stub = agent_pb2_grpc.AgentServiceStub(self._channel)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._transfers = asyncio.Semaphore(TRANSFERS_AT_ONCE)
        self._incarnation = ""

    async def close(self) -> None:
        """Ends every call and the connection."""
        await self._channel.close(None)

    async def inventory(self, timeout: float = 5.0, *, wait: bool = False) -> Inventory:
        """What the host has; raises HostUnreachableError. ``wait``: for an agent that is still starting."""
        try:
            message = await self.stub.GetInventory(
                agent_pb2.GetInventoryRequest(), timeout=timeout, wait_for_ready=wait
            )
        except grpc.aio.AioRpcError as error:
            raise HostUnreachableError(self._explain(error)) from error
        self._incarnation = self._incarnation or message.incarnation
        quarantined = tuple(f"GPU {gpu.uuid}: {gpu.quarantined}" for gpu in message.gpus if gpu.quarantined)
        return Inventory(message.slots, len(message.gpus), message.incarnation, quarantined)

    # --- commands -----------------------------------------------------------------------------

    async def execute(self, command: Command, spec: StudySpec) -> ev.AttemptEvent:
        """Does what the machine wants; the outcome is an event in any case."""
        match command:
            case PrepareAttempt():
                return await self._prepare(command, spec)
            case StartAttempt():
                return await self._start(command, spec)
            case StopAttempt():
                return await self._stop(command)
            case CheckAttempt():
                return await self._check(command)

    async def _prepare(self, command: PrepareAttempt, spec: StudySpec) -> ev.AttemptEvent:
        attempt, host = command.attempt, command.host
        try:
            request = convert.prepare_to_pb(command, spec.cluster.gpus_per_worker)
            response = await self._call(self.stub.PrepareAttempt, request, self._patience.prepare)
            addresses = convert.addresses_from_pb(response)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return ev.PrepareRefused(attempt, host, error.details() or "no free slots")
            return ev.PrepareFailed(attempt, host, self._failure(error))
        except convert.ProtocolError as error:
            return ev.PrepareFailed(attempt, host, Failure(FailureKind.INTERNAL, f"{host}: {error}"))
        missing = [str(task) for task in command.tasks if command.ports and task not in addresses]
        if missing:
            message = f"{host} leased no port for {', '.join(missing)}"
            return ev.PrepareFailed(attempt, host, Failure(FailureKind.INTERNAL, message))
        return ev.PrepareSucceeded(attempt, host, addresses)

    async def _start(self, command: StartAttempt, spec: StudySpec) -> ev.AttemptEvent:
        cluster = spec.cluster
        try:
            request = convert.start_to_pb(command, spec.training, spec.limits, cluster.ps, cluster.workers)
            await self._call(self.stub.StartAttempt, request)
        except grpc.aio.AioRpcError as error:
            return ev.StartFailed(command.attempt, command.host, self._failure(error))
        return ev.StartSucceeded(command.attempt, command.host)

    async def _stop(self, command: StopAttempt) -> ev.AttemptEvent:
        try:
            response = await self._call(self.stub.StopAttempt, convert.stop_to_pb(command))
        except grpc.aio.AioRpcError as error:
            return ev.StopFailed(command.attempt, command.host, self._failure(error))
        return ev.StopAnswered(command.attempt, command.host, response.was_active)

    async def _check(self, command: CheckAttempt) -> ev.AttemptEvent:
        request = agent_pb2.ReadLogRequest(
            attempt=convert.attempt_to_agent(command.attempt),
            task=convert.task_to_pb(command.task),
            offset=-1,
        )
        known = True
        try:
            async for _ in self.stub.ReadLog(request, timeout=self._patience.command):
                pass
        except grpc.aio.AioRpcError as error:
            # Any other failure says nothing: should the host be gone, the heartbeat notices.
            known = error.code() is not grpc.StatusCode.NOT_FOUND
        return ev.AttemptChecked(command.attempt, command.host, known)

    async def _call(
        self, method: Callable[..., Awaitable[Response]], request: Any, limit: float | None = None
    ) -> Response:
        """One call within its deadline; only UNAVAILABLE is tried again, all calls are idempotent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (limit or self._patience.command)
        async with self._calls:
            while True:
                try:
                    return await method(request, timeout=max(deadline - loop.time(), 0.001))
                except grpc.aio.AioRpcError as error:
                    late = loop.time() + RETRY_PAUSE >= deadline
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or late:
                        raise
                await asyncio.sleep(RETRY_PAUSE)

    # --- heartbeat ----------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[ev.HostEvent]:
        """Says when the host is silent or lost, when it is back, and when its agent was started again.

        A heartbeat of our own, since an agent whose event loop hangs still answers pings.
        """
        loop = asyncio.get_running_loop()
        beat = self._patience.heartbeat
        heard = loop.time()
        silent_now = lost = False
        incarnation = self._incarnation
        while True:
            await asyncio.sleep(beat)
            try:
                inventory = await self.inventory(timeout=beat)
            except HostUnreachableError as error:
                silent = loop.time() - heard
                if not silent_now:
                    silent_now = True
                    yield ev.HostSilent(self.name)
                if not lost and silent >= self._patience.lost:
                    lost = True
                    yield ev.HostLost(self.name, f"no answer for {silent:.0f} s ({error})")
                continue
            heard = loop.time()
            if lost:
                yield ev.HostFound(self.name)
            elif silent_now:
                yield ev.HostHeard(self.name)
            silent_now = lost = False
            if incarnation and inventory.incarnation != incarnation:
                yield ev.HostRestarted(self.name)
            incarnation = inventory.incarnation

    # --- logs ---------------------------------------------------------------------------------

    async def read_log(self, attempt: AttemptId, task: TaskId) -> bytes | None:
        """The end of a task's log, at most 256 KiB; None where the agent does not have it."""
        request = agent_pb2.ReadLogRequest(
            attempt=convert.attempt_to_agent(attempt), task=convert.task_to_pb(task), offset=-LOG_BYTES
        )
        data = bytearray()
        with contextlib.suppress(grpc.aio.AioRpcError):  # a log is a help for people: its loss is no failure
            async for part in self.stub.ReadLog(request, timeout=self._patience.command):
                data += part.data
            return bytes(data)
        return bytes(data) or None

    # --- files --------------------------------------------------------------------------------

    async def read_artifact(self, attempt: AttemptId, name: str) -> AsyncGenerator[bytes, None]:
        """A file that a task left, piece by piece; raises TransferError."""
        request = agent_pb2.ReadArtifactRequest(attempt=convert.attempt_to_agent(attempt), name=name)
        async with self._transfer(name):
            call = cast("Any", self.stub).ReadArtifact(request)  # the stubs do not know the read style
            try:
                while True:
                    async with asyncio.timeout(STALL_LIMIT):
                        piece = await call.read()
                    if piece is cast("Any", grpc.aio).EOF:
                        return
                    yield piece.data
            finally:
                call.cancel()

    async def write_artifact(self, attempt: AttemptId, name: str, path: Path) -> None:
        """Gives a file to an attempt that is prepared; raises TransferError and OSError."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            async with self._transfer(name):
                call = cast("Any", self.stub).WriteArtifact()
                try:
                    await self._write(call, convert.artifact_header_to_pb(attempt, name, size))
                    async with asyncio.timeout(STALL_LIMIT):
                        metadata = await call.initial_metadata()
                    # A write that meets a refusal would hide its reason (grpc.aio calls it INTERNAL).
                    if any(key == ACCEPTS for key, _ in metadata or ()):
                        while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                            await self._write(call, agent_pb2.WriteArtifactRequest(data=data))
                        await call.done_writing()
                    async with asyncio.timeout(STALL_LIMIT):
                        await call
                finally:
                    call.cancel()

    async def _write(self, call: Any, piece: agent_pb2.WriteArtifactRequest) -> None:
        try:
            async with asyncio.timeout(STALL_LIMIT):
                await call.write(piece)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is not grpc.StatusCode.INTERNAL:
                raise
            message = f"{self.name}: the agent takes no more of the file; is its disk full, or did it end?"
            raise TransferError(Failure(FailureKind.RESOURCES, message)) from error

    @contextlib.asynccontextmanager
    async def _transfer(self, name: str) -> AsyncIterator[None]:
        try:
            async with self._transfers:
                yield
        except grpc.aio.AioRpcError as error:
            passing = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            raise TransferError(self._failure(error), passing=passing) from error
        except TimeoutError as error:
            message = f"{self.name}: {name} stands still, no byte of it for {STALL_LIMIT:g} s"
            raise TransferError(Failure(FailureKind.HOST_LOST, message)) from error

    # --- errors -------------------------------------------------------------------------------

    def _failure(self, error: grpc.aio.AioRpcError) -> Failure:
        match error.code():
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
                kind = FailureKind.HOST_LOST
            case grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.NOT_FOUND:
                kind = FailureKind.RESOURCES
            case _:
                kind = FailureKind.INTERNAL
        return Failure(kind, f"{self.name}: {self._explain(error)}")

    def _explain(self, error: grpc.aio.AioRpcError) -> str:
        details = error.details() or ""
        match error.code():
            case grpc.StatusCode.UNAVAILABLE if "refused" in details or "No such file" in details:
                return f"no agent listens there; start one with: nhop-agent --listen {self.address.target}"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return "no answer in time; is the agent stuck, or the host overloaded?"
            case grpc.StatusCode.UNIMPLEMENTED:
                return "what listens there is not an nhop-agent of this version"
            case code:
                return f"{details} ({code.name})"
