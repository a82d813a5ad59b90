"""Flat parameters on parameter servers against Keras' own optimizers with a variable per weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nhop_models.contract import ARTIFACTS_FOLDER, MODEL_FILE
from tests.nhop_models.driver import PARAMETERS, cluster

pytestmark = pytest.mark.e2e

STEPS = 100
SEED = 7
OPTIMIZERS = {
    "Adam": "Adam(0.003)",
    "sgd": "SGD(0.003)",
    "Adagrad": "Adagrad(0.003)",
    "Momentum": "SGD(0.003, momentum=0.9)",
    "RMSprop": "RMSprop(0.003)",
    "AdamW": "AdamW(0.003, weight_decay=0.004)",
}

MODEL = """
import keras, numpy as np
from nhop_models import NNModel

class Net(NNModel):
    def load_data(self, hp):
        x = np.random.default_rng(1).normal(size=(400, 3)).astype("float32")
        y = np.sin(x.sum(axis=1, keepdims=True))
        return (x, y), (x, y)
    def build_model(self, hp):
        return keras.Sequential(
            [keras.layers.Input((3,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
        )
"""

REFERENCE = """
import json, sys
import keras, numpy as np, tensorflow as tf
from net import Net
from nhop_models.runtime.graph import _seed

optimizers = json.loads(sys.argv[1])
steps, seed, batch = 100, 7, 100
(x, y), _ = Net().load_data({})
losses = {}
for name, text in optimizers.items():
    keras.utils.set_random_seed(seed)
    model = Net().build_model({})
    optimizer = eval("keras.optimizers." + text)
    for step in range(steps):
        key = tf.constant([_seed(seed, 0), step], tf.int64)
        rows = tf.random.stateless_uniform([batch], key, 0, len(x), tf.int64, alg="philox")
        with tf.GradientTape() as tape:
            error = model(tf.gather(x, rows), training=True) - tf.gather(y, rows)
            loss = tf.reduce_mean(tf.square(error))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
    losses[name] = [np.asarray(w).ravel().tolist() for w in model.trainable_variables]
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    (folder / "net.py").write_text(MODEL)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": f"{folder}:{Path.cwd()}"}
    environment |= {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", REFERENCE, json.dumps(OPTIMIZERS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder, json.loads(run.stdout)


@pytest.mark.parametrize("ps", [0, 1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_that_of_keras(make_attempt, reference, optimizer, ps):
    import keras

    folder, weights = reference
    attempt = make_attempt(
        **(cluster(ps, 1) if ps else {}),
        model="net:Net",
        python_path=(str(folder),),
        parameters={**PARAMETERS, "learning_rate": 0.003, "train_optimizer": optimizer, "batch_size": 100},
        train_epoch=STEPS,
        seed=SEED,
        keep_model=True,
    )
    attempt.start(*[f"ps/{index}" for index in range(ps)], "worker/0")
    outcome = attempt.wait("worker/0")
    assert outcome.step == STEPS, outcome
    model = keras.models.load_model(attempt.directory / ARTIFACTS_FOLDER / MODEL_FILE)
    for mine, theirs in zip(model.trainable_variables, weights[optimizer], strict=True):
        assert np.asarray(mine).ravel() == pytest.approx(theirs, rel=2e-4, abs=2e-6)
