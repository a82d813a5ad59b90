"""The agent as its users meet it: command line, addresses, requests that only the real agent checks."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent.words import run
from nhop.v1 import agent_pb2
from tests.contract.harness import DEADLINE, RealAgent, attempt_id, start_request, task_id


def nhop_agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


# --- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:7001"], "--tls FOLDER"),
        (["--listen", "host.example:7001"], "--tls FOLDER"),
        (["--listen", "7001"], "is not an address"),
        (["--listen", "::1:7001"], "is not an address"),
        (["--listen", "127.0.0.1:70000"], "from 0 to 65535"),
        (["--listen", "unix:relative.sock"], "must be absolute"),
        (["--listen", f"unix:/tmp/{'x' * 120}"], "at most 107 bytes"),
        (["--listen", "127.0.0.1:0"], "--state-dir is needed"),
        (["--listen", "127.0.0.1:0", "--state-dir", ""], "--state-dir is empty"),
        (["--listen", "127.0.0.1:7001", "--slots", "0"], "--slots"),
        (["--listen", "127.0.0.1:7001", "--port-range", "30-20"], "not a port range"),
        ([], "--listen"),
    ],
)
def test_wrong_usage_is_said_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = nhop_agent("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "file" / "state"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "cannot use the state directory" in result.stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = nhop_agent("--listen", f"127.0.0.1:{port}", "--state-dir", str(tmp_path))
    assert result.returncode == 2
    assert f"nhop-agent: cannot listen on 127.0.0.1:{port}: address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_that_may_still_come(tmp_path: Path) -> None:
    """While a machine starts: a service is to be started again, which it is not after a wrong usage."""
    result = nhop_agent("--listen", "192.0.2.1:7001", "--insecure", "--state-dir", str(tmp_path))
    assert result.returncode == 1
    assert "cannot listen on 192.0.2.1:7001: this machine does not have that address" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_socket_in_use(agent: RealAgent, tmp_path: Path) -> None:
    result = nhop_agent("--listen", agent.address, "--state-dir", str(tmp_path / "other"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "address already in use" in result.stderr


async def test_a_second_agent_on_a_port(tmp_path: Path) -> None:
    first = await RealAgent.launch(tmp_path, listen="127.0.0.1:0")
    try:
        result = nhop_agent("--listen", first.address, "--state-dir", str(tmp_path / "other"))
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert f"cannot listen on {first.address}: address already in use" in result.stderr
    finally:
        await first.close()


async def test_ports_that_others_have_all_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        agent = await RealAgent.launch(tmp_path, ports=(port, port))
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await agent.prepare(attempt_id(), "ps/0")
        finally:
            await agent.close()
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"1 ports wanted, 0 free of {port}-{port}" in str(refusal.value.details())
    assert "--port-range" in str(refusal.value.details())


async def test_a_state_directory_in_use(agent: RealAgent, tmp_path: Path) -> None:
    result = nhop_agent("--listen", f"unix:{tmp_path}/b.sock", "--state-dir", str(agent.state_dir))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"used by another agent (pid {agent.process.pid})" in result.stderr


async def test_a_socket_that_a_dead_agent_left_is_used_again(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path)
    await agent.kill()
    agent = await RealAgent.launch(tmp_path)
    try:
        assert (await agent.inventory()).slots == 2
    finally:
        await agent.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_an_agent_on_a_loopback_port(tmp_path: Path, host: str) -> None:
    agent = await RealAgent.launch(tmp_path, listen=f"{host}:0")
    try:
        assert not agent.address.endswith(":0")
        assert (await agent.inventory()).slots == 2
    finally:
        await agent.close()


# --- services for generic tools -------------------------------------------------------------


async def test_health(agent: RealAgent) -> None:
    stub: Any = health_pb2_grpc.HealthStub(agent.channel)
    request = health_pb2.HealthCheckRequest(service="nhop.v1.AgentService")
    answer = await stub.Check(request, timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_service(agent: RealAgent) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(agent.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await asyncio.wait_for(call.read(), DEADLINE)
    assert "nhop.v1.AgentService" in [service.name for service in answer.list_services_response.service]


# --- requests -------------------------------------------------------------------------------


def change_parameters(request: agent_pb2.StartAttemptRequest) -> None:
    request.training.parameters.values["learning_rate"] = math.nan


def change_depth(request: agent_pb2.StartAttemptRequest) -> None:
    nested: Any = 1
    for _ in range(30):
        nested = [nested]
    request.training.settings.values["nested"] = nested


def change_cluster(request: agent_pb2.StartAttemptRequest) -> None:
    request.cluster.ps[0] = "127.0.0.1:1"


def change_path(request: agent_pb2.StartAttemptRequest) -> None:
    request.training.python_path.append("relative")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (change_parameters, "training.parameters.learning_rate"),
        (change_depth, "is nested too deeply"),
        (change_cluster, "cluster.ps[0]"),
        (change_path, "training.python_path[0]"),
        (lambda r: r.ClearField("limits"), "limits.start"),
        (lambda r: setattr(r.training, "train_epoch", 0), "training.train_epoch"),
        (lambda r: setattr(r.training, "train_tolerance", math.inf), "training.train_tolerance"),
        (lambda r: r.limits.stop_grace.FromSeconds(-1), "limits.stop_grace"),
        (lambda r: r.cluster.workers.append("127.0.0.1:5"), "cluster.workers"),
    ],
)
async def test_what_is_wrong_with_a_start_is_named(agent: RealAgent, change: Any, field: str) -> None:
    prepared = await agent.prepare(attempt_id(), "ps/0", "worker/0")
    request = start_request(attempt_id(), prepared.leases)
    change(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.stub.StartAttempt(request, timeout=DEADLINE)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(caught.value.details())


async def test_whole_numbers_are_integers_to_the_task(agent: RealAgent) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    request = start_request(attempt_id(), prepared.leases)
    request.training.parameters.values.update({"batch_size": 100, "learning_rate": 0.5})
    await agent.stub.StartAttempt(request, timeout=DEADLINE)
    text = (agent.state_dir / "attempts/study-t1-a1/spec.json").read_text()
    assert '"batch_size": 100,' in text or '"batch_size": 100}' in text


async def test_an_acknowledgement_for_another_study_ends_the_stream(agent: RealAgent) -> None:
    call = agent.stub.StreamEvents()
    await call.write(agent_pb2.StreamEventsRequest(subscribe=agent_pb2.Subscribe(study_id="mine")))
    position = agent_pb2.Position(attempt=attempt_id(study="other"), source="agent", sequence=1)
    acknowledge = agent_pb2.Acknowledge(positions=[position])
    await call.write(agent_pb2.StreamEventsRequest(acknowledge=acknowledge))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call.read(), DEADLINE)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def read_log(agent: RealAgent, task: str, offset: int = 0) -> bytes:
    request = agent_pb2.ReadLogRequest(attempt=attempt_id(), task=task_id(task), offset=offset)
    return b"".join([chunk.data async for chunk in agent.stub.ReadLog(request, timeout=DEADLINE)])


@pytest.mark.parametrize(("offset", "text"), [(0, b"hello log\n"), (6, b"log\n"), (-4, b"log\n")])
async def test_a_log_can_be_read_from_either_end(agent: RealAgent, offset: int, text: bytes) -> None:
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"log": "hello log"}})
    await agent.events(attempt_id())
    assert await read_log(agent, "worker/0", offset) == text


async def test_a_log_that_cannot_be_read_is_said(agent: RealAgent) -> None:
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"log": "hello log"}})
    await agent.events(attempt_id())
    log = agent.state_dir / "attempts/study-t1-a1/tasks/worker-0.log"
    log.unlink()
    log.mkdir()
    with pytest.raises(grpc.aio.AioRpcError, match="cannot be used") as caught:
        await read_log(agent, "worker/0")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_the_log_of_an_unknown_task_is_not_found(agent: RealAgent) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_log(agent, "worker/0")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
