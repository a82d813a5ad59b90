"""The standard trial: the paper's regressor on 10,000 x 4 synthetic rows (8,000 of them to train on)."""

from __future__ import annotations

import random
from typing import Any

TRAIN_EPOCH = 1000
SETTINGS: dict[str, Any] = {"data_instances": 10_000, "data_features": 4, "nn_dimensions": [4, 1], "seed": 1}


def parameters(trial: int) -> dict[str, Any]:
    """Hyper-parameters of a trial: 4-9 layers of 4-9 nodes, batches of 100-2,000."""
    rng = random.Random(trial)
    return {
        "learning_rate": rng.uniform(0.0001, 0.001),
        "batch_size": rng.randint(100, 2000),
        "hidden_layers": [rng.randint(4, 9) for _ in range(rng.randint(4, 9))],
        "activation": rng.choice(["relu", "tanh"]),
        "train_optimizer": rng.choice(["Adam", "sgd", "Adagrad"]),
    }


def study(ps: int, workers: int, trials: int) -> dict[str, Any]:
    """A study of standard trials, as a configuration."""
    return {
        "seed": 1,
        "opt_stages": [[TRAIN_EPOCH, trials]],
        "cluster": {"ps": ps, "workers": workers},
        "hidden_layers": [4, 9],
        "batch_size": [100, 2000],
        "learning_rate": [0.0001, 0.001],
        "data_instances": SETTINGS["data_instances"],
        "data_features": SETTINGS["data_features"],
        "train_tolerance": 0,
        "opt_tolerance": 0,
    }
