"""summary.json, trials.csv, best_config.yaml, config.yaml: written whole, from the study's state."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from coordinator.domain import Stage, Study, StudySpec, Trial
from coordinator.search.space import space_to_json
from nhop_models.contract import write_atomically

CONFIG_FILE = "config.yaml"
TRIALS_FILE = "trials.csv"
BEST_FILE = "best_config.yaml"
SUMMARY_FILE = "summary.json"
MODEL_FILE = "best_model.keras"
PREDICTIONS_FILE = "best_predictions.npz"

_TRIAL_COLUMNS = ("trial", "stage", "state", "loss", "train_loss", "val_loss")
_END_COLUMNS = ("attempts", "seconds", "hosts", "failure_kind", "failure", "notes")


def write_results(
    directory: Path, study: Study, trials: Sequence[Trial], config_yaml: str, spec: StudySpec
) -> None:
    """Writes all result files into ``directory``, each replaced at once.

    May be called while the study runs. ``best_config.yaml`` is there once a trial has completed.
    """
    write_atomically(directory / CONFIG_FILE, config_yaml)
    write_atomically(directory / TRIALS_FILE, trials_csv(trials, spec))
    if study.best is not None:
        write_atomically(directory / BEST_FILE, best_config(config_yaml, study.best, spec))
    # Last: who sees the summary finds the other files complete.
    text = json.dumps(summary(study, trials, directory), indent=2, allow_nan=False)
    write_atomically(directory / SUMMARY_FILE, text + "\n")


def summary(study: Study, trials: Sequence[Trial], directory: Path) -> dict[str, Any]:
    """The study as ``summary.json`` has it; seconds are wall time, losses None where there is none.

    ``model`` and ``predictions`` of the best trial are names of files in ``directory``, None where it
    has none; ``model_problem`` says why not, where something went wrong.
    """
    seconds = max((study.ended_at or time.time()) - study.started_at, 0.0)
    ended = sum(trial.state.ended for trial in trials)
    counts = study.counts
    return {
        "study_id": study.study_id,
        "status": study.state.value,
        "reason": study.reason,
        "wall_seconds": round(seconds, 3),
        "trials": {
            "completed": counts.completed,
            "pruned": counts.pruned,
            "failed": counts.failed,
            "stopped": counts.stopped,
        },
        "trials_per_minute": round(60.0 * ended / seconds, 2) if seconds else 0.0,
        "late_messages": study.late_messages,
        "stages": [_stage(stage, trials) for stage in study.stages],
        "best": _best_of_all(directory, study),
    }


def trials_csv(trials: Sequence[Trial], spec: StudySpec) -> str:
    """One line a trial, by number; a list of nodes is written as ``6-5-9``, hosts joined by spaces.

    Metrics have columns of their names, or ``metric_<name>`` where that is taken.
    """
    names = list(spec.space)
    metrics = sorted({name for trial in trials for name in trial.metrics})
    taken = {*_TRIAL_COLUMNS, *names, *_END_COLUMNS}
    titles = [f"metric_{name}" if name in taken else name for name in metrics]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_TRIAL_COLUMNS, *titles, *names, *_END_COLUMNS])
    for trial in sorted(trials, key=lambda trial: trial.number):
        failure = trial.failure
        writer.writerow(
            [
                *(trial.number, trial.stage, trial.state.value),
                *map(_cell, (trial.loss, trial.train_loss, trial.val_loss)),
                *(_cell(trial.metrics.get(name)) for name in metrics),
                *(_cell(trial.parameters.get(name)) for name in names),
                *(
                    trial.attempts,
                    "" if trial.seconds is None else f"{trial.seconds:.3f}",
                    " ".join(trial.hosts),
                ),
                *((failure.kind.value, failure.message) if failure else ("", "")),
                "; ".join(trial.notes),
            ]
        )
    return out.getvalue()


def best_config(config_yaml: str, best: Trial, spec: StudySpec) -> str:
    """A configuration that trains the best trial's parameters once more."""
    config = yaml.safe_load(config_yaml)
    own = dict(config.get("search_space") or {})
    for name, value in best.parameters.items():
        if name == "hidden_layers":
            config[name] = {"layers": list(value)}
            config.pop("nodes_per_layer", None)
        elif name in own:
            own[name] = {"type": "choice", "options": [value]}
        else:
            config[name] = value
    if own:
        config["search_space"] = own
    config["opt_stages"] = [[spec.stages[best.stage - 1].train_epoch, 1]]
    head = (
        f"# Trial {best.number} of study {spec.study_id}, the best: {spec.objective.value} {best.loss!r}.\n"
    )
    return head + yaml.safe_dump(
        config, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )


def _stage(stage: Stage, trials: Sequence[Trial]) -> dict[str, Any]:
    mine = [trial for trial in trials if trial.stage == stage.number]
    return {
        "stage": stage.number,
        "train_epoch": stage.budget.train_epoch,
        "opt_epoch": stage.budget.opt_epoch,
        "space": space_to_json(stage.space),
        "trials": len(mine),
        "best": _best(stage.best),
    }


def _best(trial: Trial | None) -> Mapping[str, Any] | None:
    if trial is None:
        return None
    return {
        "trial": trial.number,
        "stage": trial.stage,
        "loss": trial.loss,
        "train_loss": trial.train_loss,
        "val_loss": trial.val_loss,
        "metrics": dict(trial.metrics),
        "params": dict(trial.parameters),
    }


def _best_of_all(directory: Path, study: Study) -> Mapping[str, Any] | None:
    best = _best(study.best)
    if best is None or study.best is None:
        return None
    mine = study.model_trial == study.best.number
    there = {
        key: name if mine and (directory / name).exists() else None
        for key, name in (("model", MODEL_FILE), ("predictions", PREDICTIONS_FILE))
    }
    return {**best, **there, "model_problem": study.model_problem or None, "notes": list(study.best.notes)}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return repr(value) if isinstance(value, float) else str(value)
