"""Runs one study from its specification to its result: agents, store, machine, observer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from coordinator.agent_link import AgentLink, HostUnreachableError, Patience
from coordinator.directory import StudyDirectory
from coordinator.domain import Cluster, Notice, Study, StudySpec, StudyState, Trial, TrialCounts
from coordinator.errors import HostsError
from coordinator.hosts import AgentAddress, Usable, usable, usable_slots
from coordinator.placement import HostCapacity, why_never
from coordinator.private_agent import CLOSE_LIMIT, PrivateAgent, usable_cores
from coordinator.study_run import Observer, StudyRun

Result = TypeVar("Result")

STOP_LIMIT = 1.2
"""Seconds for the attempts to end when the user interrupts a study."""

LAST_MOMENT = 0.4
"""Seconds for the private agent to end after that; then it and its children are killed."""

INTERRUPTED = "interrupted"
THIS_MACHINE = "this machine"


class StopSignal(Protocol):
    """What ``run_study`` needs of an asyncio.Event."""

    def is_set(self) -> bool:
        """Whether the study shall stop."""

    async def wait(self) -> Any:
        """Until the study shall stop."""


@dataclass(frozen=True, slots=True)
class StudyResult:
    """A study that has ended, its trials by number, and where its files are."""

    study: Study
    trials: tuple[Trial, ...]
    directory: Path


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
    patience: Patience | None = None,
) -> StudyResult:
    """Runs a study on ``agents``; None: on this machine, with a private agent.

    ``slots`` is for the private agent: how many workers run at once; None: one for each core, and
    enough for one trial.

    ``stop`` ends it early, its attempts torn down or, past ``stop_limit`` seconds, left to their
    agents (a private one is killed). ``observer`` is called in the loop with whatever is durable.
    Raises HostsError where the agents cannot be used, StudyFailedError where the private one
    does not come up. A failure after that is the study's: see its state and reason.
    """
    started_at = time.time()
    async with contextlib.AsyncExitStack() as stack:
        private: PrivateAgent | None = None
        if agents is None:
            slots = slots or max(usable_cores(), spec.cluster.workers)
            check_cluster({THIS_MACHINE: slots}, spec.cluster)
            private = PrivateAgent(directory.path / "agent", directory.logs / "agent.log", slots)

            async def close(agent: PrivateAgent = private) -> None:
                await agent.close(LAST_MOMENT if stop.is_set() else CLOSE_LIMIT)

            stack.push_async_callback(close)
        ready = await _unless_stopped(_connect(agents, private, spec.cluster, stack, patience), stop)
        if ready is None:
            return StudyResult(_never_begun(spec, started_at), (), directory.path)
        links, hosts = ready
        slots_by_host = usable_slots(hosts, spec.cluster)
        run = StudyRun(
            spec,
            directory,
            links,
            slots_by_host,
            now=asyncio.get_running_loop().time(),
            started_at=started_at,
            observer=observer,
        )
        if spec.cluster.gpus_per_worker:
            for name, host in hosts.items():
                for why in host.quarantined:
                    observer(Notice(f"host {name} does not lease all its GPUs now: {why}", warning=True))
        if private is not None:
            run.supervise(private.closed_by_itself())
        else:
            for link in links.values():
                run.supervise(_watch(link, run))
        run.supervise(_stop_when_told(stop, run, stop_limit))
        study = await run.run()
        return StudyResult(study, run.machine.trials(), directory.path)


async def connect(
    agents: Sequence[AgentAddress], cluster: Cluster | None, patience: Patience | None = None
) -> tuple[dict[str, AgentLink], dict[str, Usable]]:
    """Links to all agents, and what to use of each host.

    Raises HostsError with every agent that does not answer or has too little, and where no trial
    of ``cluster`` could ever be placed.
    """
    links = [AgentLink(address, patience) for address in agents]
    try:
        answers = await asyncio.gather(*(link.inventory() for link in links), return_exceptions=True)
        problems = []
        inventories = {}
        for link, answer in zip(links, answers, strict=True):
            if isinstance(answer, HostUnreachableError):
                problems.append(f"{link.name}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                inventories[link.address] = answer
        if problems:
            raise HostsError("\n".join(problems))
        hosts = usable(inventories)
        check_hosts(hosts, cluster)
    except BaseException:
        await close_links(links)
        raise
    return {link.name: link for link in links}, hosts


def check_hosts(hosts: Mapping[str, Usable], cluster: Cluster | None) -> None:
    """Raises HostsError where no trial of ``cluster`` could ever be placed on these hosts."""
    if cluster is not None:
        check_cluster(usable_slots(hosts, cluster), cluster)


def check_cluster(slots: Mapping[str, int], cluster: Cluster | None) -> None:
    """Raises HostsError where no trial of ``cluster`` could ever be placed on these slots."""
    hosts = [HostCapacity(name, number, number) for name, number in slots.items()]
    reason = why_never(hosts, cluster) if cluster is not None else None
    if reason is not None:
        raise HostsError(reason)


async def close_links(links: Sequence[AgentLink]) -> None:
    """Ends all connections."""
    await asyncio.gather(*(link.close() for link in links))


async def _connect(
    agents: Sequence[AgentAddress] | None,
    private: PrivateAgent | None,
    cluster: Cluster,
    stack: contextlib.AsyncExitStack,
    patience: Patience | None,
) -> tuple[dict[str, AgentLink], dict[str, Usable]]:
    if private is not None:
        link = await private.start()
        stack.push_async_callback(link.close)
        hosts = {link.name: private.usable}
        check_hosts(hosts, cluster)
        return {link.name: link}, hosts
    links, hosts = await connect(agents or (), cluster, patience)
    stack.push_async_callback(close_links, list(links.values()))
    return links, hosts


async def _unless_stopped(work: Coroutine[Any, Any, Result], stop: StopSignal) -> Result | None:
    """The result of ``work``, or None where ``stop`` came first; ``work`` is then cancelled."""
    async with _background(stop.wait()) as stopped, _background(work) as working:
        await asyncio.wait((stopped, working), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, Result]) -> AsyncIterator[asyncio.Task[Result]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _stop_when_told(stop: StopSignal, run: StudyRun, limit: float) -> None:
    await stop.wait()
    run.stop(INTERRUPTED, limit)


async def _watch(link: AgentLink, run: StudyRun) -> None:
    async for event in link.watch():
        run.post(event)


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
