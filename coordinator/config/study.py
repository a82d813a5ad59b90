"""A configuration as it resolves: every key checked against the others, every default filled in."""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from coordinator.config import places
from coordinator.config.dimensions import SpaceReader
from coordinator.config.keys import WITHOUT_EFFECT, ClusterKeys, Keys
from coordinator.config.models import SHIPPED, why_not_fetched, why_unreadable
from coordinator.config.render import render
from coordinator.config.source import (
    Document,
    TooManyProblemsError,
    apply_overrides,
    read_file,
    read_mapping,
    read_text,
)
from coordinator.config.values import MOST_TASKS
from coordinator.domain import (
    Cluster,
    Limits,
    Objective,
    PlacementRule,
    Sources,
    StageBudget,
    StudySpec,
    Training,
)
from coordinator.errors import ConfigError, Problem
from coordinator.search.space import Space, space_to_json
from nhop_models import urls

SETTINGS = (
    "load_data", "load_data_dir", "nn_dimensions", "data_instances", "data_features", "power_method",
    "add_cosine", "add_noise", "rnn_max_seq_length", "rnn_state_dim", "seed",
)  # fmt: skip
"""Keys that models read."""


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """A valid configuration: ``keys`` has no default left open, ``notes`` are for the user.

    ``remote``: it runs on hosts to which code and data have to be sent.
    """

    keys: Keys
    space: Space
    cluster: Cluster
    stages: tuple[StageBudget, ...]
    seed: int
    notes: tuple[str, ...] = ()
    remote: bool = False

    @property
    def sources(self) -> Sources:
        """What goes along to the hosts."""
        return places.sources(self.keys) if self.remote else Sources()

    def to_spec(self, study_id: str, seed: int | None = None) -> StudySpec:
        """Makes the study; ``seed`` in place of the configuration's."""
        keys = self.keys
        seed = self.seed if seed is None else seed
        values = keys.model_dump(mode="json", include=set(SETTINGS))
        located = places.settings_there if self.remote else places.settings_here
        settings = located(keys, {name: values[name] for name in SETTINGS} | {"seed": seed})
        return StudySpec(
            study_id=study_id,
            seed=seed,
            stages=self.stages,
            space=self.space,
            cluster=self.cluster,
            training=Training(
                model=keys.nn_model,
                settings=settings,
                train_tolerance=keys.train_tolerance,
                python_path=keys.python_path or (),
                working_directory="" if self.remote else str(Path.cwd()),
                sync_replicas=keys.sync_replicas,
                report_interval=keys.report_interval,
                sync_backup_workers=keys.sync_backup_workers if keys.sync_replicas else 0,
                checkpoint_every=keys.checkpoint_every,
                keep_model=keys.keep_model,
            ),
            objective=Objective(keys.objective),
            opt_tolerance=keys.opt_tolerance,
            narrow_factor=keys.narrow_factor,
            placement=PlacementRule(keys.placement),
            parallel_trials=keys.parallel_trials,
            max_attempts=keys.max_attempts,
            time_budget=keys.time_budget,
            limits=Limits(keys.start_limit, keys.stop_grace, keys.terminate_grace, keys.run_limit),
        )

    def to_yaml(self) -> str:
        """Writes the configuration out, with comments; reading it gives the same study."""
        return render(self.keys, space_to_json(self.space))


def load(
    source: Path | Mapping[str, Any] | str | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    remote: bool = False,
) -> StudyConfig:
    """Reads a configuration: a YAML file, a mapping, YAML text, or None for the default study.

    ``overrides`` are ``KEY=VALUE`` texts put over it; ``name`` is what messages call it; ``remote``: for
    hosts that do not share this machine's files. Raises ConfigError with all problems at once, or the first
    fifty.
    """
    try:
        return _load(source, overrides, name, remote=remote)
    except TooManyProblemsError as error:
        more = Problem("", "and perhaps more: correct these first")
        what = name or (str(source) if isinstance(source, Path) else "configuration")
        raise ConfigError(what, [*_in_order(error.problems), more]) from None


def _load(
    source: Path | Mapping[str, Any] | str | None, overrides: Sequence[str], name: str | None, *, remote: bool
) -> StudyConfig:
    match source:
        case Path():
            document = read_file(source)
        case str():
            document = read_text(source, name or "configuration")
        case None:
            document = Document(name or "configuration")
        case _:
            document = read_mapping(source, name or "configuration")
    apply_overrides(document, overrides)
    return _Resolver(document, source, remote=remote).resolve()


class _Resolver:
    """Checks one document and fills in what it leaves open."""

    def __init__(
        self, document: Document, source: Path | Mapping[str, Any] | str | None, *, remote: bool
    ) -> None:
        self._document = document
        self._data = document.data
        self._remote = remote
        self._wrong: set[str] = set()
        self._notes: list[str] = []
        self._places = places.Places(
            document,
            source.absolute().parent if isinstance(source, Path) else Path.cwd(),
            self._notes,
            from_program=isinstance(source, Mapping),
            remote=remote,
        )

    def resolve(self) -> StudyConfig:
        """Returns the configuration; ConfigError with all problems."""
        keys = self._validate()
        space = SpaceReader(self._document).read(keys)
        cluster = self._cluster(keys)
        self._synchronous(keys, cluster)
        cluster = replace(cluster, gpus_per_worker=self._gpus_per_worker(keys, cluster.workers))
        dimensions, features = self._dimensions(keys)
        data = self._places.data(keys)
        location = self._data_file(keys, data)
        if data is not None and not keys.load_data and keys.nn_model in SHIPPED:
            self._notes.append("data has no effect: load_data is false")
            data = None
        code = self._places.code(keys)
        python_path = self._places.python_path(keys, code)
        if self._remote and data is None and location is not None and not places.is_elsewhere(keys):
            data = Path(location)  # it stands beside the study file, and goes along by itself
        stages = keys.opt_stages or ((keys.train_epoch, keys.opt_epoch),)
        self._note()
        if self._document.problems:
            raise ConfigError(self._document.name, _in_order(self._document.problems))
        seed = secrets.randbelow(2**31) if keys.seed is None else keys.seed
        resolved = keys.model_copy(
            update={
                "seed": seed,
                "opt_stages": stages,
                "cluster": ClusterKeys(ps=cluster.ps, workers=cluster.workers),
                "num_gpus": None,
                "gpus_per_worker": cluster.gpus_per_worker,
                "nn_dimensions": dimensions,
                "data_features": features,
                "load_data_dir": location,
                "data": None if data is None else str(data),
                "code": code,
                "python_path": python_path,
            }
        )
        return StudyConfig(
            keys=resolved,
            space=space,
            cluster=cluster,
            stages=tuple(StageBudget(*stage) for stage in stages),
            seed=seed,
            notes=tuple(self._notes),
            remote=self._remote,
        )

    def _validate(self) -> Keys:
        """Returns the keys; those that were wrong have their defaults, and are in ``_wrong``."""
        try:
            return Keys.model_validate(self._data)
        except ValidationError as failure:
            for error in failure.errors(include_url=False):
                path = tuple(error["loc"])
                self._wrong.add(str(path[0]))
                self._problem(*path, message=_message(error, path))
        return Keys.model_validate({k: v for k, v in self._data.items() if k not in self._wrong})

    def _problem(self, *path: str | int, message: str) -> None:
        self._document.problems.append(self._document.problem(path, message))

    def _given(self, *names: str) -> bool:
        """Whether all these keys are in the document, and right."""
        return all(self._data.get(name) is not None and name not in self._wrong for name in names)

    def _cluster(self, keys: Keys) -> Cluster:
        ps, workers = keys.cluster.ps, keys.cluster.workers
        written = self._data.get("cluster")
        explicit = written if isinstance(written, dict) and self._given("cluster") else {}
        for key, role, hosts in (
            ("ps_hosts", "ps", keys.ps_hosts),
            ("worker_hosts", "workers", keys.worker_hosts),
        ):
            if hosts is None:
                continue
            if role == "workers" and not hosts:
                self._problem(key, message="must name at least one worker")
            elif role in explicit and explicit[role] != len(hosts):
                self._problem(
                    key, message=f"names {len(hosts)}, but cluster.{role} is {explicit[role]}: leave one out"
                )
            elif role == "ps":
                ps = len(hosts)
            else:
                workers = len(hosts)
            self._notes.append(f"{key}: only the number of addresses is used; agents choose the ports")
        if ps == 0 and workers > 1:
            if "workers" in explicit or keys.worker_hosts is not None:
                place = ("cluster", "workers") if "workers" in explicit else ("worker_hosts",)
                self._problem(
                    *place,
                    message=f"{workers} workers need a parameter server: set cluster.ps to 1 or more, or "
                    "cluster.workers to 1 (parallel_trials sets how many trials run at once)",
                )
            workers = 1
        if ps + workers > MOST_TASKS:
            place = ("cluster",) if explicit else ("worker_hosts" if keys.worker_hosts else "ps_hosts",)
            self._problem(*place, message=f"{ps} PS and {workers} workers: {MOST_TASKS:,} tasks are the most")
        return Cluster(ps, workers)

    def _synchronous(self, keys: Keys, cluster: Cluster) -> None:
        backup, key = keys.sync_backup_workers, "sync_backup_workers"
        if backup and not keys.sync_replicas and "sync_replicas" not in self._wrong:
            self._problem(key, message="is for sync_replicas: true only: set that too, or leave it out")
        elif backup and backup >= cluster.workers:
            self._problem(
                key,
                message=f"must be less than the number of workers, {cluster.workers}: a step waits for at "
                f"least one; set it to {cluster.workers - 1} or less, or raise cluster.workers",
            )
        elif keys.sync_replicas and cluster.workers == 1:
            self._notes.append("sync_replicas has no effect: there is one worker only")

    def _gpus_per_worker(self, keys: Keys, workers: int) -> float:
        if self._given("num_gpus", "gpus_per_worker") and (keys.num_gpus or keys.gpus_per_worker):
            self._problem("num_gpus", message="gpus_per_worker says that, too: leave one of them out")
        if not keys.num_gpus:
            return keys.gpus_per_worker or 0
        # As in the original, worker i is on GPU i mod num_gpus: this is how many meet on the fullest one.
        neighbours = math.ceil(workers / keys.num_gpus)
        return 1 if neighbours == 1 else 1 / neighbours

    def _dimensions(self, keys: Keys) -> tuple[tuple[int, int] | None, int]:
        key, model = "nn_dimensions", SHIPPED.get(keys.nn_model)
        dimensions, features = keys.nn_dimensions, keys.data_features
        if model is None or key in self._wrong:
            return dimensions, features
        if model.outputs is None:
            if dimensions is not None:
                self._notes.append(
                    f"{key} has no effect: the {keys.nn_model} takes its dimensions from the data"
                )
            return None, features
        if dimensions is not None and dimensions[1] < model.fewest:
            self._problem(
                key, message=f"the {keys.nn_model} has at least {model.fewest} outputs, not {dimensions[1]}"
            )
        elif dimensions is not None and model.most is not None and dimensions[1] > model.most:
            self._problem(key, message=f"the {keys.nn_model} has {model.most} output, not {dimensions[1]}")
        if keys.load_data:
            return dimensions, features
        if dimensions is None:
            return (features, model.outputs), features
        if self._given("data_features") and dimensions[0] != features:
            self._problem(
                key,
                message=f"has {dimensions[0]} inputs, but data_features is {features}: leave one of them out",
            )
        return dimensions, dimensions[0]

    def _data_file(self, keys: Keys, data: Path | None) -> str | None:
        key, model = "load_data_dir", SHIPPED.get(keys.nn_model)
        if not keys.load_data:
            if model is not None and not model.synthetic and "load_data" not in self._wrong:
                self._problem(
                    "load_data" if "load_data" in self._data else "nn_model",
                    message=f"the {keys.nn_model} has no synthetic data: set load_data to true, and "
                    f"load_data_dir to {model.data.value}",
                )
            elif self._given(key):
                self._notes.append("load_data_dir has no effect: load_data is false")
            return None
        if keys.load_data_dir is None and data is not None:
            location = data
        elif keys.load_data_dir is None:
            if key not in self._wrong and model is not None:
                self._problem("load_data", message=f"needs load_data_dir: {model.data.value}")
            return None
        elif urls.is_url(keys.load_data_dir):
            problem = why_not_fetched(keys.load_data_dir, model)
            if problem:
                self._problem(key, message=f"{keys.load_data_dir}: {problem}")
            return keys.load_data_dir
        else:
            root = None if data is None else places.data_root(data)
            location = self._places.place(key, keys.load_data_dir, root)
            within = root is not None and places.is_within(location, root)
            if self._remote and places.is_elsewhere(keys) and not within:
                return str(location)  # its tasks say what they find there
            if root is not None and not within:
                self._problem(key, message=f"{location}: is not within data, {root}")
        problem = why_unreadable(location, model)
        if problem and (data is None or data.exists()):  # else it is data that is wrong
            self._problem(key, message=f"{location}: {problem}")
        return str(location)

    def _note(self) -> None:
        for key, why in WITHOUT_EFFECT.items():
            if key in self._data:
                self._notes.append(f"{key} has no effect: {why}")
        if self._data.get("checkpoint_every") and self._data.get("max_attempts") == 1:
            self._notes.append("checkpoint_every has no effect: with max_attempts 1 nothing is tried again")
        if self._data.get("opt_stages"):
            self._notes += [
                f"{key} has no effect: opt_stages is given"
                for key in ("train_epoch", "opt_epoch")
                if key in self._data
            ]
        fixed = self._data.get("hidden_layers")
        if isinstance(fixed, dict) and "layers" in fixed and self._given("nodes_per_layer"):
            self._notes.append("nodes_per_layer has no effect: hidden_layers gives the layers")
        if self._data.get("add_cosine") is True and self._data.get("power_method") is not True:
            self._notes.append("add_cosine has no effect: without power_method the cosine is always taken")


def _message(error: Any, path: tuple[str | int, ...]) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown(path)
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping, as in {ps: 1, workers: 2}"
    return str(error["msg"])


def _unknown(path: tuple[str | int, ...]) -> str:
    model: type[BaseModel] = Keys if len(path) == 1 else ClusterKeys
    known = list(model.model_fields)
    name = str(path[-1])
    near = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.5)
    if not near:
        near = [key for key in known if key.startswith(name.lower()) or name.lower().startswith(key)][:1]
    if near:
        return f"unknown key; did you mean {near[0]}?"
    if len(path) == 1:
        return "unknown key; a model's own hyper-parameters go under search_space"
    return f"unknown key; there are {', '.join(known)}"


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Returns the problems by line, those of overrides last, each once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line is None, problem.line or 0))
