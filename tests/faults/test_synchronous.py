"""Synchronous training while workers die: no trial hangs, whenever that is. For ``make test-faults``."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from nhop_models.contract import TaskStatus
from tests.nhop_models.driver import Attempt, ZygoteDriver, cluster, make_spec

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]

TRIALS = 200
STEPS = 150
DEADLINE = 30.0
"""Seconds for a trial that takes one or two: none may come near it."""


def test_no_trial_hangs_when_workers_are_killed_at_random_times(tmp_path: Path) -> None:
    seed = int(os.environ.get("NHOP_FAULTS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"NHOP_FAULTS_SEED={seed}")
    rng = random.Random(seed)
    zygote = ZygoteDriver()
    seconds = []
    try:
        for trial in range(TRIALS):
            directory = tmp_path / str(trial)
            directory.mkdir()
            backup = rng.choice((0, 0, 1))
            attempt = Attempt(
                zygote,
                directory,
                make_spec(
                    **cluster(1, 3),
                    sync_replicas=True,
                    sync_backup_workers=backup,
                    train_epoch=STEPS,
                    seed=trial,
                ),
            )
            victims = rng.sample(["worker/1", "worker/2"], rng.choice((1, 2)))
            kills = sorted((rng.uniform(0.0, 1.5), victim) for victim in victims)
            begin = time.monotonic()
            attempt.start("ps/0", "worker/0", "worker/1", "worker/2")
            chief = attempt.pids["worker/0"]
            while chief not in zygote.exits:
                elapsed = time.monotonic() - begin
                assert elapsed < DEADLINE, f"trial {trial} hangs (NHOP_FAULTS_SEED={seed}): {kills}"
                while kills and elapsed >= kills[0][0]:
                    _, victim = kills.pop(0)
                    attempt.kill(victim, signal.SIGKILL)
                zygote.receive(0.01)
            seconds.append(time.monotonic() - begin)
            assert zygote.exits[chief] == 0, (trial, zygote.exits[chief], attempt.log("worker/0"))
            outcome = attempt.wait("worker/0")
            assert (outcome.status, outcome.step) == (TaskStatus.COMPLETED, STEPS), outcome
            attempt.stop()
            if trial % 20 == 19:
                print(f"{trial + 1} of {TRIALS} trials, {max(seconds):.1f} s at most", flush=True)
    finally:
        zygote.close()
    print(f"{TRIALS} trials: {statistics.median(seconds):.2f} s each, {max(seconds):.2f} s at most")
