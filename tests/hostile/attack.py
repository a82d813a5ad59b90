"""What is sent to a method, and what must be seen of it.

What is drawn never depends on the server, so that the same attack can be made again: attempts that have to
be there are made just before, and their numbers and addresses put into the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from nhop.v1 import agent_pb2, types_pb2
from tests.contract.harness import start_request, task_id
from tests.fakes.archives import archive
from tests.hostile.messages import damaged, hostile, mutated, requests
from tests.hostile.servers import AgentServer, CoordinatorServer, Server

STUDY = "attacked"
CODE = archive({"mine.py": "x = 1\n"})
VALUES = {"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 4]], "learning_rate": [0.1, 0.2]}
YAML = "cluster: {ps: 0, workers: 1}\nopt_stages: [[10, 4]]\nseed: 3\n"

TRIAL = 20_000
"""Stands for the number of an attempt that is made just before; it takes as many bytes."""
ADDRESSES = ("127.0.0.1:29998", "127.0.0.1:29999")
"""Stand for those that it was leased."""
SCRIPT = {"worker/0": {"runs_for": None, "log": "hello"}}


# --- what a method would take --------------------------------------------------------------------


def valid(path: str, method: MethodDescriptor) -> list[Message]:
    """The messages of a call that is granted."""
    message = requests(method)()
    name = method.name
    fill = _AGENT.get(name) or _COORDINATOR.get(name) if path.startswith("/nhop") else None
    if fill is not None:
        fill(message)
    elif name == "ServerReflectionInfo":
        message.list_services = ""
    data = {"WriteArtifact": b"bytes", "PutBundle": CODE}.get(name)
    return [message] if data is None else [message, requests(method)(data=data)]


def _attempt(message: Any) -> None:
    message.attempt.study_id, message.attempt.trial, message.attempt.attempt = "study", TRIAL, 1


def _prepare(message: Any) -> None:
    _attempt(message)
    message.attempt.attempt = 2
    message.tasks.add(task=task_id("worker/0"), slots=1)
    message.lease_timeout.seconds = 30


def _start(message: Any) -> None:
    leases = [
        agent_pb2.TaskLease(task=task_id(task), address=address)
        for task, address in zip(("ps/0", "worker/0"), ADDRESSES, strict=True)
    ]
    attempt = types_pb2.AttemptId(study_id="study", trial=TRIAL, attempt=1)
    message.CopyFrom(start_request(attempt, leases, SCRIPT))


def _stop(message: Any) -> None:
    _attempt(message)
    message.reason = agent_pb2.STOP_REASON_RELEASED


def _subscribe(message: Any) -> None:
    message.subscribe.study_id = "study"
    position = message.subscribe.positions.add(source="worker/0", sequence=1)
    _attempt(position)


def _read_log(message: Any) -> None:
    _attempt(message)
    message.task.role = types_pb2.TASK_ROLE_WORKER


def _read_artifact(message: Any) -> None:
    _attempt(message)
    message.name = "model.keras"


def _write_artifact(message: Any) -> None:
    _attempt(message.header)
    message.header.artifact.name, message.header.artifact.size = "restore.npz", 5


def _put_bundle(message: Any) -> None:
    message.header.digest, message.header.size = hashlib.sha256(CODE).hexdigest(), len(CODE)


def _inventory(message: Any) -> None:
    message.study_ids.append("study")
    message.uptime.seconds = 1


def _name_study(message: Any) -> None:
    message.study_id = STUDY


def _read_task_log(message: Any) -> None:
    message.study_id, message.trial, message.task = STUDY, 1, "worker/0"


_AGENT: dict[str, Callable[[Any], None]] = {
    "GetInventory": _inventory, "PrepareAttempt": _prepare, "StartAttempt": _start, "StopAttempt": _stop,
    "StreamEvents": _subscribe, "ReadLog": _read_log, "ReadArtifact": _read_artifact,
    "WriteArtifact": _write_artifact, "PutBundle": _put_bundle,
    "CheckReach": lambda message: message.probes.add(address="127.0.0.1:1", token="x"),
}  # fmt: skip
_COORDINATOR: dict[str, Callable[[Any], None]] = {
    "SubmitStudy": lambda message: message.values.update(VALUES), "GetStudy": _name_study,
    "WatchStudy": _name_study, "StopStudy": _name_study, "ListTrials": _name_study,
    "GetBestTrial": _name_study, "ReadTaskLog": _read_task_log,
}  # fmt: skip
_PREPARED = {"PrepareAttempt", "StartAttempt", "WriteArtifact"}
_STARTED = {"StopAttempt", "ReadLog", "ReadArtifact", "StreamEvents"}


# --- what it gets instead ------------------------------------------------------------------------


@st.composite
def attacks(draw: st.DrawFn, path: str, method: MethodDescriptor) -> list[bytes]:
    """The messages of one call."""
    messages = []
    for template in _order(draw, valid(path, method)) if method.client_streaming else valid(path, method):
        match draw(st.sampled_from(("valid", "bytes", "damaged", "mutated", "mutated", "hostile"))):
            case "valid":
                messages.append(template.SerializeToString())
            case "bytes":
                messages.append(draw(st.binary(max_size=200)))
            case "damaged":
                messages.append(draw(damaged(template)))
            case "mutated":
                messages.append(draw(mutated(template)).SerializeToString())
            case "hostile":
                messages.append(draw(hostile(method.input_type)).SerializeToString())
    return messages


def _order(draw: st.DrawFn, messages: list[Message]) -> list[Message]:
    """As they are, backwards, twice, or only some of them."""
    match draw(st.sampled_from(("right", "right", "right", "reversed", "twice", "some"))):
        case "reversed":
            return messages[::-1]
        case "twice":
            return messages * 2
        case "some":
            return messages[draw(st.integers(0, len(messages))) :]
    return messages


def attack(server: Server, path: str, messages: Sequence[bytes]) -> grpc.StatusCode | None:
    """Sends them: they are granted, or refused for a reason and without any effect."""
    name = path.rpartition("/")[2]
    before: set[str] = set()
    if isinstance(server, AgentServer):
        if name in _PREPARED or name in _STARTED:
            messages = server.put_into(messages, TRIAL, ADDRESSES, SCRIPT if name in _STARTED else None)
        before = server.attempts()
    answer = server.call(path, messages)
    server.judge(answer, *((grpc.StatusCode.UNIMPLEMENTED,) if path.endswith("Health/List") else ()))
    if isinstance(server, AgentServer):
        more = server.attempts() - before
        assert answer.granted or not more, "refused, and yet there is an attempt more"
        server.stop(more | server.newest())
    if isinstance(server, CoordinatorServer) and name == "SubmitStudy":
        server.stop_all(but=STUDY)
    return answer.code
