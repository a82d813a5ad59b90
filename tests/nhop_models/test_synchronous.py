"""Synchronous training on real processes."""

from __future__ import annotations

import signal
import time

import pytest

from nhop_models.contract import FailureKind, TaskStatus
from tests.nhop_models.driver import PARAMETERS, cluster

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("ps", "workers"), [(1, 2), (2, 3)])
def test_k_workers_are_one_with_k_times_the_batch(make_attempt, ps, workers):
    alone = make_attempt(
        parameters={**PARAMETERS, "batch_size": 60 * workers}, train_epoch=120, report_interval=0.0
    )
    alone.start("worker/0")
    together = make_attempt(
        **cluster(ps, workers),
        sync_replicas=True,
        parameters={**PARAMETERS, "batch_size": 60},
        train_epoch=120,
        report_interval=0.0,
    )
    together.start(*[f"ps/{i}" for i in range(ps)], *[f"worker/{i}" for i in range(workers)])
    one, many = alone.wait("worker/0"), together.wait("worker/0")
    assert many.step == 120
    assert many.notes == ()
    assert many.val_loss == pytest.approx(one.val_loss, rel=2e-4)


def test_every_worker_goes_to_the_last_step(make_attempt):
    attempt = make_attempt(**cluster(1, 3), sync_replicas=True, train_epoch=100)
    attempt.start("ps/0", "worker/0", "worker/1", "worker/2")
    chief = attempt.wait("worker/0")
    assert (chief.step, chief.notes) == (100, ())
    attempt.stop()
    for worker in ("worker/1", "worker/2"):
        assert attempt.outcome(worker).step == 100


@pytest.mark.parametrize("backup", [0, 1])
def test_a_killed_worker_is_not_waited_for(make_attempt, backup):
    attempt = make_attempt(**cluster(1, 3), sync_replicas=True, sync_backup_workers=backup, train_epoch=1500)
    attempt.start("ps/0", "worker/0", "worker/1", "worker/2")
    attempt.wait_for_records("worker/2", 3)
    attempt.signal("worker/2", signal.SIGKILL)
    outcome = attempt.wait("worker/0")
    assert (outcome.status, outcome.step) == (TaskStatus.COMPLETED, 1500)
    if not backup:
        assert "worker/2" in outcome.notes[0]


def test_a_worker_that_never_came_up_is_not_waited_for(make_attempt):
    attempt = make_attempt(**cluster(1, 2), sync_replicas=True, train_epoch=50)
    attempt.start("ps/0", "worker/1")
    attempt.signal("worker/1", signal.SIGKILL)
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert (outcome.status, outcome.step) == (TaskStatus.COMPLETED, 50)


def test_a_worker_that_stands_still_delays_and_comes_back(make_attempt):
    attempt = make_attempt(**cluster(1, 2), sync_replicas=True, train_epoch=6000)
    attempt.start("ps/0", "worker/0", "worker/1")
    attempt.wait_for_records("worker/1", 3)
    attempt.kill("worker/1", signal.SIGSTOP)
    step = attempt.records("worker/0")[-1].payload["step"]
    deadline = time.monotonic() + 30
    while attempt.records("worker/0")[-1].payload["step"] < step + 500:
        assert time.monotonic() < deadline, "the chief waits for a worker that stands still"
        attempt.zygote.receive(0.02)
    before = attempt.records("worker/1")[-1].payload["step"]
    attempt.kill("worker/1", signal.SIGCONT)
    while attempt.records("worker/1")[-1].payload["step"] < before + 200:
        assert time.monotonic() < deadline, "the worker has not come back"
        attempt.zygote.receive(0.02)
    outcome = attempt.wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED
    assert "worker/1" in outcome.notes[0]


def test_a_dead_parameter_server_ends_it(make_attempt):
    attempt = make_attempt(**cluster(2, 2), sync_replicas=True, train_epoch=1_000_000)
    attempt.start("ps/0", "ps/1", "worker/0", "worker/1")
    attempt.wait_for_records("worker/1", 3)
    attempt.signal("ps/0", signal.SIGKILL)
    for worker in ("worker/0", "worker/1"):
        outcome = attempt.wait(worker)
        assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, FailureKind.PEER_LOST)


def test_the_tolerance_and_a_stop_end_it(make_attempt):
    attempt = make_attempt(**cluster(1, 2), sync_replicas=True, train_epoch=1_000_000, train_tolerance=0.05)
    attempt.start("ps/0", "worker/0", "worker/1")
    assert attempt.wait("worker/0").status is TaskStatus.COMPLETED
    assert attempt.signal("worker/1", signal.SIGUSR1) < 5.0
    assert attempt.outcome("worker/1").status is TaskStatus.STOPPED
