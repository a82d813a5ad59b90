from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.harness import RealAgent


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[RealAgent]:
    """A real agent with the fake zygote."""
    agent = await RealAgent.launch(tmp_path)
    try:
        yield agent
    finally:
        await agent.close()
