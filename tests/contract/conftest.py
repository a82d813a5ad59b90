from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.harness import FakeAgent, Harness, RealAgent


@pytest.fixture(params=["real", "scripted"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    kind = RealAgent if request.param == "real" else FakeAgent
    harness = await kind.launch(tmp_path)
    try:
        yield harness
    finally:
        await harness.close()
