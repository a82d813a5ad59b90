"""One server of each kind for the tests of a file; at its end nothing may have changed around it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from nhop.v1 import study_pb2
from tests.hostile.attack import STUDY, YAML
from tests.hostile.servers import AgentServer, CoordinatorServer, Server, served


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(AgentServer, tmp_path_factory.mktemp("agent")) as server:
        yield server


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(CoordinatorServer, tmp_path_factory.mktemp("coordinator")) as server:
        request = study_pb2.SubmitStudyRequest(study_id=STUDY, yaml=YAML)
        answer = server.call("/nhop.v1.StudyService/SubmitStudy", [request.SerializeToString()])
        assert answer.code is grpc.StatusCode.OK, answer.details
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The one that the parameter names; what was left on it must be gone after the test."""
    server: Server = request.getfixturevalue(request.param)
    yield server
    if request.param == "agent":
        server.clear()
    server.check()
