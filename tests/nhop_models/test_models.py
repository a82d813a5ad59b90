"""Real trainings of the shipped models, and of models that are derived from them."""

from __future__ import annotations

import math
import random

import pytest

from nhop_models.contract import FailureKind, TaskStatus
from tests.nhop_models.driver import SETTINGS, free_addresses
from tests.nhop_models.languages import make_languages

pytestmark = pytest.mark.e2e

PARAMETERS = {"learning_rate": 0.01, "batch_size": 32, "train_optimizer": "Adam"}
DENSE = {**PARAMETERS, "hidden_layers": [16, 8], "activation": "relu"}
NORMALISED = {**DENSE, "batch_norm": True, "dropout": 0.1}
IMAGES = {**PARAMETERS, "conv_filters": [8, 12], "hidden_layers": [8], "activation": "elu"}
RECURRENT = {**PARAMETERS, "rnn_state_dim": [12, 8], "embedding_dim": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    return str(make_languages(tmp_path_factory.mktemp("code")))


def run(make_attempt, model, parameters, *, settings=None, steps=200, clustered=False, **changes):
    """Trains to the end and returns the chief's outcome."""
    addresses = free_addresses(3) if clustered else ()
    attempt = make_attempt(
        model=model,
        parameters=parameters,
        settings={**SETTINGS, "nn_dimensions": None, **(settings or {})},
        train_epoch=steps,
        ps=addresses[:1],
        workers=addresses[1:],
        **changes,
    )
    attempt.start(*(["ps/0", "worker/1"] if clustered else []), "worker/0")
    outcome = attempt.wait("worker/0")
    attempt.stop()
    return outcome


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("parameters", [DENSE, NORMALISED])
def test_the_classifier_learns(make_attempt, parameters, clustered):
    outcome = run(make_attempt, "Classifier", parameters, clustered=clustered, steps=400)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 0.7 * math.log(3), "guessing gives log(3)"


@pytest.mark.parametrize("clustered", [False, True])
def test_the_cnn_learns(make_attempt, clustered):
    outcome = run(make_attempt, "CNN", IMAGES, clustered=clustered)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 0.7 * math.log(4)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_rnn_learns(make_attempt, languages, clustered):
    settings = {"load_data": True, "load_data_dir": languages, "rnn_max_seq_length": 20}
    outcome = run(make_attempt, "RNN", RECURRENT, settings=settings, clustered=clustered, steps=150)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 0.5 * math.log(2)


def test_one_number_is_one_lstm(make_attempt, languages):
    settings = {"load_data": True, "load_data_dir": languages, "rnn_max_seq_length": 8, "rnn_state_dim": 6}
    outcome = run(make_attempt, "RNN", PARAMETERS, settings=settings, steps=2)
    assert outcome.status is TaskStatus.COMPLETED, outcome


def test_a_classifier_of_a_real_table(make_attempt, tmp_path):
    draw = random.Random(1)
    points = [(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(400)]
    rows = [f"{x},{y},{'inside' if x * x + y * y < 1.5 else 'outside'}" for x, y in points]
    (tmp_path / "t.csv").write_text("x,y,place\n" + "\n".join(rows))
    settings = {"load_data": True, "load_data_dir": str(tmp_path / "t.csv")}
    outcome = run(make_attempt, "Classifier", DENSE, settings=settings, steps=400)
    assert outcome.val_loss < 0.4


OWN = """
import keras
from nhop_models import CustomNN, ClassifierNN
class Mine(CustomNN):
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input(self.input_shape), keras.layers.Dense(hp["width"], "relu"), keras.layers.Dense(1)])
class Linear(ClassifierNN):
    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input(self.input_shape), keras.layers.Dense(len(self.classes), "softmax")])
class Confident(ClassifierNN):
    def build_model(self, hp):
        wrong = keras.layers.Dense(len(self.classes), "softmax", kernel_initializer="zeros",
                                   bias_initializer=lambda shape, dtype: keras.ops.array([0.0, 0.0, 1000.0]))
        return keras.Sequential([keras.layers.Input(self.input_shape), wrong])
class Unwritten(CustomNN):
    pass
"""  # noqa: E501  (the first class is what the README shows)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_models.py").write_text(OWN)
    return {"python_path": (str(tmp_path),)}


def test_a_model_in_five_lines(make_attempt, own):
    outcome = run(make_attempt, "own_models:Mine", {**PARAMETERS, "width": 16}, steps=300, **own)
    assert outcome.status is TaskStatus.COMPLETED, outcome
    assert outcome.val_loss < 0.05


def test_an_own_classifier_knows_its_classes(make_attempt, own):
    settings = {"nn_dimensions": [4, 6]}
    outcome = run(make_attempt, "own_models:Linear", PARAMETERS, settings=settings, steps=2, **own)
    assert outcome.status is TaskStatus.COMPLETED, outcome


def test_a_confident_wrong_answer_has_its_whole_loss(make_attempt, own):
    outcome = run(make_attempt, "own_models:Confident", PARAMETERS, steps=1, **own)
    assert outcome.val_loss == pytest.approx(1000 * 2 / 3, rel=0.2), "probabilities alone would end at 16"


def test_a_model_that_is_not_written(make_attempt, own):
    outcome = run(make_attempt, "own_models:Unwritten", PARAMETERS, **own)
    assert outcome.failure_kind is FailureKind.USER_CODE
    assert "Unwritten does not define build_model" in outcome.message
