"""Logs and files between the coordinator and one agent, piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import IO, Any, cast

import grpc
from google.protobuf.message import Message

from coordinator import convert
from coordinator.bundles import Bundle
from coordinator.domain import AttemptId, Failure
from coordinator.hosts import AgentAddress
from coordinator.link_errors import (
    CLOSED,
    HostUnreachableError,
    LogGoneError,
    TransferError,
    are_we_cancelled,
    closed,
    explain,
    failure,
)
from nhop.v1 import agent_pb2, agent_pb2_grpc
from nhop_models.contract import FailureKind, TaskId

AT_ONCE = 16
LOG_BYTES = 256 << 10
PIECE_BYTES = 1 << 20
ACCEPTS = "nhop-accepts"
STALL_LIMIT = 30.0
"""Seconds without a byte after which the transfer of a file is given up."""
UNPACKING_LIMIT = 900.0
"""Seconds that an agent may take to unpack what it was sent."""


class Transfers:
    """Those of one agent, by its ``stub``. ``log_limit``: seconds for reading the end of a log."""

    def __init__(
        self, address: AgentAddress, stub: agent_pb2_grpc.AgentServiceAsyncStub, log_limit: float
    ) -> None:
        self._address = address
        self.stub = stub
        self._log_limit = log_limit
        self._room = asyncio.Semaphore(AT_ONCE)

    # --- logs ---------------------------------------------------------------------------------

    async def read_log(self, attempt: AttemptId, task: TaskId) -> bytes | None:
        """The end of a task's log, at most 256 KiB; None where the agent does not have it."""
        request = agent_pb2.ReadLogRequest(
            attempt=convert.attempt_to_agent(attempt), task=convert.task_to_pb(task), offset=-LOG_BYTES
        )
        data = bytearray()
        # A log is a help for people: that its host does not answer, or has left, is no failure.
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError):
            async for part in self.stub.ReadLog(request, timeout=self._log_limit):
                data += part.data
            return bytes(data)
        return bytes(data) or None

    async def follow_log(
        self, attempt: AttemptId, task: TaskId, offset: int = 0, *, follow: bool = True
    ) -> AsyncGenerator[bytes, None]:
        """A task's log from a byte on, piece by piece; ``follow``: until the task has ended.

        A follower gets an empty piece as soon as the agent has taken it. Raises LogGoneError where the
        agent does not know the attempt, HostUnreachableError where it does not answer, and TransferError
        where it refuses.
        """
        request = agent_pb2.ReadLogRequest(
            attempt=convert.attempt_to_agent(attempt),
            task=convert.task_to_pb(task),
            offset=offset,
            follow=follow,
        )
        try:
            call = cast("Any", self.stub).ReadLog(request)  # the stubs do not know the read style
        except grpc.aio.UsageError as error:
            raise HostUnreachableError(CLOSED) from error
        try:
            if follow and any(key == ACCEPTS for key, _ in await call.initial_metadata() or ()):
                yield b""
            while True:
                # Whom one follows may be silent for long; its host is watched by other means.
                async with asyncio.timeout(None if follow else STALL_LIMIT):
                    piece = await call.read()
                if piece is cast("Any", grpc.aio).EOF:
                    return
                yield piece.data
        except TimeoutError:
            raise HostUnreachableError(f"no byte of the log for {STALL_LIMIT:g} s") from None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise LogGoneError(error.details() or "") from error
            found = failure(self._address, error)
            if found.kind is FailureKind.HOST_LOST:
                raise HostUnreachableError(explain(self._address, error)) from error
            raise TransferError(found) from error
        except asyncio.CancelledError:
            if are_we_cancelled():
                raise
            raise HostUnreachableError(CLOSED) from None
        finally:
            call.cancel()

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
                pieces = (
                    agent_pb2.WriteArtifactRequest(data=data) async for data in _pieces(file, PIECE_BYTES)
                )
                await self._give(call, convert.artifact_header_to_pb(attempt, name, size), pieces)

    async def put_bundle(self, bundle: Bundle) -> None:
        """Gives the agent a bundle, if it does not have it; raises TransferError and OSError."""
        async with self._transfer(bundle.name):
            call = cast("Any", self.stub).PutBundle()
            pieces = (agent_pb2.PutBundleRequest(data=data) async for data in bundle.pieces())
            header = convert.bundle_header_to_pb(bundle.digest, bundle.size)
            await self._give(call, header, pieces, UNPACKING_LIMIT)

    async def _give(
        self, call: Any, header: Message, pieces: AsyncIterator[Message], answer_limit: float = STALL_LIMIT
    ) -> None:
        """Sends a file behind its header, if the other side wants it, and waits until it is kept."""
        try:
            await self._write(call, header, first=True)
            async with asyncio.timeout(STALL_LIMIT):
                metadata = await call.initial_metadata()
            # A write that meets a refusal would hide its reason (grpc.aio calls it INTERNAL).
            accepts = dict(metadata or ()).get(ACCEPTS)
            if accepts == "yes":
                async for piece in pieces:
                    await self._write(call, piece)
            if accepts is not None:
                await call.done_writing()
            async with asyncio.timeout(answer_limit):
                await call
        finally:
            call.cancel()

    async def _write(self, call: Any, piece: Message, *, first: bool = False) -> None:
        try:
            async with asyncio.timeout(STALL_LIMIT):
                await call.write(piece)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is not grpc.StatusCode.INTERNAL:
                raise
            if first:  # before anything could be refused
                message = f"{self._address.name}: the connection broke off; is the agent still there?"
                raise TransferError(Failure(FailureKind.HOST_LOST, message), passing=True) from error
            message = (
                f"{self._address.name}: the agent takes no more of the file; is its disk full, or did it end?"
            )
            raise TransferError(Failure(FailureKind.RESOURCES, message)) from error

    @contextlib.asynccontextmanager
    async def _transfer(self, name: str) -> AsyncIterator[None]:
        try:
            async with self._room:
                yield
        except grpc.aio.AioRpcError as error:
            passing = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            raise TransferError(failure(self._address, error), passing=passing) from error
        except grpc.aio.UsageError as error:
            raise TransferError(failure(self._address, closed())) from error
        except asyncio.CancelledError as error:
            if are_we_cancelled():
                raise
            # A connection for an earlier certificate of ours, as a rule: there is a newer one.
            raise TransferError(failure(self._address, closed()), passing=True) from error
        except TimeoutError as error:
            message = f"{self._address.name}: {name} stands still, no byte of it for {STALL_LIMIT:g} s"
            raise TransferError(Failure(FailureKind.HOST_LOST, message)) from error


async def _pieces(file: IO[bytes], size: int) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(file.read, size):
        yield data
