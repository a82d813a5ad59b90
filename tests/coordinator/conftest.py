"""Whole studies over gRPC, on scripted agents."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from coordinator.agent_link import AgentLink
from coordinator.directory import StudyDirectory
from coordinator.domain import Reports
from coordinator.hosts import AgentAddress, HostPolicy
from coordinator.patience import Patience
from coordinator.runtime import run_study
from tests.fakes import scripted_agent as fake


class Coordinator:
    """Runs studies in ``path`` and keeps what the observer was told."""

    def __init__(self, path):
        self.path = path
        self.updates = []
        self.stop = asyncio.Event()
        self.changed = asyncio.Event()

    def observe(self, update):
        self.updates.extend(update if isinstance(update, Reports) else [update])
        self.changed.set()

    def seen(self, kind):
        return [update for update in self.updates if isinstance(update, kind)]

    async def wait_for(self, condition, seconds=10.0):
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def run(self, spec, *agents, **options):
        addresses = [a if isinstance(a, AgentAddress) else AgentAddress(a.address) for a in agents]
        options.setdefault("policy", HostPolicy(wait=0.0))
        options.setdefault("patience", Patience(command=2.0, heartbeat=0.1, lost=0.4))
        with StudyDirectory.create(self.path) as directory:
            return await run_study(
                spec, directory=directory, agents=addresses, observer=self.observe, stop=self.stop, **options
            )


@pytest.fixture
def coordinator(tmp_path):
    return Coordinator(tmp_path / "out")


@pytest.fixture
async def serve(tmp_path):
    """Starts scripted agents, and ends them."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(name="a", **options):
            agent = fake.ScriptedAgent(**options)
            await agent.serve(f"unix:{tmp_path}/{name}.sock")
            stack.push_async_callback(agent.close)
            return agent

        yield start
    # A server that is closed may still be ending a call that it was about to answer.
    deadline = time.monotonic() + 5.0
    while left := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.01)


async def round_trip(agent):
    """Whatever was sent to the agent before has arrived there after this."""
    link = AgentLink(AgentAddress(agent.address))
    await link.inventory()
    await link.close()
