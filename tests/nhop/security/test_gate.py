"""The gate on a real server: each kind of handler, roles, limits, owners, streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import agent.server
import coordinator.service
from nhop.security import gate as gate_module
from nhop.security.gate import EVERY_ROLE, Gate, studies_named
from nhop.security.identity import Identity, Role
from nhop.security.rotation import Rotation
from nhop.security.server import Trusted, server_credentials
from nhop.v1 import agent_pb2, study_pb2
from tests.certificates import AGENT, CLIENT, COORDINATOR, Office, credentials
from tests.contract.harness import DEADLINE
from tests.contract.secure import refusal

SERVICE = "test.Service"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Owner:
    """Refuses one study; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def refuse(self, caller: Identity, studies: Sequence[str]) -> str:
        self.asked.append(list(studies))
        return "it is another's" if "theirs" in studies else ""


class Handlers:
    """A method of each kind, that ends once ``open`` is set; what they have seen."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.seen: list[Any] = []
        self.running = 0
        self.fails = False

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        self.running += 1
        try:
            await self.open.wait()
            if self.fails:
                raise RuntimeError("a defect")
            yield
        finally:
            self.running -= 1

    async def unary_unary(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        async with self._call():
            return request

    async def unary_stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.seen.append(request)
        yield request
        async with self._call():
            yield request

    async def stream_unary(self, requests: AsyncIterator[Any], context: Any) -> Any:
        async with self._call():
            last = None
            async for last in requests:
                self.seen.append(last)
            return last

    async def stream_stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self.seen.append(request)
            yield request
        async with self._call():
            pass

    async def written_stream(self, request: Any, context: Any) -> None:
        """As the health service's Watch: by writing to the context."""
        self.seen.append(request)
        await context.write(request)
        async with self._call():
            await context.write(request)


class Scene:
    """A server behind a gate, with TLS or without, and its callers."""

    address: str

    def __init__(self, office: Office) -> None:
        self.office = office
        self.said: list[str] = []
        self.handlers = Handlers()
        self.owners = Owner()
        self.coordinator = office.issue(COORDINATOR, "alice")

    @contextlib.asynccontextmanager
    async def serving(self, roles: Any = None, *, tls: bool = True) -> AsyncIterator[Scene]:
        rotation = Rotation(self.office.issue(AGENT), AGENT)
        self.gate = Gate(
            ({SERVICE: frozenset({COORDINATOR})} if roles is None else roles) if tls else None,
            self.said.append,
            self.owners,
            Trusted(rotation),
        )
        server = grpc.aio.server(interceptors=[self.gate])
        methods = {}
        for kind in (*KINDS, "written_stream"):
            make = getattr(grpc, f"{kind.replace('written', 'unary')}_rpc_method_handler")
            parse, text = agent_pb2.Subscribe.FromString, agent_pb2.Subscribe.SerializeToString
            methods[kind] = make(getattr(self.handlers, kind), parse, text)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        watching: Any = health
        health_pb2_grpc.add_HealthServicer_to_server(watching.aio.HealthServicer(), server)
        if tls:
            port = server.add_secure_port("127.0.0.1:0", server_credentials(rotation))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield self
        finally:
            self.handlers.open.set()
            await server.stop(None)

    @contextlib.asynccontextmanager
    async def channel(self, folder: Path | None) -> AsyncIterator[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        if folder is None:
            channel = grpc.aio.insecure_channel(self.address, options=options)
        else:
            channel = grpc.aio.secure_channel(self.address, credentials(folder), options=options)
        async with channel:
            yield channel

    def call(self, channel: grpc.aio.Channel, kind: str, *studies: str) -> Any:
        """A call of a method; ``studies``: one a message."""
        make = getattr(channel, kind.replace("written", "unary"))
        method = make(
            f"/{SERVICE}/{kind}", agent_pb2.Subscribe.SerializeToString, agent_pb2.Subscribe.FromString
        )
        messages = [agent_pb2.Subscribe(study_id=study) for study in studies or ("mine",)]
        return method(iter(messages) if kind.startswith("stream") else messages[0], timeout=DEADLINE)

    @property
    def under_way(self) -> int:
        return sum(calls.total() for calls in self.gate._calls.values())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110  (of what gRPC does, there is no event)
                await asyncio.sleep(0.005)


async def answers(call: Any, kind: str) -> list[Any]:
    return [each async for each in call] if kind.endswith("stream") else [await call]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@pytest.fixture
async def scene(office: Office) -> AsyncIterator[Scene]:
    async with Scene(office).serving() as scene:
        yield scene


ALL = (*KINDS, "written_stream")

# --- each kind of handler -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
async def test_who_may_is_let_through(scene: Scene, kind: str) -> None:
    async with scene.channel(scene.coordinator) as channel:
        assert (await answers(scene.call(channel, kind), kind))[-1].study_id == "mine"
    await scene.until(lambda: scene.under_way == 0)
    assert scene.said == []


@pytest.mark.parametrize("kind", ALL)
async def test_another_role_is_refused(scene: Scene, kind: str) -> None:
    async with scene.channel(scene.office.issue(CLIENT, "eve")) as channel:
        error = await refusal(answers(scene.call(channel, kind), kind))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == f"{kind} is not for a certificate of role client (for: coordinator)"
    assert scene.handlers.seen == []
    (line,) = scene.said
    assert line.startswith(f"refused /{SERVICE}/{kind} to 127.0.0.1:")
    assert "(client eve)" in line
    assert scene.under_way == 0


@pytest.mark.parametrize("kind", ALL)
async def test_another_study_is_refused(scene: Scene, kind: str) -> None:
    async with scene.channel(scene.coordinator) as channel:
        error = await refusal(answers(scene.call(channel, kind, "theirs"), kind))
    assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "it is another's")
    assert scene.handlers.seen == []
    await scene.until(lambda: scene.under_way == 0)


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_another_study_in_the_middle_of_a_stream(scene: Scene, kind: str) -> None:
    async with scene.channel(scene.coordinator) as channel:
        error = await refusal(answers(scene.call(channel, kind, "mine", "mine", "theirs", "mine"), kind))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert [each.study_id for each in scene.handlers.seen] == ["mine", "mine"]
    assert len(scene.said) == 1
    await scene.until(lambda: scene.under_way == 0 and scene.handlers.running == 0)


async def test_a_service_that_nobody_was_thought_of_for(office: Office) -> None:
    roles = {"another.Service": EVERY_ROLE}
    async with Scene(office).serving(roles) as scene, scene.channel(scene.coordinator) as channel:
        error = await refusal(scene.call(channel, "unary_unary"))
    assert error.details() == "unary_unary is not for a certificate of role coordinator (for: nobody)"


async def test_a_method_that_differs_from_its_service(office: Office) -> None:
    roles = {SERVICE: frozenset({CLIENT}), f"/{SERVICE}/unary_unary": frozenset({COORDINATOR})}
    async with Scene(office).serving(roles=roles) as scene, scene.channel(scene.coordinator) as channel:
        await scene.call(channel, "unary_unary")
        error = await refusal(scene.call(channel, "stream_unary"))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_method_that_is_not_there(scene: Scene) -> None:
    async with scene.channel(scene.coordinator) as channel:
        error = await refusal(channel.unary_unary(f"/{SERVICE}/other")(b"", timeout=DEADLINE))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_without_tls_nobody_is_known_and_nothing_is_owned(office: Office) -> None:
    async with Scene(office).serving(tls=False) as scene, scene.channel(None) as channel:
        await scene.call(channel, "unary_unary", "theirs")
    assert scene.owners.asked == []


async def test_the_health_service_can_be_watched_by_everybody(office: Office) -> None:
    async with Scene(office).serving(roles={health.SERVICE_NAME: EVERY_ROLE}) as scene:
        async with scene.channel(scene.office.issue(CLIENT)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            call = stub.Watch(health_pb2.HealthCheckRequest(service="x"))
            assert (await asyncio.wait_for(call.read(), DEADLINE)).status
            call.cancel()
        await scene.until(lambda: scene.under_way == 0)


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [True, False])
async def test_calls_at_once_are_limited_and_counted_down(
    office: Office, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(gate_module, "CALLS_AT_ONCE", 3)
    async with Scene(office).serving(tls=tls) as scene:
        scene.handlers.open.clear()
        folder = scene.coordinator if tls else None
        async with scene.channel(folder) as channel:
            calls = [scene.call(channel, "unary_unary") for _ in range(3)]
            await scene.until(lambda: scene.handlers.running == 3)
            error = await refusal(scene.call(channel, "unary_stream").read())
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "3 calls of this peer are under way already"
            assert "refused /test.Service/unary_stream to 127.0.0.1:" in scene.said[0]
            scene.handlers.open.set()
            await asyncio.gather(*calls)
            await scene.call(channel, "unary_unary")
        await scene.until(lambda: scene.gate._calls == {})


async def test_each_holder_has_calls_of_its_own(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "CALLS_AT_ONCE", 1)
    async with Scene(office).serving() as scene:
        scene.handlers.open.clear()
        async with (
            scene.channel(scene.coordinator) as one,
            scene.channel(office.issue(COORDINATOR, "bob")) as other,
        ):
            first = scene.call(one, "unary_unary")
            await scene.until(lambda: scene.handlers.running == 1)
            second = scene.call(other, "unary_unary")
            await scene.until(lambda: scene.handlers.running == 2)
            scene.handlers.open.set()
            await asyncio.gather(first, second)


@pytest.mark.parametrize("tls", [True, False])
async def test_connections_at_once_are_limited(
    office: Office, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(gate_module, "CONNECTIONS_AT_ONCE", 2)
    async with Scene(office).serving(tls=tls) as scene, contextlib.AsyncExitStack() as stack:
        scene.handlers.open.clear()
        folder = scene.coordinator if tls else None
        channels = [await stack.enter_async_context(scene.channel(folder)) for _ in range(3)]
        calls = [scene.call(channel, "unary_unary") for channel in channels[:2]]
        await scene.until(lambda: scene.handlers.running == 2)
        error = await refusal(scene.call(channels[2], "unary_unary"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "2 connections of this peer are in use already"
        scene.handlers.open.set()
        await asyncio.gather(*calls)
        await scene.call(channels[2], "unary_unary")


@pytest.mark.parametrize("kind", ALL)
async def test_calls_that_fail_are_counted_down(scene: Scene, kind: str) -> None:
    scene.handlers.fails = True
    async with scene.channel(scene.coordinator) as channel:
        error = await refusal(answers(scene.call(channel, kind), kind))
    assert error.code() is grpc.StatusCode.UNKNOWN
    await scene.until(lambda: scene.gate._calls == {})


@pytest.mark.parametrize("kind", ALL)
async def test_calls_that_are_cancelled_are_counted_down(scene: Scene, kind: str) -> None:
    scene.handlers.open.clear()
    async with scene.channel(scene.coordinator) as channel:
        call = scene.call(channel, kind)
        await scene.until(lambda: scene.handlers.running == 1)
        assert scene.under_way == 1
        call.cancel()
        await scene.until(lambda: scene.gate._calls == {} and scene.handlers.running == 0)


async def test_calls_of_a_connection_that_breaks_are_counted_down(scene: Scene) -> None:
    scene.handlers.open.clear()
    async with scene.channel(scene.coordinator) as channel:
        call = scene.call(channel, "stream_stream")
        await call.read()
        await scene.until(lambda: scene.handlers.running == 1)
    await scene.until(lambda: scene.gate._calls == {} and scene.handlers.running == 0)


# --- the tables of both services ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "service", "allowed"),
    [
        (agent.server.ROLES, agent_pb2.DESCRIPTOR.services_by_name["AgentService"], {COORDINATOR}),
        (coordinator.service.ROLES, study_pb2.DESCRIPTOR.services_by_name["StudyService"], {CLIENT}),
    ],
)
def test_every_method_has_its_role(roles: Any, service: Any, allowed: set[Role]) -> None:
    assert service.methods
    for method in service.methods:
        for role in Role:
            if role in allowed:
                gate_module._check_role(roles, f"/{service.full_name}/{method.name}", Identity(role, "a"))
            else:
                with pytest.raises(gate_module.RefusedError):
                    gate_module._check_role(roles, f"/{service.full_name}/{method.name}", Identity(role, "a"))
    with pytest.raises(gate_module.RefusedError, match="no role"):
        gate_module._check_role(roles, f"/{service.full_name}/x", None)


# --- studies in requests --------------------------------------------------------------------------


def requests() -> Iterator[Descriptor]:
    for service in agent_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            yield method.input_type


def filled(descriptor: Descriptor, names: list[str]) -> Iterator[Message]:
    """Messages of a type with a study named in one place each; ``names`` are the places."""
    from google.protobuf import message_factory

    def places(of: Descriptor, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for field in of.fields:
            if field.name in ("study_id", "study_ids"):
                yield (*path, field.name)
            elif field.message_type is not None and len(path) < 5:
                yield from places(field.message_type, (*path, field.name))

    for place in places(descriptor, ()):
        message = here = message_factory.GetMessageClass(descriptor)()
        for name in place[:-1]:
            value = getattr(here, name)
            here = value if isinstance(value, Message) else value.add()
        if place[-1] == "study_ids":
            here.study_ids.extend(["one", "two"])
        else:
            here.study_id = "one"
        names.append(".".join(place))
        yield message


def test_studies_are_found_wherever_a_request_names_them() -> None:
    names: list[str] = []
    for descriptor in requests():
        for message in filled(descriptor, names):
            found = list(studies_named(message))
            assert found == (["one", "two"] if names[-1].endswith("ids") else ["one"]), names[-1]
    assert set(names) == {
        "study_ids",
        "attempt.study_id",
        "subscribe.study_id",
        "subscribe.positions.attempt.study_id",
        "acknowledge.positions.attempt.study_id",
        "header.attempt.study_id",
    }


def test_several_studies_in_a_request() -> None:
    request = agent_pb2.StreamEventsRequest()
    request.acknowledge.positions.add().attempt.study_id = "one"
    request.acknowledge.positions.add().attempt.study_id = "two"
    assert list(studies_named(request)) == ["one", "two"]


def test_what_names_none() -> None:
    assert list(studies_named(agent_pb2.CheckReachRequest())) == []
    assert list(studies_named(agent_pb2.PutBundleRequest(data=b"x"))) == []
    assert list(studies_named(b"bytes")) == []
