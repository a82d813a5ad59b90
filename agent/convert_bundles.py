"""The requests about bundles: from the protocol's messages, refusing what is not allowed."""

from __future__ import annotations

from agent.artifacts import CHUNK_BYTES
from agent.bundles import DIGEST, Wanted
from agent.checks import Checker, InvalidRequestError
from nhop.v1 import agent_pb2

_DIGEST_RULE = "must be 64 hexadecimal digits in lower case"


def bundle_header(request: agent_pb2.PutBundleRequest | None) -> tuple[str, int]:
    """The digest and the size in bytes of the archive that follows."""
    if request is None or request.WhichOneof("kind") != "header":
        raise InvalidRequestError([("header", "must be the first message")])
    check = Checker()
    header = request.header
    check.require(DIGEST.fullmatch(header.digest) is not None, "header.digest", _DIGEST_RULE)
    check.require(header.size > 0, "header.size", "must be at least 1")
    check.finish()
    return header.digest, header.size


def bundle_piece(request: agent_pb2.PutBundleRequest, missing: int) -> bytes:
    """A piece of an archive of which ``missing`` bytes are still to come."""
    check = Checker()
    data = request.data
    if check.require(request.WhichOneof("kind") == "data", "kind", "must be data from the second on"):
        check.require(len(data) <= CHUNK_BYTES, "data", f"must be at most {CHUNK_BYTES} bytes at a time")
        check.require(len(data) <= missing, "data", "is more than header.size")
    check.finish()
    return data


def check_whole(missing: int) -> None:
    """Raises InvalidRequestError where the stream has ended ``missing`` bytes before the archive."""
    if missing:
        raise InvalidRequestError([("data", f"ended {missing} bytes before header.size")])


def wanted(training: agent_pb2.TrainingSpec) -> Wanted:
    """The bundles that an attempt is to use."""
    check = Checker()
    for field in ("code", "data"):
        digest = getattr(training, field)
        valid = not digest or DIGEST.fullmatch(digest) is not None
        check.require(valid, f"training.{field}", f"{_DIGEST_RULE}, or empty")
    check.finish()
    return Wanted(training.code, training.data)
