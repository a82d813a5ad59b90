"""Those whom TLS itself keeps out: refused, logged with the peer, nothing changed, and others are served."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from nhop.security.refusals import tls_problem
from nhop.v1 import agent_pb2
from tests.certificates import AGENT, CLIENT, COORDINATOR, Office, credentials, trust, with_authority_of
from tests.contract.harness import DEADLINE, attempt_id, is_kind
from tests.contract.secure import PREFACE, SecureAgent, Stranger, refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Scene:
    """An agent with an attempt that runs, its authority, and another authority of the same name."""

    agent: SecureAgent

    def __init__(self, folder: Path) -> None:
        self.office = Office(folder / "ours")
        self.other = Office(folder / "others")
        self.coordinator = self.office.issue(COORDINATOR, "owner")

    @property
    def stranger(self) -> Stranger:
        return Stranger(self.agent.port, self.coordinator / "ca.crt")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    scene = Scene(folder)
    scene.agent = await SecureAgent.start(folder, scene.office.issue(AGENT, "host"), told_a_second=1000)
    try:
        async with scene.agent.called_by(scene.coordinator) as owner:
            await owner.run(attempt_id(), "worker/0", script={"worker/0": {"runs_for": None}})
            async with owner.follow() as stream:
                await stream.until(is_kind("report"))
        yield scene
    finally:
        await scene.agent.close()


@pytest_asyncio.fixture(loop_scope="module")
async def unchanged(scene: Scene) -> AsyncIterator[None]:
    """After the test the agent has what it had before, and serves its coordinator."""
    kept = scene.agent.kept()
    yield
    assert scene.agent.kept() == kept
    async with scene.agent.called_by(scene.coordinator) as owner:
        assert (await owner.inventory()).free_slots == 1


Certificates = Callable[[Scene], Path]

CALLERS: dict[str, tuple[Certificates, str]] = {
    "another authority": (
        lambda s: with_authority_of(s.other.issue(COORDINATOR, "owner"), s.office),
        "its certificate is of another authority",
    ),
    "an expired certificate": (lambda s: s.office.expired(COORDINATOR), "its certificate has expired"),
    "a certificate of tomorrow": (
        lambda s: s.office.not_yet_valid(COORDINATOR),
        "its certificate is not valid yet",
    ),
    "an agent": (lambda s: s.office.issue(AGENT, "host"), "its certificate is not for calling"),
}


@pytest.mark.parametrize("who", CALLERS)
async def test_a_caller_who_does_not_belong(scene: Scene, unchanged: None, who: str) -> None:
    certificates, reason = CALLERS[who]
    before = len(scene.agent.log)
    async with scene.agent.called_by(certificates(scene)) as caller:
        error = await refusal(caller.inventory())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "its log says why" in tls_problem(error.details() or "", tls=True)
    await scene.agent.logs("refused a connection from 127.0.0.1:", reason, since=before)


async def test_a_caller_without_a_certificate(scene: Scene, unchanged: None) -> None:
    before = len(scene.agent.log)
    authority = (scene.coordinator / "ca.crt").read_bytes()
    async with grpc.aio.secure_channel(
        scene.agent.address, grpc.ssl_channel_credentials(authority)
    ) as channel:
        call: Any = channel.unary_unary("/nhop.v1.AgentService/GetInventory")
        assert (await refusal(call(b"", timeout=DEADLINE))).code() is grpc.StatusCode.UNAVAILABLE
    await scene.agent.logs("refused a connection", "it showed no certificate", since=before)


async def test_plaintext(scene: Scene, unchanged: None) -> None:
    before = len(scene.agent.log)
    error = await refusal(scene.agent.inventory())  # its own channel has no TLS
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "it speaks TLS, probably" in tls_problem(error.details() or "", tls=False)
    await scene.agent.logs("refused a connection", "it does not speak TLS", since=before)


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
)


@pytest.mark.parametrize("data", [PREFACE, UPGRADE, b"\0" * 100], ids=["h2c", "upgrade", "zeros"])
async def test_plain_bytes(scene: Scene, unchanged: None, data: bytes) -> None:
    before = len(scene.agent.log)
    assert scene.stranger.send(data) == b""
    await scene.agent.logs("refused a connection", "it does not speak TLS", since=before)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_an_old_version_of_tls(scene: Scene, unchanged: None, newest: ssl.TLSVersion) -> None:
    before = len(scene.agent.log)
    with pytest.raises(OSError):
        scene.stranger.connect(scene.stranger.context(scene.coordinator, newest=newest))
    await scene.agent.logs("refused a connection", "an old version of TLS", since=before)


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)], ids=["none", "http/1.1"])
async def test_tls_that_does_not_ask_for_http2(scene: Scene, unchanged: None, alpn: tuple[str, ...]) -> None:
    before = len(scene.agent.log)
    with pytest.raises(OSError):
        scene.stranger.connect(scene.stranger.context(scene.coordinator, alpn=alpn))
    await scene.agent.logs("refused a connection", "does not ask for HTTP/2", since=before)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_no_session_is_resumed(scene: Scene, unchanged: None, newest: ssl.TLSVersion) -> None:
    context = scene.stranger.context(scene.coordinator, newest=newest)
    session, _ = scene.stranger.connect(context)
    assert session is not None
    assert session.has_ticket
    _, reused = scene.stranger.connect(context, session)
    assert not reused


async def test_the_name_that_a_stranger_asks_for_does_not_write_the_log(
    scene: Scene, unchanged: None
) -> None:
    forged = (
        b"x\n\x1b[31mWARNING: all is well\n"
        b"I1127 13:39:18.834579   11011 handshaker.cc:155] CallNextHandshakerLocked: error=U: Ssl handshake "
        b"failed (x): y\n shutdown=endpoint_peer_address=ipv4:6.6.6.6:1, "
        b"grpc.internal.server_credentials=0x1\nz"
    )
    placeholder = ".".join(["a" * 60] * 5)[: len(forged)]
    outgoing = ssl.MemoryBIO()
    context = scene.stranger.context(scene.coordinator)
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=placeholder)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    hello = outgoing.read()
    assert placeholder.encode() in hello
    before = len(scene.agent.log)
    assert scene.stranger.send(hello.replace(placeholder.encode(), forged))
    await scene.agent.logs("written to stderr: z", since=before)
    log = scene.agent.log[before:]
    assert "6.6.6.6" not in log
    assert "\x1b" not in log
    assert all("nhop-agent" in line or "WARNING" in line[:40] for line in log.splitlines()), log


async def test_many_refusals_are_counted(scene: Scene, tmp_path: Path) -> None:
    agent = await SecureAgent.start(tmp_path, scene.office.issue(AGENT, "host"))
    try:
        stranger = Stranger(agent.port, scene.coordinator / "ca.crt")
        async with asyncio.timeout(DEADLINE):
            while "more connections were refused within a second" not in agent.log:
                for _ in range(20):
                    stranger.send(PREFACE)
                await asyncio.sleep(0.05)
    finally:
        await agent.close()


# --- what a caller finds wrong with an agent ----------------------------------------------------


AGENTS: dict[str, tuple[Certificates, str]] = {
    "another authority": (lambda s: s.other.issue(AGENT, "host"), "of another authority than our ca.crt"),
    "an expired certificate": (lambda s: s.office.expired(AGENT, "host"), "its certificate has expired"),
    "a certificate of tomorrow": (
        lambda s: s.office.not_yet_valid(AGENT, "host"),
        "its certificate is not valid yet",
    ),
    "another host's": (
        lambda s: s.office.issue(AGENT, "host", "10.9.8.7", "gpu-9"),
        "its certificate is not for that name",
    ),
    "a client's": (lambda s: s.office.issue(CLIENT, "eve"), "that of a client, not of a server"),
}


@pytest.mark.parametrize("who", AGENTS)
async def test_a_server_that_does_not_belong(scene: Scene, who: str) -> None:
    certificates, reason = AGENTS[who]
    folder = certificates(scene)
    trust(folder, scene.office)
    key, certificate, authority = ((folder / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt"))
    server = grpc.aio.server()
    seen: list[bytes] = []

    async def answer(request: bytes, context: Any) -> bytes:
        seen.append(request)
        return b""

    methods = {"GetInventory": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("nhop.v1.AgentService", methods),))
    server_credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
    port = server.add_secure_port("127.0.0.1:0", server_credentials)
    await server.start()
    try:
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials(scene.coordinator))
        async with channel:
            call: Any = channel.unary_unary("/nhop.v1.AgentService/GetInventory")
            request = agent_pb2.GetInventoryRequest(study_ids=["secret"]).SerializeToString()
            error = await refusal(call(request, timeout=DEADLINE))
    finally:
        await server.stop(None)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason in tls_problem(error.details() or "", tls=True)
    assert seen == []
