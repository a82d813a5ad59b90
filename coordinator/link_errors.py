"""What can go wrong between the coordinator and an agent, and how it is said."""

from __future__ import annotations

import asyncio

import grpc

from coordinator.domain import Failure
from coordinator.hosts import AgentAddress, is_name
from nhop._listening import is_local
from nhop.security.refusals import tls_problem
from nhop_models.contract import FailureKind

UNREACHABLE = ("timed out", "No route", "unreachable", "Ping timeout", "keepalive")
UNKNOWN_NAME = ("DNS", "resolution failed", "errors resolving", "lookup failed")
CLOSED = "the host has left"


class HostUnreachableError(Exception):
    """The agent does not answer; the message says why, in the user's words."""


class LogGoneError(Exception):
    """The agent does not know the attempt, or the attempt has no such task there."""


class TransferError(Exception):
    """A file could not be fetched or given; ``passing``: it may work a little later."""

    def __init__(self, failure: Failure, *, passing: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.passing = passing


class BundleMissingError(Exception):
    """The agent does not have a bundle (any more)."""


def closed() -> grpc.aio.AioRpcError:
    """What a call means on a connection that is closed: its host has left."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, CLOSED, None)


def are_we_cancelled() -> bool:
    """Of a CancelledError: whether this task is cancelled, not the call, whose connection was closed."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def failure(address: AgentAddress, error: grpc.aio.AioRpcError) -> Failure:
    """What a call that failed means for an attempt."""
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            kind = FailureKind.HOST_LOST
        case grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.NOT_FOUND:
            kind = FailureKind.RESOURCES
        case _:
            kind = FailureKind.INTERNAL
    return Failure(kind, f"{address.name}: {explain(address, error)}")


def explain(address: AgentAddress, error: grpc.aio.AioRpcError) -> str:
    """Why a call failed, in the user's words, with what to do."""
    details = error.details() or ""
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if "refused" in details or "No such file" in details:
            how = " --tls FOLDER" if address.tls else "" if is_local(address.target) else " --insecure"
            return f"no agent listens there; start one with: nhop-agent --listen {address.target}{how}"
        case grpc.StatusCode.UNAVAILABLE if problem := tls_problem(details, tls=address.tls):
            return problem
        case grpc.StatusCode.UNAVAILABLE if any(sign in details for sign in UNREACHABLE):
            return "nothing answers at that address; is the host up, and its port not filtered?"
        case grpc.StatusCode.UNAVAILABLE if any(sign in details for sign in UNKNOWN_NAME):
            return "this machine does not know a host of that name"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            # gRPC does not say whether it still waits for a connection, or for the answer of a name server.
            name = ", its name looked up in vain" if is_name(address.target) else ""
            return (
                f"no answer in time; is the host down or overloaded, its port filtered{name}, "
                "or the agent stuck?"
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return "what listens there is not an nhop-agent of this version"
        case grpc.StatusCode.PERMISSION_DENIED:
            return f"its agent refuses this: {details}"
        case code:
            return f"{details} ({code.name})"
