"""What a server answers to bytes that are no message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from nhop._decoding import Decoding
from nhop.v1 import agent_pb2, agent_pb2_grpc

SERVICE = "/nhop.v1.AgentService"
BAD = b"\xff\xff"
GOOD = b""


class Service(agent_pb2_grpc.AgentServiceServicer):
    """One method of each arity."""

    async def GetInventory(self, request: Any, context: Any) -> Any:  # noqa: N802
        return agent_pb2.GetInventoryResponse()

    async def ReadLog(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield agent_pb2.ReadLogResponse()

    async def WriteArtifact(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        async for _ in request_iterator:
            pass
        return agent_pb2.WriteArtifactResponse()

    async def StreamEvents(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for _ in request_iterator:
            yield agent_pb2.StreamEventsResponse()


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
