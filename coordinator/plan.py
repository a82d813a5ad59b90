"""What a study would do, shown without starting anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from coordinator.config import StudyConfig
from coordinator.config.models import SHIPPED
from coordinator.directory import StudyDirectory
from coordinator.hosts import AgentAddress
from coordinator.private_agent import usable_cores
from coordinator.runtime import check_cluster, close_links, connect
from coordinator.search.space import Choice, Dimension, Layers


async def show_plan(config: StudyConfig, agents: Sequence[AgentAddress] | None, output: Path | None) -> None:
    """Prints stages, tasks, space and hosts.

    Raises UsageError where ``output`` cannot be used, HostsError where the hosts cannot be
    reached or could never hold a trial.
    """
    if output is not None:
        StudyDirectory.create(output).close()
    slots = await _slots(config, agents)
    for line in _describe(config, slots, output):
        click.echo(line)


async def _slots(config: StudyConfig, agents: Sequence[AgentAddress] | None) -> Mapping[str, int]:
    if agents is None:
        slots = {"this machine": config.keys.slots or max(usable_cores(), config.cluster.workers)}
        check_cluster(slots, config.cluster)
        return slots
    links, slots = await connect(agents, config.cluster)
    await close_links(list(links.values()))
    return slots


def _describe(config: StudyConfig, slots: Mapping[str, int], output: Path | None) -> list[str]:
    cluster = config.cluster
    tasks = f"{cluster.ps} PS + {cluster.workers} workers" if cluster.ps else "one process"
    trials = sum(stage.opt_epoch for stage in config.stages)
    lines = [
        f"model      {config.keys.nn_model}, minimising {config.keys.objective}, seed {config.seed}",
        f"data       {config.keys.load_data_dir or 'synthetic'}"
        if config.keys.nn_model in SHIPPED
        else f"data       from {config.keys.nn_model}",
        *(
            f"stage {place}    {stage.opt_epoch} trials of {stage.train_epoch} steps"
            + ("" if place == 1 else ", around the best point so far")
            for place, stage in enumerate(config.stages, start=1)
        ),
        f"each trial {tasks}; {trials} trials in all",
    ]
    width = max(map(len, config.space))
    lines += [f"search     {name:<{width}}  {describe(d)}" for name, d in config.space.items()]
    at_once = sum(number // cluster.workers for number in slots.values()) or 1
    at_once = min(at_once, config.keys.parallel_trials or at_once)
    lines += [f"host       {name}: {number} slots" for name, number in slots.items()]
    lines += [f"at once    {at_once} trial{'s'[: at_once != 1]}"]
    lines += [f"results    {output or Path(config.keys.train_log_dir) / '<study-id>'}"]
    return lines


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
