"""The best trial's model, as its user loads it: with plain Keras, in a process without NHOP."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from nhop_models.datasets import split_and_standardise, synthetic
from tests.e2e.conftest import summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SMALL = ["data_instances=1000", "batch_size=[50,100]", "hidden_layers=[1,3]", "seed=5", "opt_tolerance=0"]
CLUSTERS = ["{ps: 0, workers: 1}", "{ps: 1, workers: 2}"]
LOSS = """
import json, sys
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
data = np.load(sys.argv[2])
predicted = np.asarray(model(data["x"]), dtype=np.float64)
assert not [name for name in sys.modules if name.startswith("nhop")]
print(json.dumps([predicted.tolist(), float(np.mean((predicted - data["y"]) ** 2))]))
"""


def held_out(folder):
    """The Regressor's held-out rows, from the study's own configuration."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    data = synthetic(
        config["data_instances"],
        config["data_features"],
        seed=config["seed"],
        power_method=False,
        add_cosine=False,
        add_noise=False,
    )
    _, (x, y) = split_and_standardise(*data, seed=config["seed"])
    return x, y


def evaluate(folder, x, y):
    """Predictions and loss of best_model.keras, by a process that knows Keras only."""
    np.savez(folder / "held_out.npz", x=x, y=y)
    run = subprocess.run(
        [sys.executable, "-P", "-c", LOSS, folder / "best_model.keras", folder / "held_out.npz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    predicted, loss = json.loads(run.stdout.splitlines()[-1])
    return np.array(predicted), loss


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_best_model_reproduces_its_loss(commands, cluster):
    run = commands.coordinator(
        "with", "opt_stages=[[200,3],[100,2]]", f"cluster={cluster}", *SMALL, "--output", "out"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    out = commands.folder / "out"
    best = summary(out)["best"]
    assert (best["model"], best["predictions"]) == ("best_model.keras", "best_predictions.npz")
    x, y = held_out(out)
    predicted, loss = evaluate(out, x, y)
    assert loss == pytest.approx(best["val_loss"], rel=1e-5)
    kept = np.load(out / "best_predictions.npz")
    np.testing.assert_allclose(kept["y_true"], y)
    np.testing.assert_allclose(kept["y_pred"], predicted, rtol=1e-3, atol=1e-5)
    assert not (out / ".artifacts").exists()


def test_a_model_of_the_users_is_kept_with_the_state_of_its_layers(commands):
    (commands.folder / "mine.py").write_text(
        "import keras, numpy as np\n"
        "from nhop_models import NNModel\n"
        "class Line(NNModel):\n"
        "    def load_data(self, hp):\n"
        "        x = np.random.default_rng(1).normal(size=(500, 1)).astype('float32')\n"
        "        y = 3 * x + np.sin(5 * x)\n"
        "        return (x[100:], y[100:]), (x[:100], y[:100])\n"
        "    def build_model(self, hp):\n"
        "        layers = [keras.layers.BatchNormalization(), keras.layers.Dense(1)]\n"
        "        return keras.Sequential([keras.layers.Input((1,)), *layers])\n"
    )
    (commands.folder / "study.yaml").write_text(
        "nn_model: mine:Line\nopt_stages: [[300, 2]]\ncluster: {ps: 0, workers: 1}\n"
        "learning_rate: [0.05, 0.1]\ntrain_optimizer: [Adam]\nbatch_size: [20, 40]\n"
    )
    run = commands.coordinator("study.yaml", "--output", "out")
    assert run.returncode == 0, run.stdout + run.stderr
    x = np.random.default_rng(1).normal(size=(500, 1)).astype("float32")[:100]
    _, loss = evaluate(commands.folder / "out", x, 3 * x + np.sin(5 * x))
    assert loss == pytest.approx(summary(commands.folder / "out")["best"]["val_loss"], rel=1e-4)


def test_a_model_that_is_not_wanted_is_not_kept(commands):
    run = commands.coordinator(
        *("with", "keep_model=false", "opt_stages=[[50,2]]", "cluster={ps: 0, workers: 1}", *SMALL),
        *("--output", "out"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert summary(commands.folder / "out")["best"]["model"] is None
    assert not (commands.folder / "out" / "best_model.keras").exists()
