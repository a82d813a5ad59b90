"""Real tasks: one process, and PS with workers."""

from __future__ import annotations

import signal

import pytest

from nhop_models.contract import FailureKind, RecordKind, TaskStatus
from tests.nhop_models.driver import PARAMETERS, SETTINGS, cluster

pytestmark = pytest.mark.e2e


def test_one_process_trains_reports_and_evaluates(make_attempt):
    attempt = make_attempt(train_epoch=1000)
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED
    assert outcome.step == 1000
    records = attempt.records("worker/0")
    assert records[0].kind is RecordKind.READY
    reports = [record.payload for record in records[1:]]
    steps = [report["step"] for report in reports]
    assert steps == sorted(steps)
    assert steps[-1] == 1000
    assert reports[-1]["val_loss"] == outcome.val_loss
    assert outcome.val_loss < reports[0]["train_loss"] / 2
    assert outcome.train_loss == pytest.approx(outcome.val_loss, rel=0.9)
    assert {"data", "model", "graph", "session", "steps", "evaluation"} <= set(outcome.phase_seconds)


def test_a_batch_is_never_larger_than_the_data(make_attempt):
    attempt = make_attempt(parameters={**PARAMETERS, "batch_size": 10**9}, train_epoch=20)
    attempt.start("worker/0")
    assert attempt.wait("worker/0").status is TaskStatus.COMPLETED


def test_the_same_seed_gives_the_same_losses(make_attempt):
    losses = []
    for seed in (7, 7, 8):
        attempt = make_attempt(seed=seed)
        attempt.start("worker/0")
        losses.append(attempt.wait("worker/0").val_loss)
    assert losses[0] == losses[1] != losses[2]


def test_one_worker_with_a_parameter_server_trains_like_one_process(make_attempt):
    alone = make_attempt()
    alone.start("worker/0")
    served = make_attempt(**cluster(1, 1))
    served.start("ps/0", "worker/0")
    assert served.wait("worker/0").val_loss == pytest.approx(alone.wait("worker/0").val_loss, rel=1e-4)


def test_many_workers_share_the_steps_and_only_the_chief_ends(make_attempt):
    attempt = make_attempt(**cluster(2, 3), train_epoch=1500)
    attempt.start("ps/0", "ps/1", "worker/2", "worker/1", "worker/0")
    attempt.gather("worker/0", "worker/1", "worker/2")
    chief = attempt.wait("worker/0")
    assert chief.status is TaskStatus.COMPLETED
    assert 1500 <= chief.step <= 1502
    assert 0 < chief.metrics["staleness"] <= chief.metrics["staleness_max"]
    assert "staleness" in attempt.records("worker/1")[-1].payload["metrics"]
    others = ["worker/1", "worker/2"]
    assert all(attempt.pids[task] not in attempt.zygote.exits for task in [*others, "ps/0", "ps/1"])
    attempt.stop()
    for task in others:
        outcome = attempt.outcome(task)
        assert outcome.status is TaskStatus.STOPPED
        assert outcome.train_loss is not None
        assert outcome.step > 0
    assert attempt.outcome("ps/1").status is TaskStatus.STOPPED


def test_the_tolerance_ends_the_training(make_attempt):
    attempt = make_attempt(train_epoch=100_000, train_tolerance=0.05)
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED
    assert outcome.step < 100_000
    assert outcome.train_loss <= 0.05


def test_a_killed_worker_does_not_end_the_training(make_attempt):
    attempt = make_attempt(**cluster(1, 2), train_epoch=1500)
    attempt.start("ps/0", "worker/0", "worker/1")
    attempt.gather("worker/0", "worker/1")
    attempt.signal("worker/1", signal.SIGKILL)
    outcome = attempt.wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED
    assert outcome.step >= 1500


def test_a_killed_parameter_server_ends_it_with_the_cause(make_attempt):
    attempt = make_attempt(**cluster(2, 1), train_epoch=1_000_000)
    attempt.start("ps/0", "ps/1", "worker/0")
    attempt.wait_for_records("worker/0", 3)
    attempt.signal("ps/1", signal.SIGKILL)
    outcome = attempt.wait("worker/0")
    assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, FailureKind.PEER_LOST)


def test_a_taken_port_is_said(make_attempt):
    addresses = cluster(1, 1)
    first = make_attempt(**addresses)
    first.start("ps/0")
    first.wait_for_records("ps/0", 1)
    second = make_attempt(**addresses)
    second.start("ps/0")
    assert second.wait("ps/0").failure_kind is FailureKind.PORT_TAKEN


def test_missing_parameter_servers_are_waited_for_no_longer_than_the_limit(make_attempt):
    attempt = make_attempt(**cluster(1, 1), start_limit=0.5)
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.failure_kind is FailureKind.START_TIMEOUT
    assert "ps/0" in outcome.message


def test_a_missing_chief_is_waited_for_no_longer_than_the_limit(make_attempt):
    attempt = make_attempt(**cluster(1, 2), start_limit=1.0)
    attempt.start("ps/0", "worker/1")
    outcome = attempt.wait("worker/1")
    assert outcome.failure_kind is FailureKind.START_TIMEOUT
    assert "chief" in outcome.message


def test_divergence_is_a_failure_of_its_own_kind(make_attempt):
    attempt = make_attempt(
        parameters={**PARAMETERS, "learning_rate": 1e30, "train_optimizer": "sgd"}, train_epoch=1000
    )
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, FailureKind.DIVERGED)
    assert "global step" in outcome.message


@pytest.mark.parametrize("optimizer", ["Adam", "sgd", "Adagrad"])
def test_every_optimizer_of_the_paper_lowers_the_loss(make_attempt, optimizer):
    attempt = make_attempt(
        parameters={**PARAMETERS, "train_optimizer": optimizer, "learning_rate": 0.01}, train_epoch=400
    )
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.val_loss < attempt.records("worker/0")[1].payload["train_loss"]


def test_a_real_table(make_attempt, tmp_path):
    table = tmp_path / "table.csv"
    rows = (f"{i % 17},{i % 5},{3 * (i % 17) - (i % 5)}" for i in range(500))
    table.write_text("a,b,target\n" + "\n".join(rows))
    settings = {**SETTINGS, "load_data": True, "load_data_dir": str(table), "nn_dimensions": None}
    parameters = {**PARAMETERS, "learning_rate": 0.02}
    attempt = make_attempt(settings=settings, parameters=parameters, train_epoch=600)
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.val_loss < 20, "the variance of the target is above 200"
