"""The frame of a task: signals, lease, environment, and failures of the user's code."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import pytest

from nhop_models.contract import FailureKind, TaskStatus, write_lease
from tests.nhop_models.driver import free_addresses

pytestmark = pytest.mark.e2e

MODEL = """
import os, sys, time, signal
import keras, numpy as np
from nhop_models import NNModel, DataError

class Base(NNModel):
    def load_data(self, hp):
        x = np.random.default_rng(hp["seed"]).normal(size=(200, 3)); y = x.sum(axis=1, keepdims=True)
        return (x, y), (x, y)
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])

class Good(Base):
    pass
class RaisesInData(Base):
    def load_data(self, hp): raise RuntimeError("no such bucket")
class BadData(Base):
    def load_data(self, hp): return np.zeros(3), np.zeros(3)
class UnusableData(Base):
    def load_data(self, hp): raise DataError("the table of today is not there yet")
class UnevenData(Base):
    def load_data(self, hp): return (np.zeros((5, 3)), np.zeros(4)), (np.zeros((5, 3)), np.zeros(5))
class RaisesInBuild(Base):
    def build_model(self, hp): return hp["no_such_key"]
class NotAModel(Base):
    def build_model(self, hp): return 42
class NotBuilt(Base):
    def build_model(self, hp): return keras.Sequential([keras.layers.Dense(1)])
class WrongShape(Base):
    def build_model(self, hp): return keras.Sequential([keras.layers.Input((7,)), keras.layers.Dense(1)])
class RaisesInTraining(Base):
    def train_model(self, training):
        training.step(); raise ZeroDivisionError("step two")
class Exits(Base):
    def build_model(self, hp): print("about to leave"); sys.exit(3)
class Sleeps(Base):
    def load_data(self, hp): print("sleeping", flush=True); time.sleep(1000)
class Segfaults(Base):
    def load_data(self, hp): os.kill(os.getpid(), signal.SIGSEGV)
class SeesItsEnvironment(Base):
    def load_data(self, hp):
        seen = os.environ["NHOP_TEST"], os.environ["CUDA_VISIBLE_DEVICES"], os.getcwd()
        raise RuntimeError(",".join(seen))
class DependsOnOwnModules(Base):
    def load_data(self, hp):
        import agent, proto
        assert agent.MINE and proto.MINE
        return super().load_data(hp)
class Penalised(Base):
    def build_model(self, hp):
        layer = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(1e6))
        return keras.Sequential([keras.layers.Input((3,)), layer])
class StartsProcesses(Base):
    def load_data(self, hp):
        import multiprocessing, subprocess
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]
        sleeper = subprocess.Popen(["sleep", "100"])
        sleeper.terminate()
        assert sleeper.wait(10) == -signal.SIGTERM
        return super().load_data(hp)
class Pipeline(Base):
    def load_data(self, hp):
        import glob, tempfile, tensorflow as tf
        tempfile.tempdir = os.getcwd()
        train, test = super().load_data(hp)
        data = tf.data.Dataset.from_tensor_slices(train).map(lambda x, y: (2 * x, y)).batch(50).repeat()
        assert glob.glob("__autograph*"), "TensorFlow writes no files any more"
        return data, test
class SaysWhereItIsSaved(Base):
    def build_model(self, hp):
        class Noted(keras.layers.Dense):
            def save_assets(self, path): print("assets in", path)
        return keras.Sequential([keras.layers.Input((3,)), Noted(1)])
class Derived(str): pass
class Conv(Base):
    loss = "sparse_categorical_crossentropy"
    def load_data(self, hp):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 300)
        x = rng.normal(size=(300, 8, 8, 1)) + y[:, None, None, None]
        return (x, y), (x, y)
    def build_model(self, hp):
        layers = keras.layers
        return keras.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(),
            layers.ReLU(), layers.Flatten(), layers.Dropout(0.2), layers.Dense(2, activation="softmax")])
"""


@pytest.fixture
def project(tmp_path):
    """A user's folder, with modules of its own that are called like ours."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_model.py").write_text(textwrap.dedent(MODEL))
    (folder / "agent.py").write_text("MINE = True\n")
    (folder / "proto.py").write_text("MINE = True\n")
    (folder / "broken.py").write_text("import no_such_package\n")
    return folder


def run(make_attempt, project, name, **changes):
    attempt = make_attempt(model=name, python_path=(str(project),), working_directory=str(project), **changes)
    attempt.start("worker/0")
    return attempt


@pytest.mark.parametrize("name", ["Good", "DependsOnOwnModules", "Conv", "StartsProcesses"])
def test_a_users_model_trains(make_attempt, project, name):
    outcome = run(make_attempt, project, f"my_model:{name}").wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED, outcome


def test_files_that_tensorflow_generates_go_with_their_task(make_attempt, project):
    outcome = run(make_attempt, project, "my_model:Pipeline").wait("worker/0")
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert list(project.glob("__autograph*")) == []


def test_what_is_written_while_a_model_is_saved_is_in_the_attempts_directory(make_attempt, project):
    attempt = run(make_attempt, project, "my_model:SaysWhereItIsSaved", keep_model=True)
    assert attempt.wait("worker/0").status is TaskStatus.COMPLETED
    assert f"assets in {attempt.directory}/tasks/tmp" in attempt.log("worker/0")


def test_penalties_of_layers_are_part_of_the_training_loss_only(make_attempt, project):
    attempt = run(make_attempt, project, "my_model:Penalised", train_epoch=1)
    outcome = attempt.wait("worker/0")
    assert outcome.train_loss > 1000
    assert outcome.val_loss < 100


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("my_model:RaisesInData", FailureKind.USER_CODE, ["no such bucket", "my_model.py:", "load_data"]),
        ("my_model:BadData", FailureKind.DATA, ["(x_train, y_train)"]),
        ("my_model:UnusableData", FailureKind.DATA, ["not there yet"]),
        ("my_model:UnevenData", FailureKind.DATA, ["x_train has 5 samples, y_train 4"]),
        ("my_model:RaisesInBuild", FailureKind.USER_CODE, ["no_such_key", "learning_rate"]),
        ("my_model:NotAModel", FailureKind.USER_CODE, ["returned int"]),
        ("my_model:NotBuilt", FailureKind.USER_CODE, ["Input"]),
        ("my_model:WrongShape", FailureKind.USER_CODE, ["shape"]),
        ("my_model:RaisesInTraining", FailureKind.USER_CODE, ["step two", "train_model"]),
        ("my_model:Exits", FailureKind.USER_CODE, ["sys.exit(3)"]),
        ("my_model:SeesItsEnvironment", FailureKind.USER_CODE, ["seen,,", "project"]),
        ("my_model:Missing", FailureKind.USER_CODE, ["has no Missing"]),
        ("my_model:Derived", FailureKind.USER_CODE, ["NNModel"]),
        ("no.such:Model", FailureKind.USER_CODE, ["no module 'no'"]),
        ("broken:Model", FailureKind.USER_CODE, ["no_such_package"]),
    ],
)
def test_a_failure_says_what_and_where(make_attempt, project, name, kind, words):
    outcome = run(make_attempt, project, name).wait("worker/0")
    assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, kind), outcome
    assert all(word in outcome.message for word in words), outcome.message


def test_output_goes_to_the_log(make_attempt, project):
    attempt = run(make_attempt, project, "my_model:Exits")
    attempt.wait("worker/0")
    assert "about to leave" in attempt.log("worker/0")


def test_a_crash_leaves_no_outcome(make_attempt, project):
    attempt = run(make_attempt, project, "my_model:Segfaults")
    attempt.zygote.wait_for_exit(attempt.pids["worker/0"])
    assert attempt.outcome("worker/0") is None
    assert os.WTERMSIG(attempt.zygote.exits[attempt.pids["worker/0"]]) == signal.SIGSEGV


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_a_training_task_with_its_outcome(make_attempt, number):
    attempt = make_attempt(train_epoch=10_000_000)
    attempt.start("worker/0")
    attempt.wait_for_records("worker/0", 3)
    attempt.signal("worker/0", number)
    outcome = attempt.outcome("worker/0")
    assert outcome.status is TaskStatus.STOPPED
    # A report may be on its way just when the signal is taken.
    assert 0 < outcome.step <= attempt.records("worker/0")[-1].payload["step"]
    assert os.waitstatus_to_exitcode(attempt.zygote.exits[attempt.pids["worker/0"]]) == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_a_task_that_is_deep_in_user_code(make_attempt, project, number):
    attempt = run(make_attempt, project, "my_model:Sleeps")
    while "sleeping" not in attempt.log("worker/0"):
        attempt.zygote.receive(0.01)
    attempt.signal("worker/0", number)
    assert attempt.outcome("worker/0").status is TaskStatus.STOPPED


def test_a_signal_ends_a_worker_that_waits_for_parameter_servers(make_attempt):
    addresses = free_addresses(2)
    attempt = make_attempt(ps=addresses[:1], workers=addresses[1:])
    attempt.start("worker/0")
    attempt.signal("worker/0", signal.SIGUSR1)
    assert attempt.outcome("worker/0").status is TaskStatus.STOPPED


def test_a_task_whose_lease_is_over_ends_by_itself(make_attempt):
    attempt = make_attempt(train_epoch=10_000_000)
    attempt.start("worker/0")
    attempt.wait_for_records("worker/0", 2)
    write_lease(attempt.directory, -1.0)
    outcome = attempt.wait("worker/0")
    assert outcome.status is TaskStatus.STOPPED
    assert "no agent" in outcome.message


def test_the_zygote_has_one_thread_of_python_and_says_its_versions(zygote):
    import tensorflow as tf

    assert zygote.ready["tensorflow"] == tf.__version__
    threads = Path(f"/proc/{zygote.process.pid}/task").iterdir()
    assert len(list(threads)) <= 2, "a thread more than after import: something was touched before the fork"
