"""Users' models and functions on real tasks: pipelines, structures, metrics, state of layers."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models.contract import ARTIFACTS_FOLDER, MODEL_FILE, PREDICTIONS_FILE, FailureKind, TaskStatus
from tests.nhop_models.driver import PARAMETERS, cluster

pytestmark = pytest.mark.e2e

SOURCE = """
import keras, numpy as np, tensorflow as tf
from nhop_models import NNModel

def data():
    x = np.random.default_rng(1).normal(size=(600, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)

def dense(*layers):
    return keras.Sequential([keras.layers.Input((3,)), *layers, keras.layers.Dense(1)])

class Pipeline(NNModel):
    batched = False
    def load_data(self, hp):
        x, y = data()
        sets = [tf.data.Dataset.from_tensor_slices(part) for part in ((x[100:], y[100:]), (x[:100], y[:100]))]
        return tuple(s.batch(10) for s in sets) if self.batched else tuple(sets)
    def build_model(self, hp):
        return dense()

class Batched(Pipeline):
    batched = True

class Endless(Pipeline):
    def load_data(self, hp):
        train, test = super().load_data(hp)
        return train, test.repeat()

class Structured(NNModel):
    metrics = ("mae",)
    def load_data(self, hp):
        x, y = data()
        x = {"a": x[:, :1], "b": x[:, 1:]}
        return (x, y), (x, y)
    def build_model(self, hp):
        a, b = keras.Input((1,), name="a"), keras.Input((2,), name="b")
        return keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(keras.layers.Concatenate()([a, b])))

class Stateful(NNModel):
    def load_data(self, hp):
        x, y = data()
        x = 5 + 3 * x
        return (x, y), (x, y)
    def build_model(self, hp):
        return dense(keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dropout(0.1))

class Frozen(Stateful):
    def build_model(self, hp):
        frozen = keras.layers.Dense(4, activation="relu", trainable=False, name="frozen")
        return dense(frozen, keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dense(8, "relu"))

class Half(Structured):
    def build_model(self, hp):
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        return super().build_model(hp)

def apart(y_true, y_pred):
    return tf.square(y_true - y_pred)

class OwnLoss(NNModel):
    loss = apart
    metrics = "mae"
    def load_data(self, hp):
        x = np.random.default_rng(1).integers(0, 9, size=(600, 3))
        y = x.sum(axis=1)
        return (x.astype("float32"), y), (x.astype("float32"), y)
    def build_model(self, hp):
        return dense()

class Columns(Stateful):
    metrics = (keras.metrics.R2Score(class_aggregation=None, name="r2"), "mae")
    def load_data(self, hp):
        x, y = data()
        y = np.concatenate([y, -y], axis=1)
        return (x, y), (x, y)
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])

class BadMetric(Stateful):
    metrics = "accurcy"

class Compiled(Stateful):
    def build_model(self, hp):
        model = dense()
        model.compile("adam", loss="mae")
        return model

class Few(Pipeline):
    def load_data(self, hp):
        train, test = super().load_data(hp)
        return train.take(1), test

class Broken(Pipeline):
    def load_data(self, hp):
        train, test = super().load_data(hp)
        return train.map(lambda x, y: (tf.debugging.check_numerics(x / 0.0, "no good"), y)), test

class Wide(Stateful):
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])

class Big(NNModel):
    def load_data(self, hp):
        x = np.zeros((int(hp["megabytes"]) * 256, 1024), "float32")
        return (x, x[:, :1]), (x[:10], x[:10, :1])
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((1024,)), keras.layers.Dense(1)])

def train(hp, context):
    for step in range(context.train_epoch):
        context.report(step, loss=1.0 / (step + 1), val_loss=2.0 / (step + 1), accuracy=0.5)
    return None if hp["batch_size"] == 1 else {"val_loss": 0.25, "f1": 0.75}

def silent(hp, context):
    pass

def clustered(hp, context):
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        with tf.device("/job:ps/task:0"):
            total = v1.get_variable("total", initializer=0.0, use_resource=True)
        add = total.assign_add(1.0)
        with v1.Session(context.server.target, config=v1.ConfigProto(
            device_filters=["/job:ps", f"/job:worker/task:{context.task_index}"]
        )) as session:
            session.run(v1.global_variables_initializer())
            for step in range(10):
                context.report(step, loss=float(session.run(add)))
    return float(len(context.cluster["worker"]))
"""


@pytest.fixture
def make(make_attempt, tmp_path):
    """Starts all the tasks of an attempt with one of the models above."""
    (tmp_path / "own.py").write_text(SOURCE)

    def make(name, ps=0, workers=1, parameters=(), **changes):
        attempt = make_attempt(
            **(cluster(ps, workers) if ps else {}),
            model=f"own:{name}",
            python_path=(str(tmp_path),),
            parameters={**PARAMETERS, "learning_rate": 0.05, **dict(parameters)},
            **{"train_epoch": 300, **changes},
        )
        attempt.start(*[f"ps/{i}" for i in range(ps)], *[f"worker/{i}" for i in range(workers)])
        return attempt

    return make


@pytest.fixture
def run(make):
    def run(*arguments, **changes):
        attempt = make(*arguments, **changes)
        return attempt, attempt.wait("worker/0")

    return run


@pytest.mark.parametrize("name", ["Pipeline", "Batched"])
@pytest.mark.parametrize(("ps", "workers", "sync"), [(0, 1, False), (1, 2, False), (1, 2, True)])
def test_a_pipeline_trains_as_arrays_do(run, name, ps, workers, sync):
    _, outcome = run(name, ps, workers, sync_replicas=sync)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 0.05


def test_a_test_pipeline_without_an_end_is_refused(run):
    _, outcome = run("Endless")
    assert outcome.failure_kind is FailureKind.DATA
    assert "never ends" in outcome.message


def test_several_inputs_and_metrics(run):
    _, outcome = run("Structured")
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.metrics["mae"] == pytest.approx(outcome.val_loss**0.5, rel=0.5)


@pytest.mark.parametrize(("ps", "workers", "sync"), [(0, 1, False), (2, 2, False), (1, 2, True)])
def test_moving_averages_follow_the_data_under_parameter_servers(run, ps, workers, sync):
    import keras

    attempt, outcome = run("Stateful", ps, workers, sync_replicas=sync, keep_model=True)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 1.0, "the variance of the target is 3"
    folder = attempt.directory / ARTIFACTS_FOLDER
    norm = keras.models.load_model(folder / MODEL_FILE).layers[0]
    assert norm.moving_mean.numpy() == pytest.approx([5.0] * 3, abs=0.7)
    assert norm.moving_variance.numpy() == pytest.approx([9.0] * 3, abs=3.0)
    assert outcome.artifacts.keys() == {MODEL_FILE, PREDICTIONS_FILE}


@pytest.mark.parametrize(("ps", "sync"), [(0, False), (1, False), (1, True)])
def test_frozen_layers_stay_what_they_are(run, ps, sync):
    import keras

    attempt, outcome = run("Frozen", ps, max(2 * ps, 1), sync_replicas=sync, keep_model=True)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 3.0
    model = keras.models.load_model(attempt.directory / ARTIFACTS_FOLDER / MODEL_FILE)
    predictions = np.load(attempt.directory / ARTIFACTS_FOLDER / PREDICTIONS_FILE)
    assert predictions["y_pred"] == pytest.approx(model.predict(held_out(), verbose=0), abs=1e-4)


def held_out():
    x = np.random.default_rng(1).normal(size=(600, 3)).astype("float32")
    return 5 + 3 * x


@pytest.mark.parametrize("ps", [0, 1])
def test_half_precision(run, ps):
    _, outcome = run("Half", ps)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 0.1


def test_a_loss_of_ones_own_on_whole_numbers(run):
    _, outcome = run("OwnLoss", train_epoch=1500)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 1.0, "the variance of the target is 20"
    assert outcome.metrics["mae"] < 1.0


def test_a_metric_of_several_numbers(run):
    _, outcome = run("Columns")
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.metrics.keys() == {"r2_0", "r2_1", "mae"}
    assert outcome.metrics["r2_1"] > 0.9


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("BadMetric", FailureKind.USER_CODE, "accurcy"),
        ("Compiled", FailureKind.USER_CODE, "class attribute 'loss'"),
        ("Broken", FailureKind.DATA, "no good"),
        ("Wide", FailureKind.DATA, "(batch, 2)"),
    ],
)
def test_what_cannot_be_trained_is_said(run, name, kind, said):
    _, outcome = run(name, train_epoch=100)
    assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, kind), outcome
    assert said in outcome.message
    assert outcome.step == 0


def test_data_that_does_not_reach_every_worker_is_said(make):
    attempt = make("Few", 1, 2, train_epoch=1_000_000)
    outcome = attempt.wait("worker/1")
    assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, FailureKind.DATA), outcome
    assert "fewer than workers" in outcome.message
    assert outcome.step == 0


@pytest.mark.parametrize("ps", [0, 1])
def test_data_beyond_what_a_graph_may_hold(run, ps):
    _, outcome = run("Big", ps, 1, parameters={"megabytes": 1024}, train_epoch=5)
    assert outcome.status is TaskStatus.COMPLETED, outcome


def test_a_function_reports_and_returns(run):
    attempt, outcome = run("train", train_epoch=5, report_interval=0.0)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert (outcome.val_loss, outcome.metrics) == (0.25, {"accuracy": 0.5, "f1": 0.75})
    assert [r.payload["step"] for r in attempt.records("worker/0")[1:6]] == list(range(5))


def test_the_last_reported_loss_counts_where_nothing_is_returned(run):
    _, outcome = run("train", train_epoch=4, parameters={"batch_size": 1})
    assert outcome.val_loss == 0.5


def test_a_function_without_a_loss_is_told(run):
    _, outcome = run("silent")
    assert outcome.failure_kind is FailureKind.USER_CODE
    assert "context.report" in outcome.message


def test_a_function_uses_the_cluster(run):
    _, outcome = run("clustered", 1, 2)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss == 2.0
