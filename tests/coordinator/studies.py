"""Specifications of small studies."""

from __future__ import annotations

import dataclasses
from typing import Any

from coordinator.domain import Cluster, StageBudget, StudySpec, Training
from coordinator.search.space import Choice, Float, Int

SPACE = {
    "learning_rate": Float(0.001, 0.1),
    "batch_size": Int(10, 100),
    "activation": Choice(("relu", "elu")),
}


def make_spec(**changes: Any) -> StudySpec:
    """Three trials of ten steps, one process each."""
    spec = StudySpec(
        study_id="s1",
        seed=7,
        stages=(StageBudget(10, 3),),
        space=SPACE,
        cluster=Cluster(0, 1),
        training=Training("Regressor", {"data_instances": 100}, 0.0),
    )
    return dataclasses.replace(spec, **changes)
