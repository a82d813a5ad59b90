"""A link that has a new certificate: what went over the connection of before goes on over the new one."""

from __future__ import annotations

import asyncio

import pytest

from coordinator import agent_link
from coordinator.agent_link import AgentLink
from coordinator.domain import AttemptId
from coordinator.event_stream import EventStream
from coordinator.events import AttemptEnded
from coordinator.hosts import AgentAddress
from coordinator.link_errors import TransferError
from coordinator.room import Room
from tests.contract.harness import DEADLINE, RealAgent, attempt_id
from tests.coordinator.studies import make_spec


@pytest.fixture
async def agent(tmp_path):
    agent = await RealAgent.launch(tmp_path)
    yield agent
    await agent.close()


@pytest.fixture
async def link(agent, monkeypatch):
    """Its former connection is closed as soon as there is a new one."""
    monkeypatch.setattr(agent_link, "FORMER_SECONDS", 0.0)
    link = AgentLink(AgentAddress(agent.address))
    yield link
    await link.close()


async def renew(link):
    link.renew()
    (former,) = link._former.values()
    await former


async def test_events_go_on(agent, link):
    batches = asyncio.Queue()
    stream = EventStream(link, make_spec(study_id="study"), batches.put_nowait, Room(100))
    running = asyncio.create_task(stream.run())
    try:
        await agent.run(attempt_id(), "worker/0", script={"worker/0": {"runs_for": None}})
        async with asyncio.timeout(DEADLINE):
            await batches.get()
            await renew(link)
            await agent.stop(attempt_id())
            while not any(isinstance(event, AttemptEnded) for event in (await batches.get()).events):
                pass
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_file_that_was_cut_off_can_be_fetched_again(agent, link):
    script = {"worker/0": {"artifacts": {"model.keras": "m" * 3_000_000}}}
    await agent.run(attempt_id(), "worker/0", script=script)
    await agent.events(attempt_id())
    attempt = AttemptId("study", 1, 1)
    pieces = link.transfers.read_artifact(attempt, "model.keras")
    await anext(pieces)
    await renew(link)
    with pytest.raises(TransferError) as error:
        async for _ in pieces:
            pass
    assert error.value.passing
    size = 0
    async for piece in link.transfers.read_artifact(attempt, "model.keras"):
        size += len(piece)
    assert size == 3_000_000
