"""Whatever a method is sent: a clear status, no defect, nothing left, and the server goes on."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.hostile.attack import ADDRESSES, TRIAL, attack, attacks, valid
from tests.hostile.messages import groups, nested, stuffed, varint
from tests.hostile.servers import DEADLINE, KINDS, OPEN_SECONDS, REFUSALS, AgentServer, Server

METHODS = [
    (name, path, method) for name, kind in KINDS.items() for path, method in kind.all_methods().items()
]
every_method = pytest.mark.parametrize(
    ("server", "path", "method"),
    METHODS,
    ids=[f"{name}-{method.name}" for name, _, method in METHODS],
    indirect=["server"],
)
_OTHERWISE = {
    "List": grpc.StatusCode.UNIMPLEMENTED,
    **dict.fromkeys(("GetBestTrial", "ReadArtifact", "ReadTaskLog"), grpc.StatusCode.NOT_FOUND),
}
"""There is no best trial, no file and no log yet."""

_NO_GRPC = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",  # how TLS begins
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
)
_METADATA: list[list[tuple[str, Any]]] = [
    [("k", "v" * 100_000)],
    [(f"k{n}", "v") for n in range(5_000)],
    [("k-bin", b"\xff")],
]
EXAMPLES = 25
LONG_EXAMPLES = int(os.environ.get("NHOP_FUZZ_EXAMPLES", "300"))


def common(examples: int, **more: object) -> settings:
    """What happened before is on the server: examples are neither shrunk nor kept."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        **more,  # type: ignore[arg-type]
    )


@every_method
def test_hostile_messages(server: Server, path: str, method: MethodDescriptor) -> None:
    @common(EXAMPLES, derandomize=True)
    @given(attacks(path, method))
    def prop(messages: list[bytes]) -> None:
        attack(server, path, messages)

    prop()


@pytest.mark.faults
@pytest.mark.timeout(1800)
@every_method
def test_very_many_hostile_messages(server: Server, path: str, method: MethodDescriptor) -> None:
    number = int(os.environ.get("NHOP_FUZZ_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{path}: NHOP_FUZZ_SEED={number}, {LONG_EXAMPLES} examples")

    @seed(number)
    @common(LONG_EXAMPLES)
    @given(attacks(path, method))
    def prop(messages: list[bytes]) -> None:
        attack(server, path, messages)

    prop()


@every_method
def test_what_is_valid_is_granted(server: Server, path: str, method: MethodDescriptor) -> None:
    """Otherwise the other tests would say little."""
    code = attack(server, path, [message.SerializeToString() for message in valid(path, method)])
    assert code in (_OTHERWISE.get(method.name, grpc.StatusCode.OK), None)


@every_method
def test_messages_within_messages(server: Server, path: str, method: MethodDescriptor) -> None:
    for levels in (50, 99, 101, 10_000):
        for data in (nested(method.input_type, levels), groups(levels)):
            attack(server, path, [data])


@every_method
def test_messages_that_are_too_large(server: Server, path: str, method: MethodDescriptor) -> None:
    """By size, and by what they unpack to."""
    unknown = varint(1000 << 3 | 2)
    for size, options in ((64 << 20, {}), (16 << 20, {"compression": grpc.Compression.Gzip})):
        answer = server.call(path, [unknown + varint(size) + bytes(size)], timeout=DEADLINE, **options)
        server.judge(answer)
        assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED, answer.details


@every_method
def test_very_many_empty_elements(server: Server, path: str, method: MethodDescriptor) -> None:
    """Four megabytes of a repeated field: sixteen times as much in memory."""
    for data in stuffed(method.input_type, 4_000_000):
        for _ in range(3):
            attack(server, path, [data])


@every_method
def test_calls_with_too_few_or_too_many_messages(server: Server, path: str, method: MethodDescriptor) -> None:
    messages = [message.SerializeToString() for message in valid(path, method)]
    for sent in (messages * 5, messages[::-1], messages[1:]):
        answer = server.call(path, sent, OPEN_SECONDS)
        # A call without its one message is never answered by gRPC itself; the caller's deadline ends it.
        server.judge(answer, grpc.StatusCode.UNIMPLEMENTED)


@every_method
def test_a_call_that_is_cancelled(server: Server, path: str, method: MethodDescriptor) -> None:
    """At once, and in the middle of its messages."""
    messages = [message.SerializeToString() for message in valid(path, method)]
    for count in range(len(messages) + 1):
        server.cancel(path, messages[:count])


def stalled(server: Server, path: str, messages: list[bytes], wanted: grpc.StatusCode) -> None:
    """Sends these messages, then nothing, and does not half-close."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from messages
        over.wait(300)

    call = server.channel.stream_stream(path)(requests(), timeout=300)
    try:
        assert call.code() is wanted, call.details()
    finally:
        over.set()


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("server", ["agent"], indirect=True)
def test_streams_that_stall_are_ended(server: AgentServer) -> None:
    """Without a first message, and in the middle of a file: all at once, for they take their time."""
    paths = {method.name: path for path, method in server.methods.items() if method.client_streaming}
    del paths["ServerReflectionInfo"]
    wanted = [(path, [], grpc.StatusCode.INVALID_ARGUMENT) for path in paths.values()]
    for name in ("WriteArtifact", "PutBundle"):
        header = valid(paths[name], server.methods[paths[name]])[0].SerializeToString()
        (header,) = server.put_into([header], TRIAL, ADDRESSES, None)
        wanted.append((paths[name], [header], grpc.StatusCode.ABORTED))
    with ThreadPoolExecutor(len(wanted)) as pool:
        for running in [pool.submit(stalled, server, *each) for each in wanted]:
            running.result()
    server.wait_until_clean()


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_every_service_is_attacked(server: Server) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = server.call(path, [request.SerializeToString()])
    said = reflection_pb2.ServerReflectionResponse.FromString(answer.messages[0])
    served = {service.name for service in said.list_services_response.service}
    assert served == {path.split("/")[1] for path in server.methods}


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_what_is_no_grpc(server: Server) -> None:
    for data in _NO_GRPC:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(server.address.removeprefix("unix:"))
            with contextlib.suppress(OSError):
                connection.sendall(data * 100)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
        server.good()


@pytest.mark.parametrize("server", KINDS, indirect=True)
@pytest.mark.parametrize("metadata", _METADATA)
def test_metadata(server: Server, metadata: list[tuple[str, Any]]) -> None:
    path = next(path for path in server.methods if path.startswith("/nhop"))
    code = server.call(path, [b""], metadata=metadata).code
    assert code in (None, grpc.StatusCode.OK, *REFUSALS)


@pytest.mark.parametrize("server", KINDS, indirect=True)
@pytest.mark.parametrize("path", ["/", "/nhop.v1.AgentService/", "/nhop.v1.Nope/Nope", "/../x", "/x" * 2000])
def test_methods_that_are_none(server: Server, path: str) -> None:
    assert server.call(path, [b""]).code is grpc.StatusCode.UNIMPLEMENTED
