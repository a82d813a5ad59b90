"""All keys of a configuration, with their types and defaults (section III of the paper, and ours).

A field's description becomes the comment beside it in the resolved configuration. The keys that
are searched over are of any type here: ``coordinator.config.dimensions`` reads them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from coordinator.config import values
from coordinator.config.models import SHIPPED, model_name
from coordinator.config.source import describe
from coordinator.config.values import (
    Addresses,
    Flag,
    OptionalPlace,
    OptionalPositive,
    OptionalSeconds,
    Place,
    Positive,
    RefusedError,
    Seconds,
    Seed,
    Tolerance,
)

SEARCHED = ("learning_rate", "batch_size", "hidden_layers", "activation", "train_optimizer")
"""The keys that are hyper-parameters of every study."""

SEARCHABLE = ("rnn_max_seq_length", "rnn_state_dim")
"""Further keys that ``search_space`` may name: a trial's value then takes the key's place."""

WITHOUT_EFFECT = {
    "trainer": "NHOP has one trainer",
    "file2distribute": "tasks find your code by python_path",
    "running_stage": "all stages run in one command",
}
"""Keys of the original that are accepted, and why they do nothing."""

MOST_FOLDERS = 100
"""Of python_path; agents take no more."""


def _stage(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise RefusedError(f"must be [train_epoch, opt_epoch], not {describe(value)}")
    steps, trials = value
    try:
        return values.whole(steps, 1), values.whole(trials, 1)
    except RefusedError as error:
        raise RefusedError(f"train_epoch and opt_epoch of a stage: {error}") from None


def _stages(value: Any) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RefusedError(f"must be a list of [train_epoch, opt_epoch], not {describe(value)}")
    if len(value) == 2 and not any(isinstance(item, list) for item in value):
        raise RefusedError("must be a list of pairs: write [[train_epoch, opt_epoch]] for one stage")
    found = []
    for place, item in enumerate(value, start=1):
        try:
            found.append(_stage(item))
        except RefusedError as error:
            raise RefusedError(f"stage {place} {error}") from None
    return tuple(found)


def _dimensions(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise RefusedError(f"must be [inputs, outputs], not {describe(value)}")
    return values.whole(value[0], 1), values.whole(value[1], 1)


def _algorithm(value: Any) -> str:
    name = values.text(value).strip().upper()
    if name not in ("RS", "RANDOM"):
        raise RefusedError(f"only RS (random search) is in this version, not {describe(value)}")
    return "RS"


def _off(value: Any, sentence: str) -> None:
    if value in (None, False, "none", "None", 0):
        return
    raise RefusedError(sentence)


def _gpus(value: Any) -> float:
    number = values.number(value, 0, values.MOST_GPUS)
    if number.is_integer():
        return int(number)
    if number > 1:
        raise RefusedError(f"must be a whole number, or a share of one GPU below 1, not {describe(value)}")
    return values.number(value, values.LEAST_SHARE)


def _folders(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list) and len(value) > MOST_FOLDERS:
        raise values.RefusedError(f"must be at most {MOST_FOLDERS} folders, not {len(value):,}")
    return None if value is None else values.listed(value, values.place)


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterKeys(_Keys):
    """Number of tasks of each trial."""

    ps: Annotated[int, BeforeValidator(values.bounded_whole(0, values.MOST_TASKS))] = 1
    workers: Annotated[int, BeforeValidator(values.bounded_whole(1, values.MOST_TASKS))] = 2


class Keys(_Keys):
    """The keys of a configuration; None where the default depends on other keys."""

    nn_model: Annotated[str, BeforeValidator(model_name)] = Field(
        "Regressor", description=f"{', '.join(SHIPPED)}, or package.module:Class"
    )
    hyperparam_opt: Annotated[str, BeforeValidator(_algorithm)] = Field("RS", description="RS: random search")
    objective: Annotated[
        str, BeforeValidator(lambda value: values.one_of(value, "val_loss", "train_loss"))
    ] = Field("val_loss", description="val_loss (held-out data) or train_loss (minimum over the workers)")
    seed: Seed = Field(None, description="the same seed gives the same study; drawn where not given")

    opt_stages: Annotated[tuple[tuple[int, int], ...], BeforeValidator(_stages)] = Field(
        (), description="[train_epoch, opt_epoch] of each stage: steps of a trial, number of trials"
    )
    train_epoch: Positive = 1000
    opt_epoch: Positive = 3
    narrow_factor: Annotated[float, BeforeValidator(lambda value: values.number(value, 0, 1, above=0))] = (
        Field(0.5, description="next stage's range around the best value p: p - factor*|p| to p + factor*|p|")
    )
    opt_tolerance: Tolerance = Field(1e-5, description="the study is complete once a loss is this small")
    train_tolerance: Tolerance = Field(
        1e-8, description="a trial is complete once its training loss is this small"
    )

    learning_rate: Any = Field([0.001, 0.0001], description="a range, searched over; a number: fixed")
    batch_size: Any = Field([100, 2000], description="a range, searched over; a number: fixed")
    hidden_layers: Any = Field(
        [4, 10], description="range of the number of layers, or {layers: [nodes, ...]}"
    )
    nodes_per_layer: Any = Field(
        None, description="range of the nodes of each layer; default: as hidden_layers"
    )
    activation: Any = Field(["relu", "tanh"], description="choices")
    train_optimizer: Any = Field(
        ["Adam", "sgd", "Adagrad"], description="choices; Momentum, RMSprop and AdamW besides"
    )
    search_space: Any = Field(None, description="further hyper-parameters of a model, by name")

    cluster: ClusterKeys = Field(ClusterKeys(), description="tasks of each trial; ps: 0 is one process")
    ps_hosts: Addresses = None
    worker_hosts: Addresses = None
    sync_replicas: Flag = Field(
        False, description="true: the workers' gradients are averaged and applied once; false: asynchronous"
    )
    sync_backup_workers: Annotated[int, BeforeValidator(values.bounded_whole(0, values.MOST_TASKS))] = Field(
        0, description="with sync_replicas: how many of the workers a step need not wait for"
    )
    num_gpus: Annotated[int | None, values.optional(values.bounded_whole(0, values.MOST_GPUS))] = Field(
        None, description="GPUs of each machine for a trial, whose workers share them"
    )
    gpus_per_worker: Annotated[int | float | None, values.optional(_gpus)] = Field(
        None, description="GPUs of each worker: a whole number, or a share of one such as 0.5; 0: none"
    )
    slots: Annotated[int | None, values.optional(values.bounded_whole(1, values.MOST_SLOTS))] = Field(
        None, description="workers at once on this machine; default: CPU cores, or one trial's"
    )
    placement: Annotated[str, BeforeValidator(lambda value: values.one_of(value, "pack", "spread"))] = Field(
        "pack", description="pack: a trial on one host where it fits; spread: over as many as possible"
    )
    parallel_trials: OptionalPositive = Field(None, description="trials at once; default: as many as fit")
    max_attempts: Positive = Field(3, description="tries of a trial that fails without its own fault")
    time_budget: OptionalSeconds = Field(None, description="seconds, or such as 2h30m, for the whole study")
    start_limit: Seconds = Field(
        300.0, description="seconds until every task is ready to train, its data loaded"
    )
    run_limit: OptionalSeconds = Field(None, description="seconds that one attempt may take")
    stop_grace: Seconds = Field(2.0, description="seconds from SIGUSR1 to SIGTERM")
    terminate_grace: Seconds = Field(2.0, description="seconds from SIGTERM to SIGKILL")
    report_interval: Seconds = Field(0.25, description="seconds between two reports of a task")
    checkpoint_every: OptionalPositive = Field(
        None, description="global steps between checkpoints, from which a new attempt goes on; default: none"
    )
    keep_model: Flag = Field(True, description="whether the best trial's model and predictions are kept")

    nn_dimensions: Annotated[tuple[int, int] | None, values.optional(_dimensions)] = Field(
        None, description="[inputs, outputs]; the outputs of a Classifier are its classes"
    )
    load_data: Flag = Field(False, description="true: read load_data_dir; false: synthetic data")
    load_data_dir: OptionalPlace = Field(
        None,
        description="a CSV whose last column is the target or class, or an NPZ with X and y; RNN: a folder; "
        "a path, or a URL such as s3://bucket/key.csv",
    )
    data: OptionalPlace = Field(
        None, description="a folder or file that is sent to the hosts; load_data_dir is within it"
    )
    data_instances: Annotated[int, BeforeValidator(values.bounded_whole(2))] = Field(
        10000, description="rows of synthetic data"
    )
    data_features: Positive = Field(4, description="columns of synthetic data")
    power_method: Flag = Field(False, description="powers of one variable instead of independent features")
    add_cosine: Flag = Field(False, description="with power_method: through the cosine")
    add_noise: Flag = Field(False, description="with noise of deviation 2")
    rnn_max_seq_length: Positive = Field(100, description="tokens of a sample of the RNN")
    rnn_state_dim: Annotated[
        tuple[int, ...], BeforeValidator(lambda value: values.listed(value, values.bounded_whole(1)))
    ] = Field((50, 50, 50), description="units of the RNN's LSTMs: a number, or a list to stack them")

    code: OptionalPlace = Field(
        None, description="folder of your modules, which is sent to the hosts; default: the study file's"
    )
    train_log_dir: Place = Field(
        "runs", description="folder or URL of the runs, where --output does not name one"
    )
    python_path: Annotated[tuple[str, ...] | None, BeforeValidator(_folders)] = Field(
        None,
        description="where tasks look for your modules; default: the study file's and the current folder",
    )
    pruner: Annotated[
        None, BeforeValidator(lambda value: _off(value, "pruners are not in this version: leave it out"))
    ] = None
    trainer: Any = None
    file2distribute: Any = None
    running_stage: Any = None
