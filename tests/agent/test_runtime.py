"""An agent in this process, whose zygote never starts: what it does when the system refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest

from agent.attempt import Attempt
from agent.config import AgentConfig, ListenAddress
from agent.domain import AttemptId, AttemptState, Limits, TaskRequirement, TaskState
from agent.runtime import ATTEMPTS, Agent
from agent.zygote import ForkRequest
from nhop_models.contract import TaskId, TaskSpec
from tests.contract.harness import DEADLINE

ATTEMPT = AttemptId("study", 1, 1)
TASK = TaskId.parse("worker/0")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """With one attempt, whose task is to be forked."""
    (tmp_path / ATTEMPTS).mkdir()
    agent = Agent(AgentConfig(ListenAddress(path=tmp_path / "sock"), tmp_path, slots=1))
    agent.prepare(ATTEMPT, [TaskRequirement(TASK, 1, port=False)], None)
    agent.begin(ATTEMPT, TaskSpec("study", 1, 1, "Regressor", {}, {}, 10, 0.0, 1), Limits())
    yield agent
    agent.processes.close()
    agent.attempts[ATTEMPT].directory.close_doorbell()


@pytest.fixture
async def process() -> AsyncIterator[asyncio.subprocess.Process]:
    """What passes for the task."""
    process = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


def forked(agent: Agent, process: asyncio.subprocess.Process) -> Attempt:
    attempt = agent.attempts[ATTEMPT]
    agent.task_forked(ForkRequest(ATTEMPT, TASK, attempt.directory.path), process.pid, 1)
    return attempt


async def test_a_task_has_ended_even_where_cleaning_up_after_it_fails(
    agent: Agent,
    process: asyncio.subprocess.Process,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_group: int | None = None) -> NoReturn:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(agent.processes, "needs_clean_up", lambda _pid: True)
    monkeypatch.setattr(agent.processes, "clean_up", fail)
    attempt = forked(agent, process)
    agent.task_reaped(process.pid, 0)
    async with asyncio.timeout(DEADLINE):
        while "please report this" not in caplog.text:  # noqa: ASYNC110  (the log tells no one)
            await asyncio.sleep(0.01)
    assert "out of luck" in caplog.text
    assert attempt.machine.state is AttemptState.ENDED
    assert agent.leases.free_slots == 1


async def test_a_task_whose_reports_cannot_be_read_is_watched_all_the_same(
    agent: Agent, process: asyncio.subprocess.Process
) -> None:
    agent.attempts[ATTEMPT].directory.spool_path(TASK).mkdir()
    assert forked(agent, process).machine.tasks_in(TaskState.STARTING) == [TASK]
    assert process.pid in agent.processes


async def test_a_fork_that_was_lost_while_its_attempt_stops_is_not_repeated(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = agent.attempts[ATTEMPT]
    request = ForkRequest(ATTEMPT, TASK, attempt.directory.path)
    with monkeypatch.context() as patch:
        patch.setattr(agent.zygote, "withdraw", lambda *_: False)  # it has gone to the zygote
        agent.kill_all()
    await agent.zygote_died([request])
    assert attempt.machine.state is AttemptState.ENDED


async def test_a_subscription_however_short_ends_the_absence_of_a_coordinator(agent: Agent) -> None:
    absences = agent.rounds.absences
    absences.abandoned(agent.studies_alone(), 0.0)
    agent.subscribers.remove(agent.subscribe(ATTEMPT.study_id, {}))
    assert absences.abandoned(agent.studies_alone(), agent.config.abandon_limit) == set()


@pytest.mark.parametrize(
    ("incarnation", "ahead", "counts"),
    [("", 0.0, True), ("another", 0.0, False), ("", 1000.0, False)],
    ids=["its own", "of an earlier agent", "of the future"],
)
async def test_which_answers_count_as_received(
    agent: Agent, incarnation: str, ahead: float, counts: bool
) -> None:
    later = asyncio.get_running_loop().time() + 50.0
    before = agent.rounds.contacts.silent_for(ATTEMPT.study_id, later)
    uptime = agent.uptime + ahead
    agent.heard([ATTEMPT.study_id], incarnation or agent.incarnation, uptime)
    assert (agent.rounds.contacts.silent_for(ATTEMPT.study_id, later) < before) is counts


async def test_a_coordinator_that_has_received_nothing_yet_says_nothing(agent: Agent) -> None:
    later = asyncio.get_running_loop().time() + 50.0
    before = agent.rounds.contacts.silent_for(ATTEMPT.study_id, later)
    agent.heard([ATTEMPT.study_id], agent.incarnation, None)
    assert agent.rounds.contacts.silent_for(ATTEMPT.study_id, later) == before > 0.0
