"""Threads, GPU memory and device filters of a task's server and session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nhop_models.contract import TaskId
from nhop_models.runtime.cluster import session_config
from tests.nhop_models.driver import Attempt, make_spec

PS, WORKER = TaskId.parse("ps/0"), TaskId.parse("worker/1")
CLUSTER = make_spec(ps=("127.0.0.1:1",), workers=("127.0.0.1:2", "127.0.0.1:3"), threads=3)

MODEL = """
import tensorflow as tf
from nhop_models.regressor import RegressorNN

class Telling(RegressorNN):
    def load_data(self, hp):
        threading = tf.config.threading
        print("THREADS", threading.get_intra_op_parallelism_threads(),
              threading.get_inter_op_parallelism_threads(), flush=True)
        return super().load_data(hp)
"""


def test_a_gpu_of_its_own_is_filled_as_needed() -> None:
    options = session_config(CLUSTER, WORKER).gpu_options
    assert (options.allow_growth, options.per_process_gpu_memory_fraction) == (True, 0.0)


def test_a_share_of_a_gpu_is_taken_at_once_less_what_cuda_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NHOP_GPU_SHARE", "0.5")
    options = session_config(CLUSTER, WORKER).gpu_options
    assert not options.allow_growth
    assert options.per_process_gpu_memory_fraction == pytest.approx(0.45)


def test_a_worker_sees_itself_and_the_parameter_servers() -> None:
    assert list(session_config(CLUSTER, WORKER).device_filters) == ["/job:ps", "/job:worker/task:1"]
    assert not session_config(CLUSTER, PS).device_filters


def test_operations_may_go_where_they_can() -> None:
    assert session_config(CLUSTER, WORKER).allow_soft_placement


def test_both_pools_have_the_tasks_threads() -> None:
    config = session_config(CLUSTER, WORKER)
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (3, 3)


@pytest.mark.e2e
def test_eager_code_of_a_model_keeps_to_the_tasks_threads(
    make_attempt: Callable[..., Attempt], tmp_path: Path
) -> None:
    (tmp_path / "telling.py").write_text(MODEL)
    attempt = make_attempt(model="telling:Telling", python_path=(str(tmp_path),), threads=3, train_epoch=1)
    attempt.start("worker/0")
    attempt.wait("worker/0")
    assert "THREADS 3 3" in attempt.log("worker/0")
