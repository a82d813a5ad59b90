"""Data at URLs on real tasks."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models.contract import FailureKind, TaskStatus
from tests.nhop_models.driver import PARAMETERS, SETTINGS

pytestmark = pytest.mark.e2e

OWN = """
import keras, numpy as np, sys
from nhop_models import NNModel, fetch

class Own(NNModel):
    def load_data(self, hp):
        assert hp["load_data_dir"].startswith("file://")
        x = np.load(fetch(hp["load_data_dir"]))
        return (x, x), (x, x)
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)])
"""


def settings(url):
    return SETTINGS | {"load_data": True, "load_data_dir": url, "nn_dimensions": None}


def test_a_model_of_the_user_s_reads_a_url_by_fetch(make_attempt, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((20, 2), np.float32))
    (tmp_path / "own_remote.py").write_text(OWN)
    attempt = make_attempt(
        model="own_remote:Own",
        parameters=PARAMETERS,
        settings=settings(f"file://{tmp_path}/x.npy"),
        python_path=(str(tmp_path),),
        train_epoch=5,
    )
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED, outcome


def test_what_is_wrong_with_a_table_is_said_of_its_url(make_attempt, tmp_path):
    (tmp_path / "table.csv").write_text("1,2\n3,x\n")
    url = f"file://{tmp_path}/table.csv"
    attempt = make_attempt(settings=settings(url))
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.failure_kind is FailureKind.DATA
    assert outcome.message.startswith(f"{url}:2: column 2 is not a number")


def test_data_that_is_not_there_is_a_failure_of_the_data(make_attempt, tmp_path):
    url = f"file://{tmp_path}/none.csv"
    attempt = make_attempt(settings=settings(url))
    attempt.start("worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.failure_kind is FailureKind.DATA
    assert outcome.message.startswith(f"{url}: it does not exist: correct the URL")
