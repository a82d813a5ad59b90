"""The requests about files of attempts: from the protocol's messages, refusing what is not allowed."""

from __future__ import annotations

from agent.artifacts import CHUNK_BYTES, GIVEN_FILES, MAX_GIVEN_BYTES
from agent.checks import Checker, InvalidRequestError
from agent.domain import AttemptId
from nhop.v1 import agent_pb2
from nhop_models.contract import ARTIFACT_NAME


def read_artifact_request(request: agent_pb2.ReadArtifactRequest) -> tuple[AttemptId, str]:
    """The attempt, the name of the file."""
    check = Checker()
    attempt = check.attempt(request.attempt)
    valid = ARTIFACT_NAME.fullmatch(request.name) is not None
    check.require(valid, "name", "must be 1 to 64 of [a-z0-9._-], a letter or digit first")
    check.finish()
    return attempt, request.name


def artifact_header(request: agent_pb2.WriteArtifactRequest | None) -> tuple[AttemptId, str, int]:
    """The attempt, the name and the size in bytes of the file that follows."""
    if request is None or request.WhichOneof("kind") != "header":
        raise InvalidRequestError([("header", "must be the first message")])
    check = Checker()
    attempt = check.attempt(request.header.attempt, "header.attempt")
    artifact = request.header.artifact
    given = ", ".join(GIVEN_FILES)
    check.require(artifact.name in GIVEN_FILES, "header.artifact.name", f"must be {given}")
    size = artifact.size
    check.require(0 <= size <= MAX_GIVEN_BYTES, "header.artifact.size", f"must be 0 to {MAX_GIVEN_BYTES}")
    check.finish()
    return attempt, artifact.name, size


def artifact_piece(request: agent_pb2.WriteArtifactRequest, missing: int) -> bytes:
    """A piece of a file of which ``missing`` bytes are still to come."""
    check = Checker()
    data = request.data
    if check.require(request.WhichOneof("kind") == "data", "kind", "must be data from the second on"):
        check.require(len(data) <= CHUNK_BYTES, "data", f"must be at most {CHUNK_BYTES} bytes at a time")
        check.require(len(data) <= missing, "data", "is more than header.artifact.size")
    check.finish()
    return data


def check_whole(missing: int) -> None:
    """Raises InvalidRequestError where the stream has ended ``missing`` bytes before the file."""
    if missing:
        raise InvalidRequestError([("data", f"ended {missing} bytes before header.artifact.size")])
