"""What a study would do, shown without starting anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from coordinator.bundles import pack
from coordinator.config import StudyConfig
from coordinator.config.models import SHIPPED
from coordinator.directory import StudyDirectory
from coordinator.fleet import Fleet
from coordinator.hosts import AgentAddress, HostPolicy, Usable, usable_slots
from coordinator.naming import new_study_id
from coordinator.placement import check_cluster
from coordinator.preflight import Preflight
from coordinator.private_agent import usable_cores
from coordinator.remote import Place, RemoteFolder
from coordinator.runtime import THIS_MACHINE
from coordinator.search.space import Choice, Dimension, Layers

STUDY_ID = "<study-id>"
"""In the place of the id, which a study has once it runs."""


async def show_plan(
    config: StudyConfig,
    agents: Sequence[AgentAddress] | None,
    output: str | Path | None,
    policy: HostPolicy | None = None,
    show: Callable[[Preflight], None] | None = None,
) -> None:
    """Prints stages, tasks, space and hosts; ``show`` is given what was found of the agents.

    Raises UsageError where ``output`` cannot be used, or code or data cannot be packed for the hosts,
    HostsError where the hosts cannot be reached or could never hold a trial.
    """
    place = Place.of(output, config.keys.train_log_dir, STUDY_ID)
    if place.url is not None:
        remote = RemoteFolder(place.url, STUDY_ID)
        if output is not None:
            await remote.check()
    StudyDirectory.create(Place.of(output, config.keys.train_log_dir, new_study_id()).folder).close()
    excluded = () if place.url is not None or output is None else (place.folder,)
    with await pack(config.sources, *excluded) as bundles:
        sent = [f"sent       {bundle.name} {bundle.describe()}" for bundle in bundles]
    sent += [f"           {note}" for note in bundles.notes]
    hosts = await _hosts(config, agents, replace(policy or HostPolicy(), wait=0.0), show)
    for line in _describe(config, hosts, agents is None, place, sent):
        click.echo(line)


async def _hosts(
    config: StudyConfig,
    agents: Sequence[AgentAddress] | None,
    policy: HostPolicy,
    show: Callable[[Preflight], None] | None,
) -> Mapping[str, Usable]:
    if agents is None:
        slots = config.keys.slots or max(usable_cores(), config.cluster.workers)
        check_cluster({THIS_MACHINE: slots}, config.cluster)
        return {THIS_MACHINE: Usable(slots)}
    fleet = Fleet(agents, policy, lambda notice: click.echo(notice.message))
    try:
        await fleet.open(config.cluster, show)
    finally:
        await fleet.close()
    return fleet.hosts


def _describe(
    config: StudyConfig,
    hosts: Mapping[str, Usable],
    private: bool,
    place: Place,
    sent: Sequence[str],
) -> list[str]:
    cluster = config.cluster
    tasks = f"{cluster.ps} PS + {cluster.workers} workers" if cluster.ps else "one process"
    if cluster.gpus_per_worker:
        tasks += f", {cluster.gpus_per_worker:.3g} GPU{'s' * (cluster.gpus_per_worker > 1)} for each worker"
    trials = sum(stage.opt_epoch for stage in config.stages)
    lines = [
        f"model      {config.keys.nn_model}, minimising {config.keys.objective}, seed {config.seed}",
        f"data       {config.keys.load_data_dir or 'synthetic'}"
        if config.keys.nn_model in SHIPPED
        else f"data       from {config.keys.nn_model}",
        *sent,
        *(
            f"stage {place}    {stage.opt_epoch} trials of {stage.train_epoch} steps"
            + ("" if place == 1 else ", around the best point so far")
            for place, stage in enumerate(config.stages, start=1)
        ),
        f"each trial {tasks}; {trials} trials in all",
    ]
    width = max(map(len, config.space))
    lines += [f"search     {name:<{width}}  {describe(d)}" for name, d in config.space.items()]
    # The GPUs of this machine are not known: its agent, which is not there yet, finds them.
    unknown = private and cluster.gpus_per_worker > 0
    slots = {name: host.slots for name, host in hosts.items()} if unknown else usable_slots(hosts, cluster)
    at_once = sum(slots.values()) // cluster.workers or 1
    at_once = min(at_once, config.keys.parallel_trials or at_once)
    if private:
        lines += [f"host       {n}: {host.slots} slots{_gpus(host, unknown)}" for n, host in hosts.items()]
    for host in hosts.values():
        lines += [f"           {why} (not leased now)" for why in host.quarantined]
    lines += [f"at once    {'up to ' * unknown}{at_once} trial{'s'[: at_once != 1]}"]
    lines += [f"results    {place.folder}"]
    lines += [f"           copied to {place.url} at the end"] if place.url is not None else []
    return lines


def _gpus(host: Usable, unknown: bool) -> str:
    if unknown:
        return ", GPUs counted when the study starts"
    return f", {host.gpus} GPU{'s' * (host.gpus > 1)}" if host.gpus else ""


def describe(dimension: Dimension) -> str:
    """Returns a dimension in words: ``4 to 10``, ``relu or tanh``."""
    if isinstance(dimension, Choice):
        return " or ".join(
            "-".join(map(str, option)) if isinstance(option, tuple) else str(option)
            for option in dimension.options
        )
    if isinstance(dimension, Layers):
        return f"{describe(dimension.count)} layers of {describe(dimension.nodes)} nodes"
    if dimension.low == dimension.high:
        return f"{dimension.low:g}" if isinstance(dimension.low, float) else str(dimension.low)
    text = f"{dimension.low} to {dimension.high}"
    if dimension.log:
        text += ", log"
    return text if dimension.step is None else f"{text}, step {dimension.step}"
