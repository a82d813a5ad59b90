"""An AgentService without processes: its tasks do what a script says.

    agent = ScriptedAgent(slots=2, script=lambda request, task: TaskScript(runs_for=0.1))
    address = await agent.serve(f"unix:{tmp_path}/agent.sock")
    ...
    await agent.close()

The default script: the chief is ready at once, reports three times, and completes; parameter
servers and the other workers run until they are stopped. It keeps the protocol's promises
(idempotence, all or nothing, order, numbering, resumption); tests/contract holds it to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import re
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import grpc
from google.protobuf import duration_pb2, json_format, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from nhop.v1 import agent_pb2, agent_pb2_grpc, types_pb2

Script = Callable[[agent_pb2.StartAttemptRequest, types_pb2.TaskId], "TaskScript"]
Loss = Callable[[Mapping[str, Any], int], float]
Key = tuple[str, int, int]

MAX_FOLLOWERS = 64
VERSION = metadata.version("nhop")

TOLERATED = (
    types_pb2.FAILURE_KIND_KILLED,
    types_pb2.FAILURE_KIND_CRASHED,
    types_pb2.FAILURE_KIND_PEER_LOST,
)


def completed() -> types_pb2.TaskOutcome:
    """The outcome of a task that did its work to the end."""
    return types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_COMPLETED, exit_code=0)


def stopped() -> types_pb2.TaskOutcome:
    """The outcome of a task that was told to end."""
    return types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_STOPPED, exit_code=0)


def failed(
    kind: types_pb2.FailureKind, message: str = "scripted failure", detail: str = ""
) -> types_pb2.TaskOutcome:
    """An outcome for ``TaskScript.ends_with``."""
    failure = types_pb2.Failure(kind=kind, message=message, detail=detail)
    outcome = types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_FAILED, failure=failure)
    if kind == types_pb2.FAILURE_KIND_KILLED:
        outcome.signal = 9
    else:
        outcome.exit_code = 1
    return outcome


def name(task: types_pb2.TaskId) -> str:
    """The task's name as in ``worker/0``."""
    return f"{'ps' if task.role == types_pb2.TASK_ROLE_PS else 'worker'}/{task.index}"


def key(attempt: types_pb2.AttemptId) -> Key:
    """The attempt as a hashable value."""
    return attempt.study_id, attempt.trial, attempt.attempt


@dataclasses.dataclass(frozen=True)
class TaskScript:
    """What a task does. Times in seconds; ``math.inf`` means never.

    ``ready_after`` inf: it fails to start (START_TIMEOUT after the start limit). ``runs_for`` is
    the time from ready to the end, over which ``reports`` reports are spread evenly; inf: it reports
    at once and runs until it is told to stop, which takes ``stops_after``, or until a test sets ``until``.
    ``artifacts`` are what it leaves where it was not stopped; each of ``checkpoints`` is saved with one
    of the last reports. ``log`` is what it prints at its start, None: its name.
    """

    runs_for: float = 0.0
    ends_with: types_pb2.TaskOutcome = dataclasses.field(default_factory=completed)
    reports: int = 3
    ready_after: float = 0.0
    stops_after: float = 0.0
    until: asyncio.Event | None = None
    artifacts: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    checkpoints: tuple[bytes, ...] = ()
    log: str | None = None


def default_script(request: agent_pb2.StartAttemptRequest, task: types_pb2.TaskId) -> TaskScript:
    """The chief completes at once, the others run until they are stopped."""
    if name(task) == "worker/0":
        return TaskScript()
    return TaskScript(runs_for=math.inf, reports=0)


def default_loss(parameters: Mapping[str, Any], step: int) -> float:
    """Falls with the steps towards the sum of the numeric parameters' magnitudes."""
    numbers = [abs(v) for v in parameters.values() if isinstance(v, int | float)]
    return sum(numbers) + 1.0 / (1 + step)


@dataclasses.dataclass
class _Task:
    requirement: agent_pb2.TaskRequirement
    lease: agent_pb2.TaskLease
    told: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    started: bool = False
    ended: bool = False
    failure: types_pb2.Failure | None = None
    log: bytes = b""
    log_changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def say(self, text: str = "") -> None:
        """Adds to the log; wakes who follows it in any case."""
        self.log += text.encode()
        self.log_changed.set()
        self.log_changed = asyncio.Event()

    @property
    def id(self) -> types_pb2.TaskId:
        return self.requirement.task

    @property
    def is_ps(self) -> bool:
        return bool(self.id.role == types_pb2.TASK_ROLE_PS)


@dataclasses.dataclass
class _Attempt:
    id: types_pb2.AttemptId
    tasks: dict[str, _Task]
    request: agent_pb2.PrepareAttemptRequest
    events: list[agent_pb2.Event] = dataclasses.field(default_factory=list)
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)
    start: agent_pb2.StartAttemptRequest | None = None
    reason: agent_pb2.StopReason | None = None
    ended: bool = False
    lease_timer: asyncio.TimerHandle | None = None
    running: set[asyncio.Task[None]] = dataclasses.field(default_factory=set)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    restore: bytes | None = None

    @property
    def slots(self) -> int:
        return 0 if self.ended else sum(t.requirement.slots for t in self.tasks.values())


class ScriptedAgent(agent_pb2_grpc.AgentServiceServicer):
    """See the module. ``calls`` lists (method, request) as they came, ``heartbeats`` those for the inventory,
    which are never answered where it ``hangs``; ``facts`` are what the inventory has instead of the usual.

    ``reading`` is awaited before each chunk of an artifact that is read, ``receiving`` before a bundle's
    content; ``full``: nothing can be written. ``bundles`` holds the names of the members of each.
    """

    def __init__(
        self, *, slots: int = 2, script: Script = default_script, loss: Loss = default_loss,
        hostname: str = "scripted", first_port: int = 20000, gpus: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.slots = slots
        self.script = script
        self.loss = loss
        self.hostname = hostname
        self.gpus = {uuid: agent_pb2.Gpu(uuid=uuid, name="scripted", memory_bytes=8 << 30) for uuid in gpus}
        self.calls: list[tuple[str, Any]] = []
        self.unreachable: dict[str, str] = {}
        self.ports_taken = False
        self.facts: dict[str, Any] = {}
        self.heartbeats: list[agent_pb2.GetInventoryRequest] = []
        self.hangs = False
        self._begun = time.monotonic_ns()
        self.reading: Callable[[str], Awaitable[Any]] = _at_once
        self.full = False
        self.bundles: dict[str, list[str]] = {}
        self.receiving: Callable[[str], Awaitable[Any]] = _at_once
        self.subscriptions = 0
        self.followers = 0
        self.incarnation = f"{hostname}-{time.time_ns()}"
        self._ports = itertools.count(first_port)
        self._attempts: dict[Key, _Attempt] = {}
        self._fences: dict[tuple[str, int], int] = {}  # newest attempt that is over or was stopped, by trial
        self._subscriptions: dict[str, _Subscription] = {}
        self._server: grpc.aio.Server | None = None
        self.address = ""

    # --- life -------------------------------------------------------------------------------

    async def serve(self, address: str) -> str:
        """Serves at ``unix:/path`` or ``127.0.0.1:0``; gives the address with the actual port."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        await self._server.start()
        return self.address

    async def close(self) -> None:
        """Ends the server and every scripted task, as a host that is gone."""
        for subscription in list(self._subscriptions.values()):
            subscription.close()
        if self._server is not None:
            await self._server.stop(None)
        for attempt in self._attempts.values():
            if attempt.lease_timer:
                attempt.lease_timer.cancel()
            for task in attempt.running:
                task.cancel()
            await asyncio.gather(*attempt.running, return_exceptions=True)

    def cut_streams(self) -> None:
        """Ends every event stream, as a broken connection would; nothing is lost."""
        for subscription in list(self._subscriptions.values()):
            subscription.close()

    def active_attempts(self) -> list[Key]:
        """Attempts that hold a lease."""
        return [k for k, a in self._attempts.items() if not a.ended]

    def known_attempts(self) -> list[Key]:
        """Attempts that are not forgotten: active, or with events that are not acknowledged."""
        return list(self._attempts)

    # --- unary calls ------------------------------------------------------------------------

    async def GetInventory(self, request: Any, context: Any) -> agent_pb2.GetInventoryResponse:  # noqa: N802
        self.heartbeats.append(request)
        if self.hangs:
            await asyncio.Event().wait()
        uptime = duration_pb2.Duration()
        uptime.FromNanoseconds(time.monotonic_ns() - self._begun)
        answer = agent_pb2.GetInventoryResponse(
            hostname=self.hostname, nhop_version=VERSION, python_version="3.11.7",
            tensorflow_version="2.21.0", cpu_cores=self.slots, slots=self.slots, free_slots=self._free(),
            task_address="127.0.0.1", free_disk_bytes=1 << 40, time=_now(),
            incarnation=self.incarnation, memory_bytes=1 << 34, gpus=self._gpus(),
            uptime=uptime, first_port=20000, last_port=29999,
        )  # fmt: skip
        for field, value in self.facts.items():
            setattr(answer, field, value)
        return answer

    async def OpenProbe(self, request: Any, context: Any) -> agent_pb2.OpenProbeResponse:  # noqa: N802
        self.calls.append(("OpenProbe", request))
        if self.ports_taken:
            info = error_details_pb2.ErrorInfo(reason="PORTS", domain="nhop")
            await _refuse(context, code_pb2.RESOURCE_EXHAUSTED, "no port is free", info)
        return agent_pb2.OpenProbeResponse(address="127.0.0.1:20000", token=self.incarnation)

    async def CheckReach(self, request: Any, context: Any) -> agent_pb2.CheckReachResponse:  # noqa: N802
        """Reaches all but those agents whose incarnation is in ``unreachable``, with the reason."""
        problems = [self.unreachable.get(probe.token, "") for probe in request.probes]
        return agent_pb2.CheckReachResponse(problems=problems)

    async def PrepareAttempt(self, request: Any, context: Any) -> agent_pb2.PrepareAttemptResponse:  # noqa: N802
        self.calls.append(("PrepareAttempt", request))
        await _check(context, _problems(request.attempt) + _task_problems(request.tasks))
        await self._check_fence(request.attempt, context)
        known = self._attempts.get(key(request.attempt))
        if known is not None:
            if list(known.request.tasks) != list(request.tasks):
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "prepared with other tasks")
            return agent_pb2.PrepareAttemptResponse(leases=[t.lease for t in known.tasks.values()])
        for study, trial, number in self.active_attempts():
            if (study, trial) == (request.attempt.study_id, request.attempt.trial):
                self._stop(self._attempts[study, trial, number], agent_pb2.STOP_REASON_RELEASED)
        wanted = sum(t.slots for t in request.tasks)
        if wanted > self._free():
            await _refuse(
                context,
                code_pb2.RESOURCE_EXHAUSTED,
                f"{wanted} slots wanted, {self._free()} free",
                error_details_pb2.ErrorInfo(reason="SLOTS", domain="nhop"),
            )
        free = {gpu.uuid: gpu.free for gpu in self._gpus() if not gpu.quarantined}
        gpus = [_take_gpus(free, t.gpus) for t in request.tasks]
        if None in gpus:
            await _refuse(
                context,
                code_pb2.RESOURCE_EXHAUSTED,
                f"{sum(t.gpus for t in request.tasks):g} GPUs wanted, {sum(free.values()):g} free",
                error_details_pb2.ErrorInfo(reason="GPUS", domain="nhop"),
            )
        tasks = {}
        for requirement, uuids in zip(request.tasks, gpus, strict=True):
            address = f"127.0.0.1:{next(self._ports)}" if requirement.port else ""
            lease = agent_pb2.TaskLease(task=requirement.task, address=address, gpus=uuids)
            tasks[name(requirement.task)] = _Task(requirement, lease)
        attempt = _Attempt(request.attempt, tasks, request)
        self._attempts[key(request.attempt)] = attempt
        seconds = request.lease_timeout.ToTimedelta().total_seconds() or 30.0
        attempt.lease_timer = asyncio.get_running_loop().call_later(
            seconds, self._stop, attempt, agent_pb2.STOP_REASON_RELEASED
        )
        return agent_pb2.PrepareAttemptResponse(leases=[t.lease for t in tasks.values()])

    async def StartAttempt(self, request: Any, context: Any) -> agent_pb2.StartAttemptResponse:  # noqa: N802
        self.calls.append(("StartAttempt", request))
        training = []
        if not request.HasField("training") or request.training.train_epoch < 1:
            training.append(("training.train_epoch", "must be at least 1"))
        if request.limits.start.ToTimedelta().total_seconds() <= 0:
            training.append(("limits.start", "must be set, and longer than zero"))
        await _check(context, _problems(request.attempt) + training)
        await self._check_fence(request.attempt, context)
        attempt = self._attempts.get(key(request.attempt))
        if attempt is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the attempt is not prepared here")
            raise AssertionError
        if attempt.start is None:
            wanted = [digest for digest in (request.training.code, request.training.data) if digest]
            if any(digest not in self.bundles for digest in wanted):
                info = error_details_pb2.ErrorInfo(reason="BUNDLE", domain="nhop")
                await _refuse(context, code_pb2.NOT_FOUND, "there is no such bundle", info)
            attempt.start = request
            if attempt.lease_timer:
                attempt.lease_timer.cancel()
            for task in sorted(attempt.tasks.values(), key=lambda t: not t.is_ps):
                self._spawn(attempt, self._run(attempt, task))
        return agent_pb2.StartAttemptResponse()

    async def StopAttempt(self, request: Any, context: Any) -> agent_pb2.StopAttemptResponse:  # noqa: N802
        self.calls.append(("StopAttempt", request))
        reason = []
        if request.reason == 0 or request.reason not in agent_pb2.StopReason.values():
            reason.append(("reason", "must be a known reason"))
        await _check(context, _problems(request.attempt) + reason)
        self._fence(request.attempt)
        attempt = self._attempts.get(key(request.attempt))
        if attempt is None or attempt.ended:
            return agent_pb2.StopAttemptResponse(was_active=False)
        self._stop(attempt, request.reason)
        return agent_pb2.StopAttemptResponse(was_active=True)

    async def ReadLog(self, request: Any, context: Any) -> AsyncIterator[agent_pb2.ReadLogResponse]:  # noqa: N802
        await _check(context, _problems(request.attempt))
        attempt = self._attempts.get(key(request.attempt))
        if attempt is None or name(request.task) not in attempt.tasks:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no log of this task is here")
            raise AssertionError
        task = attempt.tasks[name(request.task)]
        place = request.offset if request.offset >= 0 else max(0, len(task.log) + request.offset)
        if request.follow:
            if self.followers >= MAX_FOLLOWERS:
                info = error_details_pb2.ErrorInfo(reason="FOLLOWERS", domain="nhop")
                await _refuse(context, code_pb2.RESOURCE_EXHAUSTED, "too many logs are followed", info)
            self.followers += 1
            try:
                await context.send_initial_metadata((("nhop-accepts", "yes"),))
                async for data in self._follow_log(attempt, task, place):
                    yield agent_pb2.ReadLogResponse(data=data)
            finally:
                self.followers -= 1
        elif task.log[place:]:
            yield agent_pb2.ReadLogResponse(data=task.log[place:])

    async def _follow_log(self, attempt: _Attempt, task: _Task, place: int) -> AsyncIterator[bytes]:
        while True:
            over = task.ended or attempt.ended or key(attempt.id) not in self._attempts
            changed = task.log_changed
            data, place = task.log[place:], max(place, len(task.log))
            if data:
                yield data
            elif over:
                return
            else:
                await changed.wait()

    def say(self, trial: int, text: str, task: str = "worker/0") -> None:
        """The task of the newest attempt of a trial prints ``text``."""
        self._attempts[max(k for k in self._attempts if k[1] == trial)].tasks[task].say(text)

    async def ReadArtifact(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[agent_pb2.ReadArtifactResponse]:
        self.calls.append(("ReadArtifact", request))
        await _check(context, _problems(request.attempt) + _name_problems(request.name))
        attempt = self._attempts.get(key(request.attempt))
        if attempt is None or request.name not in attempt.files:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file is here")
            raise AssertionError
        data = attempt.files[request.name]
        for place in range(0, len(data), 1 << 20):
            await self.reading(request.name)
            yield agent_pb2.ReadArtifactResponse(data=data[place : place + (1 << 20)])

    async def WriteArtifact(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> agent_pb2.WriteArtifactResponse:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("kind") != "header":
            await _check(context, [("header", "must be the first message")])
            raise AssertionError
        header = first.header
        self.calls.append(("WriteArtifact", header))
        name_problems = [] if header.artifact.name == "restore.npz" else [("header.artifact.name", "no")]
        await _check(context, _problems(header.attempt, "header.attempt") + name_problems)
        if self.full:
            info = error_details_pb2.ErrorInfo(reason="DISK", domain="nhop")
            await _refuse(context, code_pb2.RESOURCE_EXHAUSTED, "the disk is full", info)
        await context.send_initial_metadata((("nhop-accepts", "yes"),))
        data = bytearray()
        async for request in request_iterator:
            data += request.data
            if len(data) > header.artifact.size or len(request.data) > 1 << 20:
                await _check(context, [("data", "is too much")])
        if len(data) != header.artifact.size:
            await _check(context, [("data", "is not of the announced size")])
        await self._check_fence(header.attempt, context)
        attempt = self._attempts.get(key(header.attempt))
        if attempt is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the attempt is not prepared here")
            raise AssertionError
        if attempt.start is not None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the attempt was started already")
        attempt.restore = bytes(data)
        return agent_pb2.WriteArtifactResponse()

    async def PutBundle(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> agent_pb2.PutBundleResponse:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("kind") != "header":
            await _check(context, [("header", "must be the first message")])
            raise AssertionError
        digest, size = first.header.digest, first.header.size
        self.calls.append(("PutBundle", first.header))
        if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
            await _check(context, [("header.digest", "must be 64 hexadecimal digits")])
        if size < 1:
            await _check(context, [("header.size", "must be at least 1")])
        if digest in self.bundles:
            await context.send_initial_metadata((("nhop-accepts", "have"),))
            return agent_pb2.PutBundleResponse()
        if self.full:
            info = error_details_pb2.ErrorInfo(reason="DISK", domain="nhop")
            await _refuse(context, code_pb2.RESOURCE_EXHAUSTED, "the disk is full", info)
        await context.send_initial_metadata((("nhop-accepts", "yes"),))
        await self.receiving(digest)
        data = bytearray()
        async for request in request_iterator:
            data += request.data
            if len(data) > size or len(request.data) > 1 << 20:
                await _check(context, [("data", "is too much")])
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            await _check(context, [("data", "is not what was announced")])
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
                names = [member.name for member in tar]
        except (OSError, tarfile.TarError):
            await _check(context, [("data", "is no archive")])
            raise
        if any(name.startswith(("/", "..")) for name in names):
            await _check(context, [("data", "leads out of the folder")])
        self.bundles[digest] = names
        return agent_pb2.PutBundleResponse()

    # --- events -----------------------------------------------------------------------------

    async def StreamEvents(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[agent_pb2.StreamEventsResponse]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("kind") != "subscribe":
            await _check(context, [("subscribe", "must be the first message")])
            raise AssertionError
        study = first.subscribe.study_id
        await _check(context, _study_problems(study, "subscribe.study_id"))
        if study in self._subscriptions:
            self._subscriptions[study].close()
        self._acknowledge(first.subscribe.positions)
        sent = {(key(p.attempt), p.source): p.sequence for p in first.subscribe.positions}
        subscription = _Subscription(sent)
        self.subscriptions += 1
        self._subscriptions[study] = subscription
        reader = asyncio.create_task(self._read_acknowledgements(request_iterator))
        try:
            while not subscription.closed.is_set():
                subscription.wake.clear()
                events = self._events_after(study, subscription.sent)
                if events:
                    yield agent_pb2.StreamEventsResponse(events=events)
                else:
                    await subscription.wake.wait()
            if self._subscriptions.get(study) is not subscription:
                await context.abort(grpc.StatusCode.ABORTED, "replaced by a newer subscription of this study")
        finally:
            reader.cancel()
            if self._subscriptions.get(study) is subscription:
                del self._subscriptions[study]

    async def _read_acknowledgements(self, requests: AsyncIterator[Any]) -> None:
        with contextlib.suppress(grpc.aio.BaseError):
            async for request in requests:
                self._acknowledge(request.acknowledge.positions)

    def _acknowledge(self, positions: Iterable[agent_pb2.Position]) -> None:
        for position in positions:
            attempt = self._attempts.get(key(position.attempt))
            over = attempt is not None and attempt.ended and position.source == "agent"
            if attempt is not None and over and position.sequence >= attempt.numbers["agent"]:
                for task in self._attempts.pop(key(position.attempt)).tasks.values():
                    task.say()

    def _events_after(self, study: str, sent: dict[tuple[Key, str], int]) -> list[agent_pb2.Event]:
        events = []
        for attempt_key, attempt in self._attempts.items():
            if attempt_key[0] != study:
                continue
            for event in attempt.events:
                place = (attempt_key, event.source)
                if event.sequence > sent.get(place, 0) and len(events) < 500:
                    events.append(event)
                    sent[place] = event.sequence
        return events

    def _emit(self, attempt: _Attempt, source: str, **kind: Any) -> None:
        number = attempt.numbers.get(source, 0) + 1
        attempt.numbers[source] = number
        event = agent_pb2.Event(attempt=attempt.id, source=source, sequence=number, time=_now(), **kind)
        attempt.events.append(event)
        if attempt.id.study_id in self._subscriptions:
            self._subscriptions[attempt.id.study_id].wake.set()

    # --- attempts ---------------------------------------------------------------------------

    def _free(self) -> int:
        return self.slots - sum(a.slots for a in self._attempts.values())

    def _gpus(self) -> list[agent_pb2.Gpu]:
        for gpu in self.gpus.values():
            gpu.free = 1.0
        for attempt in self._attempts.values():
            for task in () if attempt.ended else attempt.tasks.values():
                for uuid in task.lease.gpus:
                    self.gpus[uuid].free -= min(task.requirement.gpus, 1.0)
        return list(self.gpus.values())

    def _fence(self, attempt: types_pb2.AttemptId) -> None:
        trial = (attempt.study_id, attempt.trial)
        self._fences[trial] = max(self._fences.get(trial, 0), attempt.attempt)

    async def _check_fence(self, attempt: types_pb2.AttemptId, context: Any) -> None:
        newest = max(
            [self._fences.get((attempt.study_id, attempt.trial), 0)]
            + [n - 1 for s, t, n in self._attempts if (s, t) == (attempt.study_id, attempt.trial)]
        )
        if attempt.attempt <= newest:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the attempt is over or superseded")

    def _spawn(self, attempt: _Attempt, work: Any) -> None:
        task = asyncio.create_task(work)
        attempt.running.add(task)
        task.add_done_callback(attempt.running.discard)

    def _stop(self, attempt: _Attempt, reason: agent_pb2.StopReason) -> None:
        self._fence(attempt.id)
        if attempt.reason is not None or attempt.ended:
            return
        attempt.reason = reason
        if attempt.lease_timer:
            attempt.lease_timer.cancel()
        self._advance(attempt)

    def _advance(self, attempt: _Attempt) -> None:
        """Tells whom it may tell to stop, workers before parameter servers, and notices the end."""
        running = [t for t in attempt.tasks.values() if attempt.start is not None and not t.ended]
        if not running and (attempt.reason is not None or attempt.start is not None):
            attempt.ended = True
            for task in attempt.tasks.values():
                task.say()
            self._fence(attempt.id)
            reason = attempt.reason or agent_pb2.STOP_REASON_FINISHED
            self._emit(attempt, "agent", attempt_ended=agent_pb2.AttemptEnded(reason=reason))
        elif attempt.reason is not None:
            for task in [t for t in running if not t.is_ps] or running:
                task.told.set()

    async def _run(self, attempt: _Attempt, task: _Task) -> None:
        assert attempt.start is not None
        script = self.script(attempt.start, task.id)
        source = name(task.id)
        task.say(f"log of {source}\n" if script.log is None else script.log)
        started = agent_pb2.TaskStarted(task=task.id, pid=100_000 + len(self.calls))
        self._emit(attempt, "agent", task_started=started)
        outcome = await self._live(attempt, task, source, script)
        if task.told.is_set() and script.stops_after:
            await asyncio.sleep(script.stops_after)
        ended = agent_pb2.TaskEnded(task=task.id, outcome=outcome)
        self._emit(attempt, "agent", task_ended=ended)
        task.ended = True
        task.say()
        told = task.told.is_set()
        fatal = outcome.failure.kind if outcome.status == types_pb2.TASK_STATUS_FAILED else None
        if attempt.reason is None and (source == "worker/0" or fatal not in (None, *TOLERATED)):
            done = outcome.status == types_pb2.TASK_STATUS_COMPLETED
            attempt.reason = agent_pb2.STOP_REASON_FINISHED if done else agent_pb2.STOP_REASON_FAILED
        elif attempt.reason is None and task.is_ps and not told:
            attempt.reason = agent_pb2.STOP_REASON_FAILED
        self._advance(attempt)

    async def _live(
        self, attempt: _Attempt, task: _Task, source: str, script: TaskScript
    ) -> types_pb2.TaskOutcome:
        assert attempt.start is not None
        training = attempt.start.training
        limit = attempt.start.limits.start.ToTimedelta().total_seconds()
        if await _told(task, min(script.ready_after, limit)):
            return stopped()
        if script.ready_after > limit:
            message = f"{source} was not ready after {limit:g} s"
            return failed(types_pb2.FAILURE_KIND_START_TIMEOUT, message)
        self._emit(attempt, source, task_ready=agent_pb2.TaskReady())
        values = _values(training.parameters)
        best: float | None = None
        pause = 0.0 if math.isinf(script.runs_for) else script.runs_for / max(1, script.reports)
        step = 0
        for number in range(1, script.reports + 1):
            if await _told(task, pause):
                break
            step = training.train_epoch * number // script.reports
            loss = self.loss(values, step)
            best = loss if best is None else min(best, loss)
            report = types_pb2.Report(step=step, train_loss=loss, time=_now())
            self._emit(attempt, source, report=report)
            saved = number - 1 - script.reports + len(script.checkpoints)
            if 0 <= saved < len(script.checkpoints):
                attempt.files["checkpoint.npz"] = script.checkpoints[saved]
                artifact = types_pb2.Artifact(name="checkpoint.npz", size=len(script.checkpoints[saved]))
                checkpoint = agent_pb2.CheckpointSaved(step=step, artifact=artifact)
                self._emit(attempt, source, checkpoint_saved=checkpoint)
        if not script.reports:
            await _told(task, script.runs_for)
        elif math.isinf(script.runs_for):
            await _any(task.told, *([script.until] if script.until else []))
        outcome = types_pb2.TaskOutcome()
        outcome.CopyFrom(stopped() if task.told.is_set() else script.ends_with)
        outcome.step = step
        if best is not None and not outcome.HasField("train_loss"):
            outcome.train_loss = best
            if source == "worker/0" and not outcome.HasField("val_loss"):
                outcome.val_loss = best
        if not task.told.is_set():
            attempt.files |= script.artifacts
            for title, content in script.artifacts.items():
                outcome.artifacts.add(name=title, size=len(content))
        if attempt.restore is not None and source == "worker/0":
            outcome.notes.append(f"went on from {attempt.restore.decode()}")
        return outcome


def _take_gpus(free: dict[str, float], amount: float) -> list[str] | None:
    """UUIDs for a task, taken out of ``free``; None where they are not there."""
    share = min(amount, 1.0)
    uuids = [uuid for uuid in sorted(free, key=free.__getitem__) if free[uuid] >= share - 1e-6]
    taken = uuids[: math.ceil(amount)] if amount else []
    for uuid in taken:
        free[uuid] -= share
    return taken if len(taken) == math.ceil(amount) else None


class _Subscription:
    def __init__(self, sent: dict[tuple[Key, str], int]) -> None:
        self.sent = sent
        self.wake = asyncio.Event()
        self.closed = asyncio.Event()

    def close(self) -> None:
        self.closed.set()
        self.wake.set()


async def _at_once(name: str) -> None:
    """Waits for nothing."""


async def _told(task: _Task, seconds: float) -> bool:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task.told.wait(), None if math.isinf(seconds) else seconds)
    return task.told.is_set()


async def _any(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _now() -> timestamp_pb2.Timestamp:
    now = timestamp_pb2.Timestamp()
    now.FromNanoseconds(time.time_ns())
    return now


def _values(parameters: types_pb2.Parameters) -> dict[str, Any]:
    return dict(json_format.MessageToDict(parameters.values))


# --- validation -----------------------------------------------------------------------------

Problems = list[tuple[str, str]]


def _study_problems(study: str, field: str) -> Problems:
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", study):
        return []
    return [(field, "must be 1 to 64 of [a-z0-9-], a letter or digit first")]


def _name_problems(name: str) -> Problems:
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        return []
    return [("name", "must be 1 to 64 of [a-z0-9._-], a letter or digit first")]


def _problems(attempt: types_pb2.AttemptId, place: str = "attempt") -> Problems:
    problems = _study_problems(attempt.study_id, f"{place}.study_id")
    problems += [
        (f"{place}.{field}", "must be at least 1")
        for field in ("trial", "attempt")
        if getattr(attempt, field) < 1
    ]
    return problems


def _task_problems(tasks: Any) -> Problems:
    if not tasks:
        return [("tasks", "must name at least one task")]
    problems: Problems = []
    seen: set[str] = set()
    for number, requirement in enumerate(tasks):
        task = requirement.task
        if task.role not in (types_pb2.TASK_ROLE_PS, types_pb2.TASK_ROLE_WORKER):
            problems.append((f"tasks[{number}].task.role", "must be PS or WORKER"))
        if task.index < 0:
            problems.append((f"tasks[{number}].task.index", "must not be negative"))
        if requirement.slots < 0:
            problems.append((f"tasks[{number}].slots", "must not be negative"))
        gpus = requirement.gpus
        if not (gpus == 0 or 0.001 <= gpus < 1 or (gpus >= 1 and gpus.is_integer())):
            problems.append((f"tasks[{number}].gpus", "must be a whole number, or a share"))
        elif gpus and task.role == types_pb2.TASK_ROLE_PS:
            problems.append((f"tasks[{number}].gpus", "a parameter server takes no GPU"))
        if name(task) in seen:
            problems.append((f"tasks[{number}].task", f"{name(task)} is named twice"))
        seen.add(name(task))
    return problems


async def _check(context: Any, problems: Problems) -> None:
    if problems:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in problems
        ]
        text = "; ".join(f"{field}: {description}" for field, description in problems)
        detail = error_details_pb2.BadRequest(field_violations=violations)
        await _refuse(context, code_pb2.INVALID_ARGUMENT, text, detail)


async def _refuse(context: Any, code: int, message: str, detail: Any) -> None:
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status))
