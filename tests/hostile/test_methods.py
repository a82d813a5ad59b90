"""Whatever a method is sent: a clear status, no defect, nothing left, and the server goes on."""

from __future__ import annotations

import os
import random

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.hostile.attack import attack, attacks, valid
from tests.hostile.messages import groups, nested, stuffed, varint
from tests.hostile.servers import DEADLINE, KINDS, OPEN_SECONDS, Server

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

EXAMPLES = 60
LONG_EXAMPLES = int(os.environ.get("NHOP_FUZZ_EXAMPLES", "3000"))


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
