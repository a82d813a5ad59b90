"""Runs one study from its specification to its result: agents, store, machine, observer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coordinator.agent_link import AgentLink
from coordinator.bundles import Bundles
from coordinator.directory import AGENT_FOLDER, StudyDirectory
from coordinator.domain import Cluster, Notice, Study, StudySpec, StudyState, Trial, TrialCounts
from coordinator.fleet import Fleet
from coordinator.hosts import AgentAddress, HostPolicy, Usable, usable_slots
from coordinator.patience import Patience
from coordinator.placement import check_cluster, check_hosts
from coordinator.preflight import Preflight
from coordinator.private_agent import CLOSE_LIMIT, PrivateAgent, usable_cores
from coordinator.study_run import Observer, StudyRun
from coordinator.waiting import StopSignal, unless_stopped

Result = TypeVar("Result")

STOP_LIMIT = 1.2
"""Seconds for the attempts to end when the user interrupts a study."""

LAST_MOMENT = 0.4
"""Seconds for the private agent to end after that; then it and its children are killed."""

INTERRUPTED = "interrupted"
THIS_MACHINE = "this machine"


@dataclass(frozen=True, slots=True)
class StudyResult:
    """A study that has ended, its trials by number, and where its files are.

    ``url`` is where they are, too; ``copy_problem`` says why they are not, though they were to be.
    """

    study: Study
    trials: tuple[Trial, ...]
    directory: Path
    url: str | None = None
    copy_problem: str = ""


def run_loop(main: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine on uvloop, in this thread, to its end."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def run_study(
    spec: StudySpec,
    *,
    directory: StudyDirectory,
    agents: Sequence[AgentAddress] | None,
    observer: Observer,
    stop: StopSignal,
    stop_limit: float = STOP_LIMIT,
    slots: int | None = None,
    policy: HostPolicy | None = None,
    patience: Patience | None = None,
    reread: asyncio.Event | None = None,
    show: Callable[[Preflight], None] | None = None,
    begun: Callable[[StudyRun, Path | None], None] | None = None,
    bundles: Bundles | None = None,
) -> StudyResult:
    """Runs a study on ``agents``; None: on this machine, with a private agent.

    ``slots`` is for the private agent: how many workers run at once; None: one for each core, and
    enough for one trial. For ``agents`` there are ``policy``, ``show``, which is given what was found
    of them, and ``reread``: set, the hosts file of the policy is read again. ``bundles`` are what
    ``spec`` needs on its hosts.

    ``stop`` ends it early, its attempts torn down or, past ``stop_limit`` seconds, left to their
    agents (a private one is killed). ``observer`` is called in the loop with whatever is durable,
    ``begun`` once, with the run and the folder for sockets of a private agent.
    Raises HostsError where the agents cannot be used, StudyFailedError where the private one
    does not come up. A failure after that is the study's: see its state and reason.
    """
    started_at = time.time()
    async with contextlib.AsyncExitStack() as stack:
        private: PrivateAgent | None = None
        fleet: Fleet | None = None
        if agents is None:
            slots = slots or max(usable_cores(), spec.cluster.workers)
            check_cluster({THIS_MACHINE: slots}, spec.cluster)
            private = PrivateAgent(directory.path / AGENT_FOLDER, directory.logs / "agent.log", slots)

            async def close(agent: PrivateAgent = private) -> None:
                await agent.close(LAST_MOMENT if stop.is_set() else CLOSE_LIMIT)

            stack.push_async_callback(close)
        else:
            fleet = Fleet(agents, policy or HostPolicy(), observer, patience)
        ready = await unless_stopped(_connect(private, fleet, spec.cluster, stack, reread, show), stop)
        if ready is None:
            return StudyResult(_never_begun(spec, started_at), (), directory.path)
        links, hosts = ready
        run = StudyRun(
            spec,
            directory,
            links,
            usable_slots(hosts, spec.cluster),
            now=asyncio.get_running_loop().time(),
            started_at=started_at,
            observer=observer,
            bundles=bundles,
        )
        if spec.cluster.gpus_per_worker:
            for name, host in hosts.items():
                for why in host.quarantined:
                    observer(Notice(f"host {name} does not lease all its GPUs now: {why}", warning=True))
        if private is not None:
            run.supervise(private.closed_by_itself())
        if fleet is not None:
            run.supervise(fleet.follow(run))
            if reread is not None:
                run.supervise(fleet.reread(reread))
        run.supervise(_stop_when_told(stop, run, stop_limit))
        if begun is not None:
            begun(run, private.folder if private is not None else None)
        study = await run.run()
        return StudyResult(study, run.machine.trials(), directory.path)


async def _connect(
    private: PrivateAgent | None,
    fleet: Fleet | None,
    cluster: Cluster,
    stack: contextlib.AsyncExitStack,
    reread: asyncio.Event | None,
    show: Callable[[Preflight], None] | None,
) -> tuple[dict[str, AgentLink], dict[str, Usable]]:
    if fleet is not None:
        stack.push_async_callback(fleet.close)
        await fleet.open(cluster, show, reread)
        return fleet.links, fleet.hosts
    assert private is not None
    link = await private.start()
    stack.push_async_callback(link.close)
    hosts = {link.name: private.usable}
    check_hosts(hosts, cluster)
    return {link.name: link}, hosts


async def _stop_when_told(stop: StopSignal, run: StudyRun, limit: float) -> None:
    await stop.wait()
    run.stop(INTERRUPTED, limit)


def _never_begun(spec: StudySpec, started_at: float) -> Study:
    return Study(
        study_id=spec.study_id,
        state=StudyState.STOPPED,
        stages=(),
        number_of_stages=len(spec.stages),
        counts=TrialCounts(total=sum(stage.opt_epoch for stage in spec.stages)),
        reason=f"{INTERRUPTED} before it began",
        started_at=started_at,
        ended_at=time.time(),
    )
