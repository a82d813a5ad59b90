"""TLS beside plaintext, and with the gate beside without it: in turns, within one run.

``python -m benchmarks.tls FOLDER`` is the server of the gate's figures: on four ports, whose numbers go to
standard output as a JSON list, in the order of ``WAYS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

from agent.owners import Owners
from benchmarks.certificates import Certificates, make_certificates
from nhop.security.gate import Gate
from nhop.security.identity import Role
from nhop.security.rotation import Rotation
from nhop.security.server import LIMITS, Trusted, server_credentials
from nhop.v1 import agent_pb2, agent_pb2_grpc, types_pb2

SCRIPTS = Path(sysconfig.get_path("scripts"))
ROUNDS = 20
CALLS = 100
"""Of a kind, in each round."""
CONNECTIONS = 20
AT_ONCE = 50
START_LIMIT = 120.0
ROLES = {"nhop.v1.AgentService": frozenset({Role.COORDINATOR})}
WAYS = ("plaintext", "plaintext, gate", "TLS", "TLS, gate")


@dataclass
class Seconds:
    """What was measured, one value a call."""

    inventory: list[float] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)
    stop: list[float] = field(default_factory=list)
    connection: list[float] = field(default_factory=list)


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    found = statistics.quantiles(values, n=100, method="inclusive")
    return found[49], found[98]


# --- real agents ----------------------------------------------------------------------------------


def commands() -> tuple[Seconds, Seconds]:
    """Commands to real agents and connections to them: without TLS, and with it."""
    with tempfile.TemporaryDirectory() as name:
        certificates = make_certificates(Path(name) / "certs")
        with (
            _agent(Path(name) / "plain") as plain,
            _agent(Path(name) / "tls", "--tls", certificates.agent) as secure,
        ):
            return uvloop.run(_commands(plain, secure, certificates))


@contextlib.contextmanager
def _agent(state: Path, *options: object) -> Iterator[str]:
    words = [SCRIPTS / "nhop-agent", "--listen", "127.0.0.1:0", "--state-dir", state, "--slots", 2, *options]
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[3]
    finally:
        process.terminate()
        process.communicate()


async def _commands(plain: str, secure: str, certificates: Certificates) -> tuple[Seconds, Seconds]:
    found = Seconds(), Seconds()
    async with _channel(plain, None) as one, _channel(secure, certificates) as other:
        stubs: list[Any] = [agent_pb2_grpc.AgentServiceStub(channel) for channel in (one, other)]
        for stub in stubs:
            await _until_loaded(stub)
        trial = 0
        for _ in range(ROUNDS):
            for stub, seconds in zip(stubs, found, strict=True):
                for _ in range(CALLS):
                    trial += 1
                    await _command(stub, trial, seconds)
        for _ in range(CONNECTIONS):
            for target, security, seconds in ((plain, None, found[0]), (secure, certificates, found[1])):
                begun = time.perf_counter()
                async with _channel(target, security) as channel:
                    await channel.channel_ready()
                    seconds.connection.append(time.perf_counter() - begun)
    return found


async def _until_loaded(stub: Any) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not (await stub.GetInventory(agent_pb2.GetInventoryRequest())).tensorflow_version:
        if time.monotonic() > deadline:
            raise RuntimeError("an agent does not load TensorFlow")
        await asyncio.sleep(0.2)


async def _command(stub: Any, trial: int, seconds: Seconds) -> None:
    attempt = types_pb2.AttemptId(study_id="benchmark", trial=trial, attempt=1)
    task = types_pb2.TaskId(role=types_pb2.TASK_ROLE_WORKER, index=0)
    requirement = agent_pb2.TaskRequirement(task=task, slots=1)
    calls: tuple[tuple[list[float], Callable[[], Awaitable[object]]], ...] = (
        (
            seconds.inventory,
            lambda: stub.GetInventory(agent_pb2.GetInventoryRequest(study_ids=["benchmark"])),
        ),
        (
            seconds.prepare,
            lambda: stub.PrepareAttempt(
                agent_pb2.PrepareAttemptRequest(attempt=attempt, tasks=[requirement])
            ),
        ),
        (
            seconds.stop,
            lambda: stub.StopAttempt(
                agent_pb2.StopAttemptRequest(attempt=attempt, reason=agent_pb2.STOP_REASON_RELEASED)
            ),
        ),
    )
    for values, call in calls:
        begun = time.perf_counter()
        await call()
        values.append(time.perf_counter() - begun)


@contextlib.asynccontextmanager
async def _channel(target: str, certificates: Certificates | None) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    if certificates is None:
        channel = grpc.aio.insecure_channel(target, options=options)
    else:
        files = Rotation(certificates.coordinator, Role.COORDINATOR).files
        credentials = grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)
        channel = grpc.aio.secure_channel(target, credentials, options=options)
    async with channel:
        yield channel


# --- the gate -------------------------------------------------------------------------------------


@dataclass
class Passing:
    """Calls of one of ``WAYS``, by round: median seconds of one after the other, calls/s of many at once."""

    medians: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def gate() -> dict[str, Passing]:
    """An empty StopAttempt that names a study, in each of ``WAYS``."""
    with tempfile.TemporaryDirectory() as name:
        certificates = make_certificates(Path(name))
        command = [sys.executable, "-m", "benchmarks.tls", certificates.agent]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                return uvloop.run(_pass(json.loads(server.stdout.readline()), certificates))
            finally:
                server.communicate()


async def _pass(ports: list[int], certificates: Certificates) -> dict[str, Passing]:
    found = {way: Passing() for way in WAYS}
    attempt = types_pb2.AttemptId(study_id="benchmark", trial=1, attempt=1)
    request = agent_pb2.StopAttemptRequest(attempt=attempt, reason=agent_pb2.STOP_REASON_RELEASED)
    async with contextlib.AsyncExitStack() as stack:
        stubs: dict[str, Any] = {}
        for way, port in zip(WAYS, ports, strict=True):
            security = certificates if way.startswith("TLS") else None
            channel = await stack.enter_async_context(_channel(f"127.0.0.1:{port}", security))
            stubs[way] = agent_pb2_grpc.AgentServiceStub(channel)
            await stubs[way].StopAttempt(request)
        for _ in range(ROUNDS):
            for way, stub in stubs.items():
                seconds = []
                for _ in range(CALLS):
                    begun = time.perf_counter()
                    await stub.StopAttempt(request)
                    seconds.append(time.perf_counter() - begun)
                found[way].medians.append(statistics.median(seconds))
                begun = time.perf_counter()
                await asyncio.gather(*(_one_after_another(stub, request) for _ in range(AT_ONCE)))
                found[way].rates.append(AT_ONCE * CALLS / 5 / (time.perf_counter() - begun))
    return found


async def _one_after_another(stub: Any, request: Any) -> None:
    for _ in range(CALLS // 5):
        await stub.StopAttempt(request)


class _Empty(agent_pb2_grpc.AgentServiceServicer):
    async def StopAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        return agent_pb2.StopAttemptResponse()


async def _serve(folder: Path) -> None:
    rotation = Rotation(folder, Role.AGENT)
    servers, ports = [], []
    for way in WAYS:
        tls = way.startswith("TLS")
        owners = Owners(time.monotonic)
        real = Gate(ROLES, print, owners, Trusted(rotation)) if tls else Gate(None, print)
        server = grpc.aio.server(options=LIMITS, interceptors=[real] if way.endswith("gate") else [])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(_Empty(), server)
        if tls:
            ports.append(server.add_secure_port("127.0.0.1:0", server_credentials(rotation)))
        else:
            ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop(None) for server in servers))


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
