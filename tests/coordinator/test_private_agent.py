"""The agent that a coordinator starts for itself: the real one, without any trial."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from coordinator.errors import StudyFailedError
from coordinator.private_agent import PrivateAgent


class Started:
    def __init__(self, private, link):
        self.private = private
        self.link = link
        self.process = psutil.Process(private.pid)

    def tree(self):
        return [self.process, *self.process.children(recursive=True)]


@pytest.fixture
async def started(tmp_path):
    private = PrivateAgent(tmp_path / "agent", tmp_path / "logs" / "agent.log", 3)
    link = await private.start()
    yield Started(private, link)
    await link.close()
    await private.close()


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=5)
    return alive == []


async def test_it_answers_with_its_slots(started):
    assert (await started.link.inventory()).slots == 3


async def test_it_ends_in_order_and_leaves_nothing(started, tmp_path):
    tree = started.tree()
    await started.private.close()
    assert gone(tree)
    assert not (tmp_path / "agent").exists()
    assert not Path(started.private.address.target.removeprefix("unix:")).exists()  # noqa: ASYNC240


async def test_one_that_is_stuck_is_killed_with_its_children(started):
    tree = started.tree()
    started.process.suspend()
    await started.private.close(limit=0.1)
    assert gone(tree)


async def test_its_death_is_told_with_the_end_of_its_log(started):
    started.process.send_signal(signal.SIGKILL)
    with pytest.raises(StudyFailedError, match="signal 9"):
        await started.private.closed_by_itself()


async def test_one_that_does_not_come_up_is_told_with_the_end_of_its_log(tmp_path):
    (tmp_path / "agent").write_text("in the way")
    private = PrivateAgent(tmp_path / "agent", tmp_path / "logs" / "agent.log", 1)
    with pytest.raises(
        StudyFailedError, match=r"did not come up \(exit status \d+\); the end of .*agent\.log"
    ):
        await private.start()
    await private.close()


async def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    agent = PrivateAgent(tmp_path / "state", tmp_path / "logs" / "agent.log", slots=1)
    with pytest.raises(StudyFailedError, match=r"agent\.log: cannot be written"):
        await agent.start()
    await agent.close()
