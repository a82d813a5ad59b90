"""What a server answers to bytes that are no message."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import grpc
import pytest

from nhop._decoding import Decoding
from nhop.v1 import agent_pb2, agent_pb2_grpc

SERVICE = "/nhop.v1.AgentService"
BAD = b"\xff\xff"
GOOD = b""


class AtHand:
    """Stands for all that a method has at hand; messages cannot be referred to weakly."""

    def __init__(self, seen: list[Any]) -> None:
        seen.append(weakref.ref(self))


class Service(agent_pb2_grpc.AgentServiceServicer):
    """One method of each arity that grants what it gets, and one that refuses it."""

    seen: ClassVar[list[Any]] = []

    async def GetInventory(self, request: Any, context: Any) -> Any:  # noqa: N802
        return agent_pb2.GetInventoryResponse()

    async def ReadLog(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield agent_pb2.ReadLogResponse()

    async def WriteArtifact(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        async for _ in request_iterator:
            pass
        return agent_pb2.WriteArtifactResponse()

    async def StopAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        at_hand = AtHand(self.seen)
        await refuse(context)
        del at_hand

    async def ReadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        at_hand = AtHand(self.seen)
        await refuse(context)
        del at_hand
        yield

    async def PutBundle(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        async for _ in request_iterator:
            at_hand = AtHand(self.seen)
            await refuse(context)
            del at_hand

    async def StreamEvents(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for _ in request_iterator:
            yield agent_pb2.StreamEventsResponse()


async def refuse(context: Any) -> None:
    try:
        raise ValueError
    except ValueError:
        await context.abort(grpc.StatusCode.NOT_FOUND, "refused")


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=(Decoding(),))
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def call(channel: grpc.aio.Channel, method: str, *messages: bytes) -> tuple[Any, str, int]:
    """Code, details, and how many answers came."""
    sent: Any = channel.stream_stream(f"{SERVICE}/{method}")(iter(messages), timeout=10)
    answers = 0
    try:
        async for _ in sent:
            answers += 1
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details()), answers
    return await sent.code(), "", answers


@pytest.mark.parametrize("method", ["GetInventory", "ReadLog", "WriteArtifact", "StreamEvents"])
async def test_what_is_no_message_is_refused_and_not_logged(
    channel: grpc.aio.Channel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, details, answers = await call(channel, method, BAD)
    assert (code, answers) == (grpc.StatusCode.INVALID_ARGUMENT, 0)
    assert f"nhop.v1.{method}Request" in details
    assert caplog.records == []
    assert await call(channel, method, GOOD) == (grpc.StatusCode.OK, "", 1)


async def test_what_is_no_message_in_the_middle_of_a_stream_ends_it(channel: grpc.aio.Channel) -> None:
    code, _, answers = await call(channel, "StreamEvents", GOOD, GOOD, BAD, GOOD)
    assert (code, answers) == (grpc.StatusCode.INVALID_ARGUMENT, 2)
    code, _, _ = await call(channel, "WriteArtifact", GOOD, BAD)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_stays_unimplemented(channel: grpc.aio.Channel) -> None:
    code, _, _ = await call(channel, "Nope", GOOD)
    assert code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["StopAttempt", "ReadArtifact", "PutBundle"])
async def test_what_is_refused_does_not_stay_in_memory(channel: grpc.aio.Channel, method: str) -> None:
    gc.collect()
    gc.disable()
    try:
        Service.seen.clear()
        for _ in range(5):
            code, _, _ = await call(channel, method, GOOD)
            assert code is grpc.StatusCode.NOT_FOUND
        deadline = time.monotonic() + 10
        while left := [seen for seen in Service.seen if seen() is not None]:
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.01)
    finally:
        gc.enable()
    assert len(Service.seen) == 5
