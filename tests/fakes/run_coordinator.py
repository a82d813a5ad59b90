"""A served coordinator with a scripted agent, in a process of its own: ADDRESS AGENTS_ADDRESS RUNS.

Its trials run until they are stopped. Prints what ``nhop-coordinator --serve`` prints; SIGTERM ends it, and
the end of its standard input.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sys
from pathlib import Path

import uvloop

from coordinator.hosts import AgentAddress
from coordinator.service import serve
from tests.fakes.scripted_agent import ScriptedAgent, TaskScript

SLOTS = 4


async def main(address: str, agents_address: str, runs: Path) -> None:
    """Serves until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    asyncio.get_running_loop().add_reader(0, stop.set)
    agent = ScriptedAgent(slots=SLOTS, script=lambda *_: TaskScript(runs_for=math.inf, reports=1))
    agents = [AgentAddress(await agent.serve(agents_address))]
    await serve(
        address, agents=agents, runs_directory=runs, stop=stop, announce=lambda text: print(text, flush=True)
    )
    await agent.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvloop.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
