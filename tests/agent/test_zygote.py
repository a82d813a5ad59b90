"""The agent's side of a zygote that does not do what it should."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from agent import zygote as module
from agent.domain import AttemptId, Failure
from agent.zygote import ForkRequest, Zygote
from nhop_models.contract import FailureKind, TaskId
from tests.contract.harness import DEADLINE, ROOT

TASK = TaskId.parse("worker/0")


class Observer:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.failed: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self.deaths = 0
        self.on_death: Callable[[], None] = lambda: None

    def task_forked(self, request: ForkRequest, pid: int, start_ticks: int) -> None:
        self.forked.set_result(pid)

    def fork_failed(self, request: ForkRequest, failure: Failure) -> None:
        self.failed.set_result(failure)

    def task_reaped(self, pid: int, status: int) -> None:
        pass

    async def zygote_died(self, lost: Sequence[ForkRequest]) -> None:
        self.deaths += 1
        self.on_death()


@pytest.fixture
async def observer() -> Observer:
    return Observer()


@pytest.fixture
async def zygote(
    observer: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Zygote]:
    """A zygote that is ready."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    zygote = Zygote((sys.executable, str(ROOT / "tests/fakes/zygote.py")), tmp_path / "log", observer)
    zygote.start()
    try:
        await ready(zygote)
        monkeypatch.setattr(module, "FORK_SECONDS", 0.2)
        yield zygote
    finally:
        await zygote.close()


async def ready(zygote: Zygote) -> None:
    async with asyncio.timeout(DEADLINE):
        while not zygote.tensorflow_version:  # noqa: ASYNC110  (no event tells it)
            await asyncio.sleep(0.01)


def request(directory: Path) -> ForkRequest:
    """For a task that ends at once: there is no attempt in the directory."""
    return ForkRequest(AttemptId("study", 1, 1), TASK, directory)


def stop_process(zygote: Zygote) -> None:
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGSTOP)


async def test_one_that_does_not_answer_is_replaced_and_the_fork_repeated(
    zygote: Zygote, observer: Observer, tmp_path: Path
) -> None:
    stop_process(zygote)
    zygote.fork(request(tmp_path))
    await asyncio.wait_for(observer.forked, DEADLINE)
    assert observer.deaths == 1


@pytest.mark.parametrize("pid", [-1, 0, 1, 10**30])
async def test_what_is_no_single_process_is_never_taken_for_a_task(
    observer: Observer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pid: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(module, "MAX_QUICK_DEATHS", 2)
    command = (sys.executable, str(ROOT / "tests/fakes/zygote.py"), "--names", str(pid))
    zygote = Zygote(command, tmp_path / "log", observer)
    zygote.start()
    try:
        await ready(zygote)
        zygote.fork(request(tmp_path))
        failure = await asyncio.wait_for(observer.failed, DEADLINE)
        assert failure.kind is FailureKind.INTERNAL
        assert not observer.forked.done()
        assert f"{pid} is not a whole number from 2 on" in caplog.text
    finally:
        await zygote.close()


async def test_forks_are_given_up_where_one_after_the_other_hangs(
    zygote: Zygote, observer: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(module, "READY_SECONDS", 0.01)
    stop_process(zygote)
    zygote.fork(request(tmp_path))
    failure = await asyncio.wait_for(observer.failed, DEADLINE)
    assert failure.kind is FailureKind.INTERNAL


async def test_there_is_a_new_one_whatever_goes_wrong_after_a_death(
    zygote: Zygote, observer: Observer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    observer.on_death = fail
    zygote.replace()
    zygote.fork(request(tmp_path))
    await asyncio.wait_for(observer.forked, DEADLINE)
    assert "out of luck" in caplog.text


async def test_one_that_dies_while_it_is_closed_is_not_replaced(
    zygote: Zygote, observer: Observer, tmp_path: Path
) -> None:
    zygote.replace()  # closing waits for the end of a replacement, be it an earlier one
    zygote.fork(request(tmp_path))
    await asyncio.wait_for(observer.forked, DEADLINE)
    assert zygote.pid is not None
    zygote.replace()
    os.waitid(os.P_PID, zygote.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  (the loop must not see it first)
    await zygote.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
