"""One study's events from one agent, message by message."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from coordinator import event_stream
from coordinator import events as ev
from coordinator.domain import AttemptId
from coordinator.event_stream import EventStream
from coordinator.room import Room
from nhop.v1 import agent_pb2, types_pb2
from nhop_models.contract import TaskId
from tests.coordinator.studies import make_spec

ATTEMPT = AttemptId("s1", 1, 1)


def ready(*sequences):
    """A message with one event of worker/0 for each number."""
    attempt = types_pb2.AttemptId(study_id="s1", trial=1, attempt=1)
    return agent_pb2.StreamEventsResponse(
        events=[
            agent_pb2.Event(attempt=attempt, source="worker/0", sequence=n, task_ready=agent_pb2.TaskReady())
            for n in sequences
        ]
    )


class Agent:
    """In the place of a link: each connection plays a list of messages, then ends; the last one stays."""

    name = "a"

    def __init__(self, *connections):
        self.connections = list(connections)
        self.subscribed = []
        self.stub = SimpleNamespace(StreamEvents=lambda: Call(self))


class Call:
    def __init__(self, agent):
        self.agent = agent
        self.messages = agent.connections.pop(0)

    async def write(self, request):
        if request.HasField("subscribe"):
            self.agent.subscribed.append([position.sequence for position in request.subscribe.positions])

    async def __aiter__(self):
        for message in self.messages:
            yield message
        if not self.agent.connections:
            await asyncio.Event().wait()

    async def code(self):
        return event_stream.grpc.StatusCode.UNAVAILABLE

    async def details(self):
        return "cut"

    def cancel(self):
        pass


@pytest.fixture
async def follow(monkeypatch):
    """Follows an agent; batches come out of the queue."""
    monkeypatch.setattr(event_stream, "PAUSES", (0.0, 0.0))
    tasks = []

    def start(agent, room=None):
        batches = asyncio.Queue()
        stream = EventStream(agent, make_spec(), batches.put_nowait, room or Room(100))
        tasks.append(asyncio.create_task(stream.run()))
        return stream, batches

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def get(batches):
    async with asyncio.timeout(10):
        return await batches.get()


async def test_what_is_sent_again_is_acknowledged_and_not_handed_over_again(follow):
    _, batches = follow(Agent([ready(1, 2), ready(1, 2, 3)]))
    assert len((await get(batches)).events) == 2
    again = await get(batches)
    assert again.events == (ev.TaskReady(ATTEMPT, "a", TaskId.parse("worker/0")),)
    assert again.positions == {(ATTEMPT, "worker/0"): 3}


async def test_what_was_not_handed_over_is_not_subscribed_past(follow):
    """A connection that breaks while there is no room must not lose the message that waits."""
    room = Room(1)
    stream, batches = follow(Agent([ready(1), ready(2)]), room)
    first = await get(batches)
    for _ in range(5):  # the second message waits for room
        await asyncio.sleep(0)
    assert [position.sequence for position in stream._subscription().subscribe.positions] == [1]
    room.give(first.size)
    assert (await get(batches)).positions == {(ATTEMPT, "worker/0"): 2}
