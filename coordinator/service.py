"""StudyService over gRPC, and the server that keeps serving it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import grpc
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator import convert
from coordinator.bundles import Bundles, pack
from coordinator.config import StudyConfig, load
from coordinator.convert_study import study_to_pb, trial_to_pb, update_to_pb
from coordinator.directory import make_folder, remove_empty
from coordinator.domain import Notice
from coordinator.errors import ConfigError, HostsError, NhopError, Problem, UsageError
from coordinator.fleet import Fleet
from coordinator.folders import PackError
from coordinator.hosts import AgentAddress, HostPolicy, parse_address
from coordinator.manager import (
    ManagedStudy,
    ManagerClosedError,
    OneStudyError,
    StudyExistsError,
    StudyManager,
)
from coordinator.preflight import Preflight
from coordinator.private_agent import PrivateAgent, usable_cores
from coordinator.runtime import LAST_MOMENT
from coordinator.sockets import MAX_SOCKET_PATH
from coordinator.task_logs import LogHostError, NoLogError, parse_task, read_task_log
from coordinator.waiting import StopSignal, unless_stopped
from nhop._decoding import Decoding
from nhop._health import Health
from nhop._listening import bind_error, is_local, is_served
from nhop._refusals import ERROR_DOMAIN, abort, abort_invalid, cut
from nhop.security.client import ClientTls
from nhop.security.gate import EVERY_ROLE, Gate
from nhop.security.handshakes import HandshakeLog
from nhop.security.identity import Role
from nhop.security.server import LIMITS, Trusted, server_credentials
from nhop.v1 import study_pb2, study_pb2_grpc

HOST_UNREACHABLE = "HOST_UNREACHABLE"
"""Reason in the ErrorInfo of an UNAVAILABLE that is not the coordinator's own."""

SERVICE = study_pb2.DESCRIPTOR.services_by_name["StudyService"].full_name
ROLES = {
    SERVICE: frozenset({Role.CLIENT}),
    health.SERVICE_NAME: EVERY_ROLE,
    reflection.SERVICE_NAME: EVERY_ROLE,
}
"""Whose certificates may call what."""

PAGE_LIMIT = 1000
PAGE_BYTES = 2 << 20
"""Where a page of trials ends early: clients refuse messages of more than 4 MiB unless told otherwise."""

LOG_READERS = 100
"""Logs that clients read at once; agents have a limit of their own."""

PRIVATE_SLOTS = 64
"""Workers of one trial that a served coordinator's private agent can hold; cores limit what runs at once."""

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
ENDING = "the coordinator ends"

Context = grpc.aio.ServicerContext[Any, Any]


class Studies(Protocol):
    """What the service needs of those who hold studies: StudyManager, and SingleStudy."""

    remote: bool
    runs: Path

    @property
    def studies(self) -> Mapping[str, ManagedStudy]:
        """By their ids, oldest first."""

    def submit(self, config: StudyConfig, study_id: str = "", bundles: Bundles | None = None) -> ManagedStudy:
        """As StudyManager; OneStudyError where no other study is taken."""

    def stop(self, study_id: str, reason: str) -> None:
        """As StudyManager."""


class StudyService(study_pb2_grpc.StudyServiceServicer):
    """What programs ask of a coordinator."""

    def __init__(self, manager: Studies) -> None:
        self._manager = manager
        self._log_readers = 0

    async def SubmitStudy(  # noqa: N802
        self, request: study_pb2.SubmitStudyRequest, context: Context
    ) -> study_pb2.SubmitStudyResponse:
        """Starts a study."""
        try:
            if request.WhichOneof("config") == "values":
                source: Any = convert.values_from_struct(request.values)
            else:
                source = request.yaml
            config = await asyncio.to_thread(load, source, name="request", remote=self._manager.remote)
            managed = await self._submit(config, request.study_id)
        except ConfigError as error:
            await _refuse(context, error)
        except StudyExistsError as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, cut(str(error)))
        except (HostsError, OneStudyError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, cut(str(error)))
        except ManagerClosedError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except NhopError as error:
            await context.abort(grpc.StatusCode.INTERNAL, cut(str(error)))
        return study_pb2.SubmitStudyResponse(study=_study(managed))

    async def GetStudy(  # noqa: N802
        self, request: study_pb2.GetStudyRequest, context: Context
    ) -> study_pb2.GetStudyResponse:
        """The state of one study."""
        return study_pb2.GetStudyResponse(study=_study(await self._find(request.study_id, context)))

    async def ListStudies(  # noqa: N802
        self, request: study_pb2.ListStudiesRequest, context: Context
    ) -> study_pb2.ListStudiesResponse:
        """All studies, oldest first."""
        return study_pb2.ListStudiesResponse(studies=map(_study, self._manager.studies.values()))

    async def WatchStudy(  # noqa: N802
        self, request: study_pb2.WatchStudyRequest, context: Context
    ) -> AsyncIterator[study_pb2.WatchStudyResponse]:
        """What happens in a study until it ends."""
        managed = await self._find(request.study_id, context)
        with managed.watch() as watcher:
            last: object = None
            while (update := await watcher.queue.get()) is not None:
                last = update
                yield update_to_pb(update, managed.output_directory)
        if watcher.too_slow:
            message = "too slow: updates were lost; list the trials, then watch again"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        if last != managed.study:
            yield update_to_pb(managed.study, managed.output_directory)

    async def StopStudy(  # noqa: N802
        self, request: study_pb2.StopStudyRequest, context: Context
    ) -> study_pb2.StopStudyResponse:
        """Stops a study."""
        managed = await self._find(request.study_id, context)
        self._manager.stop(request.study_id, "stopped by a client")
        return study_pb2.StopStudyResponse(study=_study(managed))

    async def ListTrials(  # noqa: N802
        self, request: study_pb2.ListTrialsRequest, context: Context
    ) -> study_pb2.ListTrialsResponse:
        """The trials of a study, by number."""
        managed = await self._find(request.study_id, context)
        for name in ("page_size", "after_trial"):
            if getattr(request, name) < 0:
                await _refuse(context, ConfigError("request", [Problem(name, "must not be negative")]))
        size = min(request.page_size or PAGE_LIMIT, PAGE_LIMIT)
        response = study_pb2.ListTrialsResponse()
        number, length = request.after_trial + 1, 0
        while number in managed.trials and len(response.trials) < size and length < PAGE_BYTES:
            response.trials.append(trial_to_pb(managed.trials[number]))
            length += response.trials[-1].ByteSize()
            number += 1
        if number in managed.trials:
            response.next_after_trial = number - 1
        return response

    async def GetBestTrial(  # noqa: N802
        self, request: study_pb2.GetBestTrialRequest, context: Context
    ) -> study_pb2.GetBestTrialResponse:
        """The best trial so far."""
        managed = await self._find(request.study_id, context)
        if managed.study.best is None:
            message = f"no trial of {request.study_id} has completed yet"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
            raise AssertionError
        return study_pb2.GetBestTrialResponse(trial=trial_to_pb(managed.study.best))

    async def ReadTaskLog(  # noqa: N802
        self, request: study_pb2.ReadTaskLogRequest, context: Context
    ) -> AsyncIterator[study_pb2.ReadTaskLogResponse]:
        """The log of a task of a trial, as it is or until the trial has ended."""
        managed = await self._find(request.study_id or await self._only(context), context)
        try:
            task = parse_task(request.task)
        except ValueError as error:
            await _refuse(context, ConfigError("request", [Problem("task", str(error))]))
        if self._log_readers >= LOG_READERS:
            message = f"{LOG_READERS} logs are read from this coordinator already; end one of these first"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        log = read_task_log(managed, request.trial, task, follow=request.follow)
        self._log_readers += 1
        try:
            async with contextlib.aclosing(log) as parts:
                async for part in parts:
                    attempt = convert.attempt_to_pb(part.attempt)
                    yield study_pb2.ReadTaskLogResponse(attempt=attempt, host=part.host, data=part.data)
        except NoLogError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, cut(str(error)))
        except LogHostError as error:
            info = error_details_pb2.ErrorInfo(reason=HOST_UNREACHABLE, domain=ERROR_DOMAIN)
            await abort(context, code_pb2.UNAVAILABLE, str(error), info)
        except OSError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"a kept log cannot be read: {error}")
        finally:
            self._log_readers -= 1

    async def _only(self, context: Context) -> str:
        """The study that is meant where none is named."""
        studies = self._manager.studies
        if len(studies) != 1:
            there = f"one of {', '.join(studies)}" if studies else "there is none yet"
            await _refuse(context, ConfigError("request", [Problem("study_id", f"name the study: {there}")]))
        return next(iter(studies))

    async def _submit(self, config: StudyConfig, study_id: str) -> ManagedStudy:
        try:
            bundles = await pack(config.sources, self._manager.runs)
        except PackError as error:
            raise ConfigError("request", [Problem(error.key, error.message)]) from error
        try:
            return self._manager.submit(config, study_id, bundles)
        except BaseException:
            bundles.close()
            raise

    async def _find(self, study_id: str, context: Context) -> ManagedStudy:
        managed = self._manager.studies.get(study_id)
        if managed is None:
            message = f"there is no study {cut(study_id, 100)!r} since this coordinator was started"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
            raise AssertionError
        return managed


async def serve(
    address: str,
    *,
    agents: Sequence[AgentAddress] | None,
    runs_directory: Path,
    stop: StopSignal,
    announce: Callable[[str], object],
    policy: HostPolicy | None = None,
    reread: asyncio.Event | None = None,
    show: Callable[[Preflight], None] | None = None,
) -> None:
    """Serves StudyService at ``host:port`` or ``unix:/path`` until ``stop``; the studies then end.

    ``agents`` None: a private agent on this machine. ``announce`` is told once it serves, and what
    becomes of hosts; ``policy``, ``reread`` and ``show`` as for ``run_study``. Raises UsageError where the
    address cannot be used, HostsError where the agents cannot.
    """

    def tell(notice: Notice) -> None:
        announce(notice.message)

    from coordinator.own_service import OwnService  # which needs this module

    policy = policy or HostPolicy()
    try:
        target = parse_address(
            address, refusal=policy.security.refusal, wildcard=not policy.security.insecure
        )
    except ValueError as error:
        raise UsageError(f"--serve {error}") from error
    tls = policy.security.tls_for(target)
    if tls is None and not is_local(target):
        announce(f"warning: --insecure: whoever reaches {target} can run code on this machine and its hosts")
    try:
        made = await asyncio.to_thread(make_folder, runs_directory)
    except OSError as error:
        raise UsageError(
            f"{runs_directory}: no results can be kept there ({error.strerror}); choose another --output"
        ) from error
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(remove_empty, made)
        if policy.security.tls is not None:  # before any connection, ours to hosts among them
            refused = HandshakeLog(announce)
            refused.open()
            stack.callback(refused.close)
        server = _server(target, tls, announce)
        _bind(server, target, tls)
        stack.push_async_callback(server.stop, 0)
        unstarted = stack.enter_context(contextlib.ExitStack())
        if target.startswith("unix:"):  # gRPC takes its socket away only where the server has been started
            unstarted.callback(Path(target.removeprefix("unix:")).unlink, missing_ok=True)
        watching: list[Awaitable[None]] = []
        private: PrivateAgent | None = None
        if agents is None:
            state = runs_directory / f".agent-{os.getpid()}"
            private = PrivateAgent(state, runs_directory / "agent.log", max(PRIVATE_SLOTS, usable_cores()))
            stack.push_async_callback(private.close, LAST_MOMENT)
            link = await private.start()
            stack.push_async_callback(link.close)
            watching.append(private.closed_by_itself())
            hosts = {link.name: private.usable}
            manager = StudyManager({link.name: link}, hosts, runs_directory, usable_cores())
        else:
            fleet = Fleet(agents, policy, tell)
            stack.push_async_callback(fleet.close)
            opened = await unless_stopped(_open(fleet, show, reread), stop)
            if opened is None:
                return
            manager = StudyManager(
                fleet.links, fleet.hosts, runs_directory, remote=True, lost=policy.lost, tell=tell
            )
            watching.append(fleet.follow(manager))
            if reread is not None:
                watching.append(fleet.reread(reread))
        try:
            own = OwnService(manager, private.folder if private is not None else None)
            stack.push_async_callback(own.close, 0)
            manager.address = await own.start()
        except (OSError, NhopError) as error:
            announce(f"warning: `nhop-coordinator logs` needs --serve {target} to find a study: {error}")
        healthy = Health()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        study_pb2_grpc.add_StudyServiceServicer_to_server(StudyService(manager), server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await server.start()
        unstarted.pop_all()
        if target.startswith("unix:"):
            # Who may connect may run code here: the owner alone.
            await asyncio.to_thread(Path(target.removeprefix("unix:")).chmod, 0o600)
        for name in ("", SERVICE):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        announce(
            f"serving {SERVICE} at {target}{'' if tls is None else ' (TLS)'}, results in {runs_directory}"
        )
        if tls is not None and agents is None:  # the fleet does it otherwise
            watching.append(tls.rotation.follow(announce))
        try:
            await _until(stop, watching)
        except NhopError as error:
            manager.abort(str(error))
            raise
        finally:
            await healthy.enter_graceful_shutdown()
            await manager.close(ENDING)
            await server.stop(LAST_MOMENT)


def _server(target: str, tls: ClientTls | None, tell: Callable[[str], object]) -> grpc.aio.Server:
    if target.startswith("unix:"):
        return grpc.aio.server(options=SERVER_OPTIONS, interceptors=(Decoding(),))
    gate = Gate(None, tell) if tls is None else Gate(ROLES, tell, trusted=Trusted(tls.rotation))
    return grpc.aio.server(options=[*SERVER_OPTIONS, *LIMITS], interceptors=[Decoding(), gate])


def _bind(server: grpc.aio.Server, target: str, tls: ClientTls | None) -> None:
    """Takes the address; raises UsageError where it cannot. gRPC would take over a Unix socket in use."""
    in_use = f"--serve {target}: the address is in use already; choose another, or end what listens there"
    if target.startswith("unix:"):
        path = Path(target.removeprefix("unix:"))
        if not path.parent.is_dir():
            raise UsageError(f"--serve {target}: there is no folder {path.parent}")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise UsageError(f"--serve {target}: the path of a socket has at most {MAX_SOCKET_PATH} bytes")
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise UsageError(f"--serve {target}: there is a file of that name that is no socket")
        if is_served(path):
            raise UsageError(in_use)
    try:
        if tls is not None:
            port = server.add_secure_port(target, server_credentials(tls.rotation))
        else:
            port = server.add_insecure_port(target)
    except RuntimeError:
        port = 0
    if port == 0:
        error = bind_error(target)
        if error is None or error.errno == errno.EADDRINUSE:
            raise UsageError(in_use)
        why = error.strerror or str(error)
        raise UsageError(f"--serve {target}: cannot listen there ({why}); choose another")


async def _until(stop: StopSignal, watching: Sequence[Awaitable[None]]) -> None:
    """Waits for ``stop``; what is watched beside it may only fail."""
    tasks = [asyncio.ensure_future(work) for work in (stop.wait(), *watching)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _open(fleet: Fleet, show: Callable[[Preflight], None] | None, reread: asyncio.Event | None) -> bool:
    await fleet.open(None, show, reread)
    return True


def _study(managed: ManagedStudy) -> study_pb2.Study:
    return study_to_pb(managed.study, managed.output_directory)


async def _refuse(context: Context, error: ConfigError) -> NoReturn:
    problems = [(problem.key, problem.message) for problem in error.problems]
    await abort_invalid(context, str(error), problems)
