"""What messages carry: archives, files and configurations that must be refused whole."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterable

import grpc
import pytest
from google.protobuf import struct_pb2

from nhop.v1 import agent_pb2, study_pb2, types_pb2
from tests.agent.test_archive import BAD
from tests.fakes.archives import archive
from tests.hostile.messages import STRINGS
from tests.hostile.servers import AgentServer, Answer, CoordinatorServer
from tests.hostile.yaml_bombs import BOMBS

PUT = "/nhop.v1.AgentService/PutBundle"
WRITE = "/nhop.v1.AgentService/WriteArtifact"
SUBMIT = "/nhop.v1.StudyService/SubmitStudy"
PIECE = 1 << 20

on_agent = pytest.mark.parametrize("server", ["agent"], indirect=True)
on_coordinator = pytest.mark.parametrize("server", ["coordinator"], indirect=True)


def bundle(data: bytes, **header: object) -> list[bytes]:
    """The messages that give an archive; ``header`` as it is told instead."""
    told = {"digest": hashlib.sha256(data).hexdigest(), "size": len(data), **header}
    messages = [agent_pb2.PutBundleRequest(header=agent_pb2.BundleHeader(**told))]
    messages += [
        agent_pb2.PutBundleRequest(data=data[start : start + PIECE]) for start in range(0, len(data), PIECE)
    ]
    return [message.SerializeToString() for message in messages]


@on_agent
@pytest.mark.parametrize("name", BAD)
def test_an_archive_that_must_be_refused(server: AgentServer, name: str) -> None:
    answer = server.call(PUT, bundle(BAD[name][0]()))
    server.judge(answer)
    assert not answer.granted
    assert server.bundles() == []


@pytest.mark.faults
@on_agent
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gzip.compress(bytes(1600 << 20), compresslevel=1), "unpacks to more than"),
        (lambda: archive(dict.fromkeys(map(str, range(100_001)), "")), "more than 100000 members"),
    ],
    ids=["bytes", "members"],
)
def test_an_archive_that_is_too_large(server: AgentServer, make: Callable[[], bytes], words: str) -> None:
    answer = server.call(PUT, bundle(make()))
    server.judge(answer)
    assert (answer.code, words in answer.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert server.bundles() == []


@on_agent
def test_a_digest_that_is_none(server: AgentServer) -> None:
    for digest in STRINGS:
        answer = server.call(PUT, bundle(b"x", digest=digest))
        server.judge(answer)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.bundles() == []


@on_agent
def test_an_upload_that_is_given_up_leaves_nothing(server: AgentServer) -> None:
    data = archive({"random": os.urandom(3 << 20).hex()})
    server.cancel(PUT, bundle(data)[:-1])
    attempt, _ = server.new_attempt()
    artifact = types_pb2.Artifact(name="restore.npz", size=100)
    header = agent_pb2.ArtifactHeader(attempt=attempt, artifact=artifact)
    sent = [agent_pb2.WriteArtifactRequest(header=header), agent_pb2.WriteArtifactRequest(data=b"x" * 50)]
    server.cancel(WRITE, [message.SerializeToString() for message in sent])
    server.wait_until_clean()


@on_agent
def test_a_file_with_another_name(server: AgentServer) -> None:
    attempt, _ = server.new_attempt()
    for text in STRINGS:
        for name in (text, f"../{text}", f"restore.npz/{text}"):
            artifact = types_pb2.Artifact(name=name, size=1)
            header = agent_pb2.ArtifactHeader(attempt=attempt, artifact=artifact)
            sent = [agent_pb2.WriteArtifactRequest(header=header), agent_pb2.WriteArtifactRequest(data=b"x")]
            answer = server.call(WRITE, [message.SerializeToString() for message in sent])
            server.judge(answer)
            assert answer.granted == (name == "restore.npz")


def submit(server: CoordinatorServer, request: study_pb2.SubmitStudyRequest) -> Answer:
    return server.call(SUBMIT, [request.SerializeToString()])


@on_coordinator
@pytest.mark.parametrize("name", BOMBS)
def test_a_configuration_that_is_a_bomb(server: CoordinatorServer, name: str) -> None:
    answer = submit(server, study_pb2.SubmitStudyRequest(yaml=BOMBS[name][0]))
    server.judge(answer)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT


@on_coordinator
def test_a_study_whose_id_is_none(server: CoordinatorServer) -> None:
    text = "cluster: {ps: 0, workers: 1}\nopt_stages: [[10, 1]]\n"
    for study_id in filter(None, STRINGS):
        answer = submit(server, study_pb2.SubmitStudyRequest(study_id=study_id, yaml=text))
        server.judge(answer)
        good = study_id in ("study", "s1", "agent", "f" * 64)
        assert answer.code is (grpc.StatusCode.OK if good else grpc.StatusCode.INVALID_ARGUMENT), study_id


def values(pairs: Iterable[tuple[str, object]]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(dict(pairs))
    return struct


@on_coordinator
@pytest.mark.parametrize("place", ["/proc", "/dev", "/dev/zero", "/proc/self/mem", "/sys", "/", "~nobody/x"])
@pytest.mark.parametrize("key", ["code", "data", "load_data_dir", "python_path", "train_log_dir"])
def test_a_study_that_wants_what_is_no_code_or_data(server: CoordinatorServer, key: str, place: str) -> None:
    """Whatever of it may be sent, the coordinator goes on, and reads no device."""
    keys = {"nn_model": "none:Net", "cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 1]]}
    request = study_pb2.SubmitStudyRequest(values=values([*keys.items(), ("load_data", True), (key, place)]))
    server.judge(submit(server, request))
    server.stop_all()
