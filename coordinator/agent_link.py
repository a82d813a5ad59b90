"""The coordinator's side of one agent: one channel, commands with deadlines, a heartbeat.

Every command ends in an event, failures included.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from coordinator import convert
from coordinator import events as ev
from coordinator.domain import Failure, StudySpec
from coordinator.hosts import AgentAddress, Inventory
from coordinator.instructions import CheckAttempt, Command, PrepareAttempt, StartAttempt, StopAttempt
from coordinator.link_errors import (
    CLOSED,
    BundleMissingError,
    HostUnreachableError,
    are_we_cancelled,
    closed,
    explain,
    failure,
)
from coordinator.patience import Patience
from coordinator.transfers import Transfers
from nhop.security.client import ClientTls
from nhop.v1 import agent_pb2, agent_pb2_grpc
from nhop_models.contract import FailureKind

Response = TypeVar("Response")

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)
CALLS_AT_ONCE = 100
FORMER_SECONDS = 900.0
"""How long calls on the connection of an earlier certificate may go on; streams then begin anew."""

PROBE_LIMIT = 5.0
REACH_LIMIT = 30.0
RETRY_PAUSE = 0.1
SLOW_ANSWER = 1.0
"""Seconds for the answer to a heartbeat, at least: a host that trains is busy."""


class AgentLink:
    """One agent. ``name`` is what its host is called everywhere; ``private``: it lives and dies with us.

    ``transfers`` are its logs and files. ``tls``: None for a connection without.
    """

    def __init__(
        self,
        address: AgentAddress,
        patience: Patience | None = None,
        *,
        private: bool = False,
        tls: ClientTls | None = None,
    ) -> None:
        self.address = replace(address, tls=tls is not None)
        self._tls = tls
        self.name = address.name
        # What a coordinator starts for itself ends with it.
        self._private = private
        self._patience = patience or Patience()
        self._channel = self._dial()
        self._former: dict[grpc.aio.Channel, asyncio.Task[None]] = {}
        self.stub = agent_pb2_grpc.AgentServiceStub(self._channel)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self.transfers = Transfers(self.address, self.stub, self._patience.command)
        self._answer: Inventory | None = None
        self.answers = True
        """Whether the agent gave an answer when it was last asked what it has or reaches."""
        self._heard = asyncio.get_running_loop().time()
        self._studies: set[str] = set()
        self._unused = asyncio.Event()
        self._unused.set()

    async def close(self) -> None:
        """Ends every call and the connection."""
        former, self._former = self._former, {}
        for closing in former.values():
            closing.cancel()
        await asyncio.gather(*(channel.close(None) for channel in (self._channel, *former)))

    def renew(self) -> None:
        """Makes new calls on a new connection, with our newest certificate; calls under way go on."""
        former, self._channel = self._channel, self._dial()
        self.stub = agent_pb2_grpc.AgentServiceStub(self._channel)
        self.transfers.stub = self.stub
        self._former[former] = asyncio.create_task(self._leave(former))

    def _dial(self) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(self.address.target, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.address.target, self._tls.credentials(), options=CHANNEL_OPTIONS)

    async def _leave(self, channel: grpc.aio.Channel) -> None:
        """Ends a former connection, once the calls that it had have ended, or were long enough."""
        await asyncio.sleep(FORMER_SECONDS)
        del self._former[channel]
        await channel.close(None)

    @property
    def incarnation(self) -> str:
        """Of the agent, as it was last heard; another one after it was started again."""
        return self._answer.incarnation if self._answer is not None else ""

    def follow(self, study_id: str) -> None:
        """The study, by the name that agents know it by, may run here from now on."""
        self._studies.add(study_id)
        self._unused.clear()

    def unfollow(self, study_id: str) -> None:
        """Nothing of the study is here any more."""
        self._studies.discard(study_id)
        if not self._studies:
            self._unused.set()

    @property
    def in_use(self) -> bool:
        """Whether a study may have something here."""
        return bool(self._studies)

    async def unused(self) -> None:
        """Waits until no study needs this host."""
        await self._unused.wait()

    async def inventory(self, timeout: float = 5.0, *, wait: bool = False) -> Inventory:
        """What the host has; raises HostUnreachableError. ``wait``: for an agent that is still starting."""
        request = convert.sign_of_life_to_pb(self._studies, self._answer)
        sent = time.time()
        message = await self._ask(self.stub.GetInventory, request, timeout=timeout, wait_for_ready=wait)
        inventory = convert.inventory_from_pb(message, (sent + time.time()) / 2)
        self._heard = asyncio.get_running_loop().time()
        # The newest: an answer may overtake another one.
        if (
            self._answer is None
            or inventory.incarnation != self._answer.incarnation
            or inventory.uptime > self._answer.uptime
        ):
            self._answer = inventory
        return inventory

    # --- whether hosts reach each other -------------------------------------------------------

    async def open_probe(self) -> tuple[str, str] | None:
        """Address and token of a port of this host that other hosts are to reach; HostUnreachableError.

        None where all its ports are in use: nothing can be tried.
        """
        try:
            response = await self._ask(self.stub.OpenProbe, agent_pb2.OpenProbeRequest(), timeout=PROBE_LIMIT)
        except HostUnreachableError as error:
            if _is_full(error.__cause__):
                return None
            raise
        return response.address, response.token

    async def reach(self, probes: Sequence[tuple[str, str]]) -> list[str]:
        """Why this host does not reach each of the probes, empty where it does; HostUnreachableError."""
        request = agent_pb2.CheckReachRequest(
            probes=[agent_pb2.OpenProbeResponse(address=address, token=token) for address, token in probes]
        )
        response = await self._ask(self.stub.CheckReach, request, timeout=REACH_LIMIT)
        return list(response.problems)

    async def _ask(
        self, method: Callable[..., Awaitable[Response]], request: Any, **options: Any
    ) -> Response:
        """The answer to one call; raises HostUnreachableError."""
        try:
            response = await method(request, **options)
            self.answers = True
            return response
        except grpc.aio.AioRpcError as error:
            self.answers = _is_full(error)
            raise HostUnreachableError(explain(self.address, error)) from error
        except grpc.aio.UsageError as error:
            raise HostUnreachableError(CLOSED) from error
        except asyncio.CancelledError:
            if are_we_cancelled():
                raise
            raise HostUnreachableError(CLOSED) from None

    # --- commands -----------------------------------------------------------------------------

    async def execute(self, command: Command, spec: StudySpec) -> ev.AttemptEvent:
        """Does what the machine wants; the outcome is an event in any case but one.

        Raises BundleMissingError where the agent does not have a bundle that a StartAttempt needs.
        """
        match command:
            case PrepareAttempt():
                return await self._prepare(command, spec)
            case StartAttempt():
                return await self._start(command, spec)
            case StopAttempt():
                return await self._stop(command)
            case CheckAttempt():
                return await self._check(command)

    async def _prepare(self, command: PrepareAttempt, spec: StudySpec) -> ev.AttemptEvent:
        attempt, host = command.attempt, command.host
        try:
            request = convert.prepare_to_pb(command, spec.cluster.gpus_per_worker)
            response = await self._call(self.stub.PrepareAttempt, request, self._patience.prepare)
            addresses = convert.addresses_from_pb(response)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return ev.PrepareRefused(attempt, host, error.details() or "no free slots")
            return ev.PrepareFailed(attempt, host, failure(self.address, error))
        except convert.ProtocolError as error:
            return ev.PrepareFailed(attempt, host, Failure(FailureKind.INTERNAL, f"{host}: {error}"))
        missing = [str(task) for task in command.tasks if command.ports and task not in addresses]
        if missing:
            message = f"{host} leased no port for {', '.join(missing)}"
            return ev.PrepareFailed(attempt, host, Failure(FailureKind.INTERNAL, message))
        return ev.PrepareSucceeded(attempt, host, addresses)

    async def _start(self, command: StartAttempt, spec: StudySpec) -> ev.AttemptEvent:
        cluster = spec.cluster
        try:
            silence = None if self._private else self._patience.silence(spec.limits)
            request = convert.start_to_pb(
                command, spec.training, spec.limits, cluster.ps, cluster.workers, silence
            )
            await self._call(self.stub.StartAttempt, request)
        except grpc.aio.AioRpcError as error:
            if convert.misses_bundle(error):
                raise BundleMissingError from error
            return ev.StartFailed(command.attempt, command.host, failure(self.address, error))
        return ev.StartSucceeded(command.attempt, command.host)

    async def _stop(self, command: StopAttempt) -> ev.AttemptEvent:
        try:
            response = await self._call(self.stub.StopAttempt, convert.stop_to_pb(command))
        except grpc.aio.AioRpcError as error:
            return ev.StopFailed(command.attempt, command.host, failure(self.address, error))
        return ev.StopAnswered(command.attempt, command.host, response.was_active)

    async def _check(self, command: CheckAttempt) -> ev.AttemptEvent:
        request = agent_pb2.ReadLogRequest(
            attempt=convert.attempt_to_agent(command.attempt),
            task=convert.task_to_pb(command.task),
            offset=-1,
        )
        known = True
        try:
            async for _ in self.stub.ReadLog(request, timeout=self._patience.command):
                pass
        except grpc.aio.AioRpcError as error:
            # Any other failure says nothing: should the host be gone, the heartbeat notices.
            known = error.code() is not grpc.StatusCode.NOT_FOUND
        except grpc.aio.UsageError:
            pass  # the host has left: whoever waits for it knows
        return ev.AttemptChecked(command.attempt, command.host, known)

    async def _call(
        self, method: Callable[..., Awaitable[Response]], request: Any, limit: float | None = None
    ) -> Response:
        """One call within its deadline; only UNAVAILABLE is tried again, all calls are idempotent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (limit or self._patience.command)
        async with self._calls:
            while True:
                try:
                    response = await method(request, timeout=max(deadline - loop.time(), 0.001))
                    self._heard = loop.time()
                    return response
                except grpc.aio.AioRpcError as error:
                    late = loop.time() + RETRY_PAUSE >= deadline
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or late:
                        raise
                except grpc.aio.UsageError as error:
                    raise closed() from error
                await asyncio.sleep(RETRY_PAUSE)

    # --- heartbeat ----------------------------------------------------------------------------

    async def watch(self) -> AsyncGenerator[ev.HostEvent]:
        """Says when the host is silent or lost, when it is back, and when its agent was started again.

        A heartbeat of our own, since an agent whose event loop hangs still answers pings.
        """
        loop = asyncio.get_running_loop()
        beat = self._patience.heartbeat
        silent_now = lost = False
        incarnation = self.incarnation
        # Each at its own time: those of a thousand agents at once would hold everything else up.
        await asyncio.sleep(beat * zlib.crc32(self.name.encode()) / 2**32)
        while True:
            await asyncio.sleep(beat)
            try:
                inventory = await self.inventory(timeout=max(beat, SLOW_ANSWER))
            except HostUnreachableError as error:
                silent = loop.time() - self._heard
                if not silent_now:
                    silent_now = True
                    yield ev.HostSilent(self.name)
                if not lost and silent >= self._patience.lost:
                    lost = True
                    yield ev.HostLost(self.name, f"no answer for {silent:.0f} s ({error})")
                continue
            if lost:
                yield ev.HostFound(self.name)
            elif silent_now:
                yield ev.HostHeard(self.name)
            silent_now = lost = False
            if incarnation and inventory.incarnation != incarnation:
                yield ev.HostRestarted(self.name)
            incarnation = inventory.incarnation


def _is_full(error: BaseException | None) -> bool:
    """Whether it is the answer of an agent that has no more of something."""
    return isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
