from __future__ import annotations

import asyncio

import pytest

from agent.background import log_exception


async def test_an_exception_that_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("lost otherwise")

    task = asyncio.create_task(fail())
    task.add_done_callback(log_exception)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "lost otherwise" in caplog.text
