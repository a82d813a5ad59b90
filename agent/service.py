"""AgentService over gRPC: checks requests, asks the agent, answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable
from importlib import metadata
from typing import Any, TypeVar

import grpc
from google.rpc import code_pb2, error_details_pb2

from agent import convert, convert_artifacts, convert_bundles
from agent.archive import ArchiveError
from agent.artifacts import CHUNK_BYTES, GivenFile, NoArtifactError, open_artifact
from agent.bundles import NoBundleError
from agent.checks import InvalidRequestError
from agent.config import join_port, usable_cores
from agent.domain import StreamEvent
from agent.fences import AttemptOverError
from agent.leases import NotEnoughError
from agent.logs import LogReader
from agent.probes import check_all
from agent.runtime import Agent, NotPreparedError, ShuttingDownError
from agent.streams import Closed, Subscription
from nhop._refusals import ERROR_DOMAIN, abort, abort_invalid
from nhop.v1 import agent_pb2, agent_pb2_grpc

ACCEPTS = "nhop-accepts"
BATCH_BYTES = 1 << 20
FIRST_SECONDS = 30.0
"""How long the first message of a stream is waited for."""
STALL_SECONDS = 120.0
"""How long each further piece of a file is waited for; who has gone away is noticed sooner."""
Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """One agent's service."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._version = ""
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a checkout
            self._version = metadata.version("nhop")

    async def GetInventory(  # noqa: N802
        self, request: agent_pb2.GetInventoryRequest, context: Context
    ) -> agent_pb2.GetInventoryResponse:
        """What the host has, and what is leased now."""
        agent = self._agent
        async with _refusals(context):
            agent.heard(*convert.sign_of_life(request))
            disk = os.statvfs(agent.config.state_dir)
        tls = agent.config.tls
        return agent_pb2.GetInventoryResponse(
            hostname=socket.gethostname(),
            nhop_version=self._version,
            python_version=agent.zygote.python_version,
            tensorflow_version=agent.zygote.tensorflow_version,
            cpu_cores=usable_cores(),
            slots=agent.leases.slots,
            free_slots=max(0, agent.leases.free_slots),
            task_address=self._agent.config.task_host,
            free_disk_bytes=disk.f_bavail * disk.f_frsize,
            time=convert.timestamp(time.time()),
            incarnation=agent.incarnation,
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            gpus=[convert.gpu_to_pb(gpu) for gpu in agent.leases.gpus],
            uptime=convert.duration(agent.uptime),
            first_port=agent.config.ports[0],
            last_port=agent.config.ports[1],
            certificate_end_time=None if tls is None else convert.timestamp(tls.files.end.timestamp()),
            certificate_ends_soon=tls is not None and tls.ends_soon,
        )

    async def PrepareAttempt(  # noqa: N802
        self, request: agent_pb2.PrepareAttemptRequest, context: Context
    ) -> agent_pb2.PrepareAttemptResponse:
        """Leases slots, GPUs and ports, all of them or none."""
        async with _refusals(context):
            attempt, requirements, timeout = convert.prepare_request(request)
            leases = await self._agent.gpus.patiently(
                lambda: self._agent.prepare(attempt, requirements, timeout)
            )
        return agent_pb2.PrepareAttemptResponse(
            leases=[convert.lease_to_pb(lease, self._agent.config.task_host) for lease in leases]
        )

    async def StartAttempt(  # noqa: N802
        self, request: agent_pb2.StartAttemptRequest, context: Context
    ) -> agent_pb2.StartAttemptResponse:
        """Starts the prepared tasks."""
        async with _refusals(context):
            attempt, spec, limits = convert.start_request(request)
            known = self._agent.attempts.get(attempt)
            if known is not None:
                convert.check_cluster(spec, known.manifest.leases, self._agent.config.task_host)
            self._agent.begin(attempt, spec, limits, convert_bundles.wanted(request.training))
        return agent_pb2.StartAttemptResponse()

    async def StopAttempt(  # noqa: N802
        self, request: agent_pb2.StopAttemptRequest, context: Context
    ) -> agent_pb2.StopAttemptResponse:
        """Ends what is left of the attempt."""
        async with _refusals(context):
            attempt, reason = convert.stop_request(request)
            active = self._agent.stop(attempt, reason)
        return agent_pb2.StopAttemptResponse(was_active=active)

    async def StreamEvents(  # noqa: N802
        self, request_iterator: AsyncIterator[agent_pb2.StreamEventsRequest], context: Context
    ) -> AsyncIterator[agent_pb2.StreamEventsResponse]:
        """The events of a study, from where the receiver is."""
        async with _refusals(context):
            study, positions = convert.subscribe_request(_subscribe(await _first(request_iterator)))
        subscription = self._agent.subscribe(study, positions)
        acknowledgements = asyncio.create_task(self._acknowledge(request_iterator, subscription))
        try:
            while events := await subscription.next_batch():
                for message in _messages(events):
                    yield message
        finally:
            self._agent.subscribers.remove(subscription)
            acknowledgements.cancel()
            (error,) = await asyncio.gather(acknowledgements, return_exceptions=True)
        if isinstance(error, InvalidRequestError):
            await abort_invalid(context, str(error), error.problems)
        if isinstance(error, Exception):
            raise error
        if subscription.closed is Closed.REPLACED:
            await context.abort(grpc.StatusCode.ABORTED, subscription.closed.value)
        elif subscription.closed is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, subscription.closed.value)

    async def _acknowledge(
        self, requests: AsyncIterator[agent_pb2.StreamEventsRequest], subscription: Subscription
    ) -> None:
        """Takes acknowledgements until the receiver sends no more; a wrong one ends the stream."""
        try:
            async for request in requests:
                if request.WhichOneof("kind") != "acknowledge":
                    raise InvalidRequestError([("kind", "must be acknowledge from the second on")])
                positions = convert.acknowledge_request(request.acknowledge, subscription.study_id)
                self._agent.acknowledge(subscription.study_id, positions)
        except Exception:
            subscription.close(Closed.INVALID)
            raise

    async def ReadLog(  # noqa: N802
        self, request: agent_pb2.ReadLogRequest, context: Context
    ) -> AsyncIterator[agent_pb2.ReadLogResponse]:
        """A task's log in chunks, as it is or until the task has ended."""
        async with _refusals(context):
            attempt_id, task, offset = convert.read_log_request(request)
            attempt = self._agent.attempts.get(attempt_id)
            if attempt is None or task not in [lease.task for lease in attempt.manifest.leases]:
                raise NotPreparedError(f"no log of {task} of {attempt_id} is here")
            if request.follow:
                with self._agent.followers.add(attempt, task, offset) as follower:
                    await context.send_initial_metadata(((ACCEPTS, "yes"),))
                    async for data in follower.chunks():
                        yield agent_pb2.ReadLogResponse(data=data)
                return
            with contextlib.closing(LogReader(attempt.directory, task, offset)) as log:
                end = log.size
                while data := await log.read(end):
                    yield agent_pb2.ReadLogResponse(data=data)

    async def ReadArtifact(  # noqa: N802
        self, request: agent_pb2.ReadArtifactRequest, context: Context
    ) -> AsyncIterator[agent_pb2.ReadArtifactResponse]:
        """A file that a task left, in chunks."""
        async with _refusals(context):
            attempt_id, name = convert_artifacts.read_artifact_request(request)
            attempt = self._agent.attempts.get(attempt_id)
            if attempt is None:
                raise NoArtifactError(f"{attempt_id} is not known here")
            with open_artifact(attempt.directory.path, name) as file:
                while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield agent_pb2.ReadArtifactResponse(data=data)

    async def WriteArtifact(  # noqa: N802
        self, request_iterator: AsyncIterator[agent_pb2.WriteArtifactRequest], context: Context
    ) -> agent_pb2.WriteArtifactResponse:
        """Keeps a file for an attempt that is about to be started."""
        async with _refusals(context):
            attempt_id, name, size = convert_artifacts.artifact_header(await _first(request_iterator))
            attempt = self._agent.prepared(attempt_id)
            with GivenFile(attempt.directory.path, name, size) as file:
                await context.send_initial_metadata(((ACCEPTS, "yes"),))
                while (request := await _next(request_iterator, STALL_SECONDS)) is not None:
                    data = convert_artifacts.artifact_piece(request, file.missing)
                    await asyncio.to_thread(file.write, data)
                convert_artifacts.check_whole(file.missing)
                # It may have been started or released meanwhile.
                self._agent.prepared(attempt_id)
                file.put_in_place()
        return agent_pb2.WriteArtifactResponse()

    async def OpenProbe(  # noqa: N802
        self, request: agent_pb2.OpenProbeRequest, context: Context
    ) -> agent_pb2.OpenProbeResponse:
        """Opens a port that answers with a token."""
        async with _refusals(context):
            probe = await self._agent.probes.open()
        address = join_port(self._agent.config.task_host, probe.port)
        return agent_pb2.OpenProbeResponse(address=address, token=probe.token)

    async def CheckReach(  # noqa: N802
        self, request: agent_pb2.CheckReachRequest, context: Context
    ) -> agent_pb2.CheckReachResponse:
        """Tries to reach probes of other agents."""
        async with _refusals(context):
            targets = convert.probes_request(request)
        return agent_pb2.CheckReachResponse(problems=await check_all(targets))

    async def PutBundle(  # noqa: N802
        self, request_iterator: AsyncIterator[agent_pb2.PutBundleRequest], context: Context
    ) -> agent_pb2.PutBundleResponse:
        """Keeps a folder of code or data for attempts to come."""
        async with _refusals(context):
            digest, size = convert_bundles.bundle_header(await _first(request_iterator))
            bundles = self._agent.bundles
            if bundles.has(digest):
                await context.send_initial_metadata(((ACCEPTS, "have"),))
                return agent_pb2.PutBundleResponse()
            async with bundles.receive(digest, size) as file:
                await context.send_initial_metadata(((ACCEPTS, "yes"),))
                while (request := await _next(request_iterator, STALL_SECONDS)) is not None:
                    data = convert_bundles.bundle_piece(request, file.missing)
                    await asyncio.to_thread(file.write, data)
                convert_bundles.check_whole(file.missing)
                await bundles.keep(file, digest)
        return agent_pb2.PutBundleResponse()


class _StalledError(Exception):
    """The next message of a stream does not come."""


async def _next(requests: AsyncIterator[Request], seconds: float) -> Request | None:
    """The next request of a stream; None at its end."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(requests, None)
    except TimeoutError:
        raise _StalledError(f"nothing came for {seconds:g} s: send it again") from None


async def _first(requests: AsyncIterator[Request]) -> Request | None:
    """The first request of a stream; None where none comes."""
    try:
        return await _next(requests, FIRST_SECONDS)
    except _StalledError:
        return None


def _subscribe(request: agent_pb2.StreamEventsRequest | None) -> agent_pb2.Subscribe:
    if request is None or request.WhichOneof("kind") != "subscribe":
        raise InvalidRequestError([("subscribe", "must be the first message")])
    return request.subscribe


def _messages(events: Iterable[StreamEvent]) -> Iterable[agent_pb2.StreamEventsResponse]:
    """As few messages as there can be without one that is too large."""
    message = agent_pb2.StreamEventsResponse()
    size = 0
    for event in events:
        converted = convert.event_to_pb(event)
        more = converted.ByteSize()
        if message.events and size + more > BATCH_BYTES:
            yield message
            message = agent_pb2.StreamEventsResponse()
            size = 0
        message.events.append(converted)
        size += more
    yield message


@contextlib.asynccontextmanager
async def _refusals(context: Context) -> AsyncIterator[None]:
    """Turns what the agent refuses into the status that the protocol promises."""
    try:
        yield
    except InvalidRequestError as error:
        await abort_invalid(context, str(error), error.problems)
    except NotEnoughError as error:
        info = error_details_pb2.ErrorInfo(
            reason=error.resource,
            domain=ERROR_DOMAIN,
            metadata={"wanted": f"{error.wanted:g}", "free": f"{error.free:g}"},
        )
        await abort(context, code_pb2.RESOURCE_EXHAUSTED, str(error), info)
    except ArchiveError as error:
        await abort_invalid(context, f"data: {error}", [("data", str(error))])
    except NoBundleError as error:
        info = error_details_pb2.ErrorInfo(reason="BUNDLE", domain=ERROR_DOMAIN)
        await abort(context, code_pb2.NOT_FOUND, str(error), info)
    except _StalledError as error:
        await context.abort(grpc.StatusCode.ABORTED, str(error))
    except AttemptOverError as error:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except (NotPreparedError, NoArtifactError) as error:
        await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    except ShuttingDownError as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except OSError as error:
        await context.abort(grpc.StatusCode.INTERNAL, f"a file of the agent cannot be used: {error}")
