"""One way to use either agent: the real one with a fake zygote, or the scripted one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import duration_pb2, json_format

from nhop.v1 import agent_pb2, agent_pb2_grpc, types_pb2
from tests.fakes.gpus import write_gpus
from tests.fakes.scripted_agent import ScriptedAgent, TaskScript, completed, default_script, failed, name

ROOT = Path(__file__).parents[2]
DEADLINE = 10.0
START_LIMIT = 60.0
"""Seconds for a new agent to load what it needs and to say that it listens, on a machine that stalls."""
GPUS = ("GPU-a", "GPU-b")
"""What the host of either agent has."""


def attempt_id(trial: int = 1, attempt: int = 1, study: str = "study") -> types_pb2.AttemptId:
    return types_pb2.AttemptId(study_id=study, trial=trial, attempt=attempt)


def task_id(text: str) -> types_pb2.TaskId:
    role, _, index = text.partition("/")
    number = types_pb2.TASK_ROLE_PS if role == "ps" else types_pb2.TASK_ROLE_WORKER
    return types_pb2.TaskId(role=number, index=int(index))


def requirements(*tasks: str, gpus: float = 0.0) -> list[agent_pb2.TaskRequirement]:
    """For an attempt of these tasks; ``gpus`` for each worker."""
    with_ps = any(task.startswith("ps") for task in tasks)
    return [
        agent_pb2.TaskRequirement(
            task=task_id(t),
            slots=int(t.startswith("worker")),
            port=with_ps,
            gpus=gpus if t.startswith("worker") else 0,
        )
        for t in tasks
    ]


def seconds(value: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(value), nanos=round((value % 1) * 1e9))


def scripted(request: agent_pb2.StartAttemptRequest, task: types_pb2.TaskId) -> TaskScript:
    """Reads the same ``settings["script"]`` as the fake zygote, as far as contract tests need it."""
    scripts = json_format.MessageToDict(request.training.settings.values).get("script", {})
    if name(task) not in scripts:
        return default_script(request, task)
    values = scripts[name(task)]
    runs_for = values.get("runs_for", 0.0)
    ends_with = values.get("ends_with", "COMPLETED")
    kind = types_pb2.FailureKind.Value(f"FAILURE_KIND_{ends_with}") if ends_with != "COMPLETED" else None
    if values.get("dies_of") == "SIGKILL":
        kind = types_pb2.FAILURE_KIND_KILLED
    return TaskScript(
        runs_for=math.inf if runs_for is None else runs_for,
        reports=int(values.get("reports", 3)),
        ready_after=0.0 if values.get("ready", True) else math.inf,
        ends_with=completed() if kind is None else failed(kind),
        log=values["log"] + "\n" if "log" in values else None,
        artifacts={name: text.encode() for name, text in values.get("artifacts", {}).items()},
        checkpoints=(values["checkpoint"].encode(),) if "checkpoint" in values else (),
    )


class Harness:
    """An agent that serves, and a client of it."""

    def __init__(self, address: str, channel: grpc.aio.Channel | None = None) -> None:
        self.address = address
        self.channel = channel or grpc.aio.insecure_channel(address)
        self.stub: Any = agent_pb2_grpc.AgentServiceStub(self.channel)

    async def prepare(
        self, attempt: types_pb2.AttemptId, *tasks: str, timeout: float = 0.0, gpus: float = 0.0
    ) -> Any:
        request = agent_pb2.PrepareAttemptRequest(attempt=attempt, tasks=requirements(*tasks, gpus=gpus))
        if timeout:
            request.lease_timeout.CopyFrom(seconds(timeout))
        return await self.stub.PrepareAttempt(request, timeout=DEADLINE)

    async def start(
        self, attempt: types_pb2.AttemptId, leases: Any, script: dict[str, Any] | None = None, **limits: float
    ) -> None:
        await self.stub.StartAttempt(start_request(attempt, leases, script, **limits), timeout=DEADLINE)

    async def run(
        self, attempt: types_pb2.AttemptId, *tasks: str, script: dict[str, Any] | None = None, **limits: float
    ) -> None:
        prepared = await self.prepare(attempt, *tasks)
        await self.start(attempt, prepared.leases, script, **limits)

    async def stop(
        self, attempt: types_pb2.AttemptId, reason: int = agent_pb2.STOP_REASON_STUDY_STOPPED
    ) -> bool:
        request = agent_pb2.StopAttemptRequest(attempt=attempt, reason=reason)
        return bool((await self.stub.StopAttempt(request, timeout=DEADLINE)).was_active)

    async def read(self, attempt: types_pb2.AttemptId, name: str) -> bytes:
        """A file that a task left."""
        request = agent_pb2.ReadArtifactRequest(attempt=attempt, name=name)
        return b"".join([part.data async for part in self.stub.ReadArtifact(request, timeout=DEADLINE)])

    async def give(
        self, attempt: types_pb2.AttemptId, *pieces: bytes, name: str = "restore.npz", size: int | None = None
    ) -> None:
        """Gives a file to a prepared attempt, in these pieces; ``size`` as it is announced."""
        total = sum(map(len, pieces)) if size is None else size
        artifact = types_pb2.Artifact(name=name, size=total)
        header = agent_pb2.ArtifactHeader(attempt=attempt, artifact=artifact)
        requests = [agent_pb2.WriteArtifactRequest(header=header)]
        requests += [agent_pb2.WriteArtifactRequest(data=piece) for piece in pieces]
        await self.stub.WriteArtifact(iter(requests), timeout=DEADLINE)

    async def put(self, *pieces: bytes, digest: str | None = None, size: int | None = None) -> str:
        """Gives a bundle in these pieces, whether it has it or not; what it says that it accepts."""
        whole = b"".join(pieces)
        header = agent_pb2.BundleHeader(
            digest=hashlib.sha256(whole).hexdigest() if digest is None else digest,
            size=len(whole) if size is None else size,
        )
        requests = [agent_pb2.PutBundleRequest(header=header)]
        requests += [agent_pb2.PutBundleRequest(data=piece) for piece in pieces]
        call = self.stub.PutBundle(iter(requests), timeout=DEADLINE)
        await call
        return str(dict(await call.initial_metadata())["nhop-accepts"])

    async def inventory(self) -> Any:
        return await self.stub.GetInventory(agent_pb2.GetInventoryRequest(), timeout=DEADLINE)

    def follow(self, study: str = "study", positions: Iterable[agent_pb2.Position] = ()) -> Stream:
        return Stream(self.stub, study, positions)

    async def events(
        self, attempt: types_pb2.AttemptId, positions: Sequence[agent_pb2.Position] = ()
    ) -> list[agent_pb2.Event]:
        """All events of an attempt up to its end."""
        async with self.follow(attempt.study_id, positions) as stream:
            return await stream.until(lambda e: e.attempt == attempt and ended(e))

    async def close(self) -> None:
        await self.channel.close()


class Stream:
    """A subscription. ``seen`` holds what has come so far."""

    def __init__(self, stub: Any, study: str, positions: Iterable[agent_pb2.Position]) -> None:
        self.call = stub.StreamEvents()
        self.seen: list[agent_pb2.Event] = []
        self._first = agent_pb2.Subscribe(study_id=study, positions=list(positions))

    async def __aenter__(self) -> Stream:
        await self.call.write(agent_pb2.StreamEventsRequest(subscribe=self._first))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def until(self, condition: Callable[[agent_pb2.Event], bool]) -> list[agent_pb2.Event]:
        """Reads until an event fulfils the condition; all that was seen."""
        async with asyncio.timeout(DEADLINE):
            while not any(condition(event) for event in self.seen):
                message = await self.call.read()
                if message is grpc.aio.EOF:
                    raise AssertionError(f"the stream ended: {await self.call.code()}; seen {self.seen}")
                self.seen += message.events
        return self.seen

    async def acknowledge(self, *events: agent_pb2.Event) -> None:
        positions = [
            agent_pb2.Position(attempt=e.attempt, source=e.source, sequence=e.sequence) for e in events
        ]
        acknowledge = agent_pb2.Acknowledge(positions=positions)
        await self.call.write(agent_pb2.StreamEventsRequest(acknowledge=acknowledge))


def start_request(
    attempt: types_pb2.AttemptId, leases: Any, script: dict[str, Any] | None = None, **limits: float
) -> agent_pb2.StartAttemptRequest:
    """A valid request for the leased tasks; limits in seconds."""
    ps = [lease for lease in leases if lease.task.role == types_pb2.TASK_ROLE_PS]
    workers = [lease for lease in leases if lease.task.role == types_pb2.TASK_ROLE_WORKER]
    request = agent_pb2.StartAttemptRequest(attempt=attempt)
    if ps:
        request.cluster.ps.extend(lease.address for lease in ps)
        request.cluster.workers.extend(lease.address for lease in workers)
    training = request.training
    training.model = "Regressor"
    training.train_epoch = 30
    training.workers = len(workers)
    training.parameter_servers = len(ps)
    training.parameters.values.update({"learning_rate": 0.5})
    training.settings.values.update({"script": script or {}})
    for field, value in {"start": 5.0, "stop_grace": 1.0, "terminate_grace": 1.0, **limits}.items():
        getattr(request.limits, field).CopyFrom(seconds(value))
    return request


def kinds(events: Iterable[agent_pb2.Event], source: str | None = None) -> list[str]:
    return [str(e.WhichOneof("kind")) for e in events if source in (None, e.source)]


def ended(event: agent_pb2.Event) -> bool:
    return event.WhichOneof("kind") == "attempt_ended"


def is_kind(kind: str) -> Callable[[agent_pb2.Event], bool]:
    return lambda event: event.WhichOneof("kind") == kind


def outcome(events: Iterable[agent_pb2.Event], task: str) -> types_pb2.TaskOutcome:
    """The outcome of a task among the events."""
    return next(
        e.task_ended.outcome
        for e in events
        if e.WhichOneof("kind") == "task_ended" and name(e.task_ended.task) == task
    )


def pids(events: Iterable[agent_pb2.Event]) -> dict[str, int]:
    """Pid by task of those that were started."""
    return {
        name(e.task_started.task): e.task_started.pid
        for e in events
        if e.WhichOneof("kind") == "task_started"
    }


class RealAgent(Harness):
    """``nhop-agent`` in a process of its own, with the fake zygote."""

    process: asyncio.subprocess.Process
    state_dir: Path
    gpus_file: Path

    @classmethod
    async def launch(cls, directory: Path, inside: Sequence[str] = (), **config: Any) -> RealAgent:
        """``inside``: what to put before the command."""
        values = {"listen": f"unix:{directory}/agent.sock", "state_dir": str(directory / "state"), "slots": 2}
        values["gpus"] = str(directory / "gpus.json")
        if not (directory / "gpus.json").exists():
            write_gpus(directory / "gpus.json", *GPUS)
        values.update(config)
        process = await asyncio.create_subprocess_exec(
            *inside, sys.executable, str(ROOT / "tests/fakes/run_agent.py"), json.dumps(values),
            stdout=asyncio.subprocess.PIPE, stderr=(directory / "stderr").open("ab"),
            pass_fds=[config["parent_pipe"]] if "parent_pipe" in config else [],
            cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_LIMIT):
                line = (await process.stdout.readline()).decode()
            assert line.startswith("nhop-agent listens on "), (directory / "stderr").read_text()
        except BaseException:
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise
        agent = cls(line.split()[3])
        agent.process = process
        agent.state_dir = directory / "state"
        agent.gpus_file = directory / "gpus.json"
        return agent

    async def close(self) -> None:
        await super().close()
        await self.terminate()

    async def terminate(self) -> int:
        """Ends it in order; its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(DEADLINE):
                return await self.process.wait()
        except TimeoutError:
            self.process.kill()
            raise

    async def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()
        await self.process.wait()
        await self.channel.close()


class FakeAgent(Harness):
    """The scripted agent."""

    agent: ScriptedAgent

    @classmethod
    async def launch(cls, directory: Path) -> FakeAgent:
        agent = ScriptedAgent(slots=2, script=scripted, gpus=GPUS)
        harness = cls(await agent.serve(f"unix:{directory}/agent.sock"))
        harness.agent = agent
        return harness

    async def close(self) -> None:
        await super().close()
        await self.agent.close()
