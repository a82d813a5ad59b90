"""What AgentService promises of logs that are followed, whoever serves it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from nhop.v1 import agent_pb2
from tests.contract.harness import DEADLINE, Harness, attempt_id, task_id

FOREVER = {"worker/0": {"runs_for": None, "reports": 1, "log": "hello log"}}
MAX_FOLLOWERS = 64
EOF: Any = grpc.aio.EOF


def follow(agent: Harness, task: str = "worker/0", offset: int = 0, attempt: int = 1) -> Any:
    request = agent_pb2.ReadLogRequest(
        attempt=attempt_id(attempt=attempt), task=task_id(task), offset=offset, follow=True
    )
    return agent.stub.ReadLog(request, timeout=DEADLINE)


async def rest(call: Any) -> bytes:
    return b"".join([part.data async for part in call])


async def following(agent: Harness) -> Any:
    """A follower that the agent has accepted."""
    call = follow(agent)
    assert ("nhop-accepts", "yes") in list(await call.initial_metadata())
    return call


async def test_a_log_is_followed_until_its_task_has_ended(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=FOREVER)
    call = follow(agent)
    assert (await asyncio.wait_for(call.read(), DEADLINE)).data == b"hello log\n"
    await agent.stop(attempt_id())
    assert await call.read() is EOF


async def test_a_log_is_followed_from_a_place(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=FOREVER)
    call = follow(agent, offset=6)
    assert (await asyncio.wait_for(call.read(), DEADLINE)).data == b"log\n"
    call.cancel()


async def test_the_log_of_a_task_that_is_not_forked_yet_is_waited_for(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    call = await following(agent)
    await agent.start(attempt_id(), prepared.leases, FOREVER)
    assert (await asyncio.wait_for(call.read(), DEADLINE)).data == b"hello log\n"
    call.cancel()


async def test_following_ends_with_an_attempt_that_is_never_started(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "worker/0")
    call = await following(agent)
    await agent.stop(attempt_id())
    assert await rest(call) == b""


async def test_the_whole_log_of_a_task_that_has_ended_is_followed(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"log": "hello log"}})
    await agent.events(attempt_id())
    assert await rest(follow(agent)) == b"hello log\n"


async def test_a_follower_has_all_when_the_attempt_is_forgotten(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    call = await following(agent)
    async with agent.follow() as stream:
        await agent.start(attempt_id(), prepared.leases, {"worker/0": {"log": "hello log"}})
        events = await stream.until(lambda event: event.WhichOneof("kind") == "attempt_ended")
        await stream.acknowledge(*events)
        assert await rest(call) == b"hello log\n"


async def test_an_unknown_attempt_is_not_followed(agent: Harness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(follow(agent, attempt=2))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_followers_are_bounded_and_make_room_when_they_go(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=FOREVER)
    calls = [await following(agent) for _ in range(MAX_FOLLOWERS)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(follow(agent))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                call = follow(agent)
                assert (await call.read()).data == b"hello log\n"
                call.cancel()
                return
