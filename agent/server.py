"""An agent from its start to its ordered end: state directory, zygote, gRPC server, signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import fcntl
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.background import log_exception
from agent.bundles import FOLDER as BUNDLES
from agent.config import AgentConfig, AgentError, ListenAddress, UsageError
from agent.notify import Notifier
from agent.recovery import recover
from agent.runtime import ATTEMPTS, Agent
from agent.service import AgentService
from agent.task_places import remove_tree
from agent.task_reach import check_reach
from agent.task_user import check_task_user
from nhop._decoding import Decoding
from nhop._health import Health
from nhop._listening import bind_error, is_served
from nhop.security.gate import EVERY_ROLE, Gate, warn
from nhop.security.handshakes import HandshakeLog
from nhop.security.identity import Role
from nhop.security.rotation import Rotation
from nhop.security.server import LIMITS, Trusted, server_credentials
from nhop.v1 import agent_pb2, agent_pb2_grpc

logger = logging.getLogger(__name__)

SERVICE_NAME = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
ROLES = {
    SERVICE_NAME: frozenset({Role.COORDINATOR}),
    health.SERVICE_NAME: EVERY_ROLE,
    reflection.SERVICE_NAME: EVERY_ROLE,
}
"""Whose certificates may call what."""

MAX_MESSAGE_BYTES = 4 << 20
COORDINATOR_SOCKET = "coordinator.sock"
"""What a coordinator may have beside the socket of its private agent."""

LAST_EVENTS_SECONDS = 0.5
"""How long subscribers have, at the end, to be handed the last events."""
STREAMS_END_SECONDS = 0.5
ANOTHER_ADDRESS = "choose another --listen, or end what listens there"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


async def run(config: AgentConfig, announce: Callable[[str, int], None]) -> None:
    """Serves until SIGTERM, SIGINT, SIGHUP or the end of the parent pipe; then ends all attempts in order.

    ``announce`` is called once with the actual address and the number of GPUs. Raises AgentError where
    it cannot start.
    """
    notifier = Notifier.from_environment(os.environ)
    if notifier.watched:
        # The watchdog's SIGABRT leaves in the log what the loop was blocked by, past what reads descriptor 2.
        faulthandler.enable(os.dup(2))
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_own_state_dir(config.state_dir))
        await stack.enter_async_context(_rotating(config.tls))
        _check_not_served(config.listen)
        stop = _StopRequest(config.parent_pipe)
        agent = Agent(config)
        _let_tasks_in(agent)
        try:
            agent.start()
        except OSError as error:
            raise AgentError(f"cannot start the zygote {config.zygote_command[0]}: {error}") from error
        try:
            await agent.gpus.find()
            await _clean(agent.bundles.clean, config.state_dir)
            recover(agent)
            await _clean(functools.partial(agent.places.clean, frozenset(agent.attempts)), config.state_dir)
            server, status, address = await _start_server(agent, config)
            announce(str(address), len(list(agent.leases.gpus)))
            notifier.ready(f"listens on {address}")
            await stop.requested.wait()
            logger.info("shutting down: %s", stop.why)
            notifier.stopping(f"ends its tasks: {stop.why}")
            await status.enter_graceful_shutdown()
            stop.on_repeat = agent.kill_all
            await agent.shut_down()
            await agent.hand_out_events(LAST_EVENTS_SECONDS)
        finally:
            await agent.close()
        await server.stop(STREAMS_END_SECONDS)
        notifier.close()
        stop.close()
        if config.listen.path is not None:
            config.listen.path.unlink(missing_ok=True)
        if config.parent_pipe is not None:
            _leave_nothing(config)


def _let_tasks_in(agent: Agent) -> None:
    """Makes what a user of the tasks' own may enter, and sees that it can."""
    state_dir, user = agent.config.state_dir, agent.places.user
    check_task_user(user)
    if user is None:
        return
    os.umask(0o022)  # folders decide who reads what is in them
    try:
        agent.places.open(state_dir, agent.attempts_dir, state_dir / BUNDLES)
    except OSError as error:
        raise UsageError(
            f"cannot let user {user.name} into {state_dir}: {error.strerror}; choose another --state-dir"
        ) from error
    check_reach(user, state_dir, agent.places.of_zygote(os.environ))


async def _clean(clean: Callable[[], None], state_dir: Path) -> None:
    try:
        await asyncio.to_thread(clean)
    except OSError as error:
        raise AgentError(f"cannot use {state_dir}: {error}; choose another --state-dir") from error


def _leave_nothing(config: AgentConfig) -> None:
    """A private agent takes its files away: whoever started it may be gone before it."""
    remove_tree(config.state_dir, None)
    if config.listen.path is not None:
        folder = config.listen.path.parent
        with contextlib.suppress(OSError):  # not empty: it is more than the sockets' place
            (folder / COORDINATOR_SOCKET).unlink(missing_ok=True)
            folder.rmdir()


class _StopRequest:
    """Signals and the parent pipe as one event."""

    def __init__(self, parent_pipe: int | None) -> None:
        self.requested = asyncio.Event()
        self.why = ""
        self.on_repeat: Callable[[], None] = lambda: None
        self._pipe = parent_pipe
        self._loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._request, number.name)
        if parent_pipe is not None:
            try:
                os.set_blocking(parent_pipe, False)
                self._loop.add_reader(parent_pipe, self._look_at_pipe, parent_pipe)
            except OSError as error:
                raise AgentError(f"--parent-pipe {parent_pipe}: {error.strerror}") from error

    def close(self) -> None:
        """Takes no more requests."""
        for number in _STOP_SIGNALS:
            self._loop.remove_signal_handler(number)
        if self._pipe is not None:
            self._loop.remove_reader(self._pipe)

    def _request(self, why: str) -> None:
        if self.requested.is_set():
            self.on_repeat()
        else:
            self.why = why
            self.requested.set()

    def _look_at_pipe(self, pipe: int) -> None:
        try:
            data = os.read(pipe, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(pipe)
            self._pipe = None
            if not self.requested.is_set():
                self._request("the process that started this agent is gone")


@contextlib.asynccontextmanager
async def _rotating(tls: Rotation | None) -> AsyncIterator[None]:
    """Meanwhile new certificates are taken into use, and connections that TLS refuses are told."""
    if tls is None:
        yield
        return
    refused = HandshakeLog(warn(logger))
    refused.open()
    following = asyncio.create_task(tls.follow(warn(logger)))
    following.add_done_callback(log_exception)
    try:
        yield
    finally:
        following.cancel()
        refused.close()


async def _start_server(agent: Agent, config: AgentConfig) -> tuple[grpc.aio.Server, Any, ListenAddress]:
    listen = config.listen
    others = listen.path is None
    gate = Gate(None, warn(logger))
    if config.tls is not None:
        gate = Gate(ROLES, warn(logger), agent.owners, Trusted(config.tls))
    server = grpc.aio.server(
        options=[*_SERVER_OPTIONS, *(LIMITS if others else ())],
        interceptors=[Decoding(), gate] if others else [Decoding()],
    )
    status = Health()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(agent), server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    umask = os.umask(0o077)
    try:
        if config.tls is not None:
            port = server.add_secure_port(str(listen), server_credentials(config.tls))
        else:
            port = server.add_insecure_port(str(listen))
    except RuntimeError:
        port = 0
    finally:
        os.umask(umask)
    if port == 0:
        raise _not_listening(listen)
    await server.start()
    for name in ("", SERVICE_NAME):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, status, listen if listen.path is not None else ListenAddress(listen.host, port)


def _not_listening(listen: ListenAddress) -> AgentError:
    error = bind_error(str(listen))
    if error is not None and error.errno == errno.EADDRNOTAVAIL:
        # Not for good: while a machine starts, its addresses come one after the other.
        return AgentError(f"cannot listen on {listen}: this machine does not have that address, or not yet")
    why = (error.strerror or str(error)).lower() if error is not None else "the address cannot be used"
    return UsageError(f"cannot listen on {listen}: {why}; {ANOTHER_ADDRESS}")


def _check_not_served(listen: ListenAddress) -> None:
    if listen.path is not None and is_served(listen.path):
        raise UsageError(f"cannot listen on {listen}: address already in use; {ANOTHER_ADDRESS}")


@contextlib.contextmanager
def _own_state_dir(path: Path) -> Iterator[None]:
    """Makes the directory, and holds it against other agents."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / ATTEMPTS).mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot use the state directory {path}: {error.strerror}; choose another with --state-dir"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise UsageError(
            f"the state directory {path} is used by another agent{f' (pid {owner})' if owner else ''}; "
            "choose another with --state-dir"
        ) from error
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
