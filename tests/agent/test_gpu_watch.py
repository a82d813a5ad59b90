from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from pathlib import Path

import pytest

from agent import gpu_watch
from agent.domain import AttemptId
from agent.gpu_pool import GpuPool
from agent.gpu_watch import GpuWatch
from agent.leases import NotEnoughError
from tests.contract.harness import DEADLINE
from tests.fakes.gpus import FileGpus, write_gpus

ATTEMPT = AttemptId("s", 1, 1)
GONE = 2**22 + 1
"""A pid that no process has."""


class Watched:
    def __init__(self, path: Path, limit: float = 60.0) -> None:
        self.path = path
        self.pool = GpuPool()
        self.leftovers: list[int] = []
        self.watch = GpuWatch(FileGpus(path), self.pool, limit, lambda: self.leftovers)

    def take(self, attempt: AttemptId = ATTEMPT) -> None:
        self.pool.take(attempt, [Fraction(1)])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110  (the driver tells no one either)
                await asyncio.sleep(0.01)

    @property
    def free(self) -> Fraction:
        return self.pool["GPU-a"].free


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    """One GPU, held by an attempt."""
    write_gpus(tmp_path / "gpus.json", "GPU-a")
    watched = Watched(tmp_path / "gpus.json")
    await watched.watch.find()
    watched.take()
    yield watched
    await watched.watch.close()


async def test_a_host_whose_driver_is_in_trouble_has_no_gpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gpus.json").write_text('{"error": "version mismatch"}')
    watched = Watched(tmp_path / "gpus.json")
    await watched.watch.find()
    assert list(watched.pool) == []
    assert "no GPU can be used: version mismatch" in caplog.text


async def test_an_inventory_that_breaks_is_no_end_of_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gpus.json").write_text("nonsense")
    await Watched(tmp_path / "gpus.json").watch.find()
    assert "no GPU can be used: JSONDecodeError" in caplog.text


async def test_a_driver_that_hangs_holds_nothing_up(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_watch, "ANSWER_SECONDS", 0.05)
    hanging = threading.Event()
    monkeypatch.setattr(FileGpus, "devices", lambda _: hanging.wait(DEADLINE))
    await watched.watch.find()
    hanging.set()
    assert "no answer within 0.05 s" in caplog.text


async def test_gpus_come_back_when_the_driver_lists_no_one(watched: Watched) -> None:
    watched.watch.depart(ATTEMPT, [GONE])
    await watched.until(lambda: watched.free == 1)


async def test_they_do_not_before(watched: Watched) -> None:
    write_gpus(watched.path, "GPU-a", pids={"GPU-a": [GONE]})
    watched.watch.depart(ATTEMPT, [GONE])
    with pytest.raises(NotEnoughError):
        await watched.watch.patiently(lease_of(watched, seconds=0.2))
    write_gpus(watched.path, "GPU-a")
    await watched.until(lambda: watched.free == 1)


async def test_a_process_that_lives_here_is_not_waited_for(watched: Watched) -> None:
    write_gpus(watched.path, "GPU-a", pids={"GPU-a": [os.getpid()]})
    watched.watch.depart(ATTEMPT, [GONE])
    await watched.until(lambda: watched.free == 1)


async def test_one_that_a_task_left_behind_is(watched: Watched) -> None:
    write_gpus(watched.path, "GPU-a", pids={"GPU-a": [os.getpid()]})
    watched.leftovers.append(os.getpid())
    watched.watch.depart(ATTEMPT, [GONE])
    with pytest.raises(NotEnoughError):
        await watched.watch.patiently(lease_of(watched, seconds=0.2))


async def test_a_request_waits_for_gpus_that_are_about_to_be_back(watched: Watched) -> None:
    watched.watch.depart(ATTEMPT, [GONE])
    await watched.watch.patiently(lease_of(watched))
    assert watched.free == 0


async def test_a_request_does_not_wait_for_gpus_that_are_in_use(watched: Watched) -> None:
    calls = []

    def lease() -> None:
        calls.append(1)
        lease_of(watched)()

    with pytest.raises(NotEnoughError):
        await watched.watch.patiently(lease)
    assert len(calls) == 1


async def test_a_quarantine_is_logged_and_lifted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_gpus(tmp_path / "gpus.json", "GPU-a")
    watched = Watched(tmp_path / "gpus.json", limit=0.05)
    await watched.watch.find()
    watched.take()
    write_gpus(watched.path, "GPU-a", pids={"GPU-a": [GONE]})
    watched.watch.depart(ATTEMPT, [GONE])
    await watched.until(lambda: bool(watched.pool["GPU-a"].quarantined))
    assert "GPU GPU-a is quarantined: s-t1-a1 has ended, but the driver still lists" in caplog.text
    write_gpus(watched.path, "GPU-a")
    await watched.until(lambda: not watched.pool["GPU-a"].quarantined)
    assert "GPU GPU-a may be leased again" in caplog.text
    await watched.watch.close()


async def test_processes_of_before_the_agents_start_are_strangers(tmp_path: Path) -> None:
    write_gpus(tmp_path / "gpus.json", "GPU-a", pids={"GPU-a": [GONE]})
    watched = Watched(tmp_path / "gpus.json")
    await watched.watch.find()
    watched.take()
    watched.watch.depart(ATTEMPT, [GONE + 1])
    await watched.until(lambda: watched.free == 1)
    await watched.watch.close()


def lease_of(watched: Watched, seconds: float = 0.0) -> Callable[[], None]:
    """Takes the GPU for another attempt; gives up ``seconds`` after the first try, where that is not 0."""
    begun = asyncio.get_running_loop().time()

    def lease() -> None:
        if watched.free < 1:
            late = seconds and asyncio.get_running_loop().time() >= begun + seconds
            raise NotEnoughError("SLOTS" if late else "GPUS", 1, 0)
        watched.take(AttemptId("s", 2, 1))

    return lease
