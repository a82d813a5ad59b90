"""scikit-learn in a trial: any framework works as a plain function, with one process a trial.

pip install scikit-learn
nhop-coordinator examples/forest.yaml
"""

from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestRegressor


def train(hp, context):
    """Grows a forest on the diabetes table; returns its mean squared error on the held-out fifth."""
    table = np.loadtxt(Path(__file__).with_name("diabetes.csv"), delimiter=",", skiprows=1)
    rows = np.random.default_rng(hp["seed"]).permutation(len(table))
    held_out, train = table[rows[: len(rows) // 5]], table[rows[len(rows) // 5 :]]
    forest = RandomForestRegressor(
        n_estimators=hp["trees"],
        max_depth=hp["depth"],
        max_features=hp["features"],
        n_jobs=context.threads,
        random_state=context.seed,
    )
    forest.fit(train[:, :-1], train[:, -1])
    error = forest.predict(held_out[:, :-1]) - held_out[:, -1]
    return {"val_loss": np.mean(error**2), "mae": np.mean(np.abs(error))}
