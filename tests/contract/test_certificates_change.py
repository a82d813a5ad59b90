"""Certificates that are replaced, or end, while a study goes on: nobody has to be started anew."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from coordinator.agent_link import AgentLink
from coordinator.hosts import AgentAddress
from coordinator.link_errors import HostUnreachableError
from nhop.security.client import ClientTls
from nhop.security.errors import CertificateError
from nhop.security.identity import Role
from tests.certificates import AGENT, COORDINATOR, Office, trust, utc_now
from tests.contract.harness import DEADLINE, attempt_id, is_kind
from tests.contract.secure import Caller, SecureAgent


class Scene:
    """An agent, and the link of a coordinator to it, which follows its certificate only when told to."""

    agent: SecureAgent
    tls: ClientTls
    link: AgentLink

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.office = Office(folder / "old")
        self.new = Office(folder / "new")
        self.host = self.office.issue(AGENT, "host")
        self.owner = self.office.issue(COORDINATOR, "owner")

    @contextlib.asynccontextmanager
    async def set(self) -> AsyncIterator[Scene]:
        self.agent = await SecureAgent.start(self.folder, self.host, check_seconds=0.2)
        self.tls = ClientTls(self.owner, Role.COORDINATOR)
        self.link = AgentLink(AgentAddress(self.agent.address), tls=self.tls)
        try:
            yield self
        finally:
            await self.link.close()
            await self.agent.close()

    @contextlib.asynccontextmanager
    async def training(self) -> AsyncIterator[Caller]:
        """While an attempt runs whose events are followed; at the end it is stopped by the same caller."""
        async with self.agent.called_by(self.owner) as caller, caller.follow() as stream:
            await caller.run(attempt_id(), "worker/0", script={"worker/0": {"runs_for": None}})
            await stream.until(is_kind("report"))
            yield caller
            async with self.agent.called_by(self.owner) as other:
                assert await other.stop(attempt_id())
            await stream.until(is_kind("attempt_ended"))  # on the connection of before

    def renew_link(self) -> None:
        """As ``Fleet`` does when the coordinator's folder has changed."""
        assert self.tls.rotation.look()
        self.link.renew()

    async def shown_serial(self) -> int:
        """Of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cafile=str(self.host / "ca.crt"))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection("127.0.0.1", self.agent.port, ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with Scene(tmp_path).set() as scene:
        yield scene


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes()).serial_number


async def test_an_agents_certificate_is_replaced_while_it_works(scene: Scene) -> None:
    async with scene.training():
        assert await scene.shown_serial() == serial(scene.host)
        scene.office.issue(AGENT, "host", place=scene.host, days=200)
        await scene.agent.logs("was read again")
        assert await scene.shown_serial() == serial(scene.host)
        found = await scene.link.inventory()
        assert found.certificate_left is not None
        assert found.certificate_left < 200 * 86_400
        assert not found.certificate_ends_soon
        length = len(scene.agent.log)
        begun = datetime.timedelta(days=30)
        scene.office.issue(AGENT, "host", place=scene.host, days=31, begun=begun)
        await scene.agent.logs("was read again", since=length)
        assert (await scene.link.inventory()).certificate_ends_soon


async def test_a_coordinators_certificate_is_replaced_while_it_works(scene: Scene) -> None:
    await scene.link.inventory()
    async with scene.training():
        before = scene.link.stub
        scene.office.issue(COORDINATOR, "owner", place=scene.owner)
        scene.renew_link()
        assert scene.link.stub is not before
        await scene.link.inventory()


async def test_an_authority_is_replaced_while_both_work(scene: Scene) -> None:
    """First everybody trusts both, then certificates are of the new one, then the old one goes."""
    async with scene.training():
        for place in (scene.host, scene.owner):
            trust(place, scene.office, scene.new)
        await scene.agent.logs("was read again")
        scene.renew_link()
        await scene.link.inventory()
        for role, name, place in ((AGENT, "host", scene.host), (COORDINATOR, "owner", scene.owner)):
            length = len(scene.agent.log)
            scene.new.issue(role, name, place=place)
            trust(place, scene.office, scene.new)
            if role is AGENT:
                await scene.agent.logs("was read again", since=length)
            else:
                scene.renew_link()
            await scene.link.inventory()
    length = len(scene.agent.log)
    for place in (scene.host, scene.owner):
        trust(place, scene.new)
    await scene.agent.logs("was read again", since=length)
    scene.renew_link()
    await scene.link.inventory()
    stranger = AgentLink(
        AgentAddress(scene.agent.address),
        tls=ClientTls(scene.office.issue(COORDINATOR, "owner"), COORDINATOR),
    )
    try:
        with pytest.raises(HostUnreachableError, match=r"of another authority than our ca\.crt"):
            await stranger.inventory()
    finally:
        await stranger.close()


async def test_half_of_new_files_changes_nothing(scene: Scene) -> None:
    before = serial(scene.host)
    other = scene.office.issue(AGENT, "host")
    (scene.host / "tls.key").write_bytes((other / "tls.key").read_bytes())
    await scene.agent.logs("new certificates cannot be used, the earlier ones stay", "is not the key of")
    assert await scene.shown_serial() == before
    await scene.link.inventory()
    (scene.host / "tls.crt").write_bytes((other / "tls.crt").read_bytes())
    await scene.agent.logs("was read again")
    assert await scene.shown_serial() == serial(other)


async def wait_until(end: datetime.datetime) -> None:
    await asyncio.sleep(max(0.0, (end - utc_now()).total_seconds()) + 0.1)


async def test_a_coordinators_certificate_ends_while_it_works(scene: Scene) -> None:
    """It goes on with the connection that it has; no new one is let in, until it is renewed."""
    scene.office.issue(
        COORDINATOR, "owner", place=scene.owner, begun=datetime.timedelta(days=1, seconds=-6), days=1
    )
    scene.renew_link()
    await scene.link.inventory()
    end = scene.tls.rotation.files.end
    async with scene.agent.called_by(scene.owner) as caller, caller.follow() as stream:
        await caller.run(attempt_id(), "worker/0", script={"worker/0": {"runs_for": None}})
        await stream.until(is_kind("report"))
        kept = scene.agent.kept()
        await wait_until(end)
        await scene.link.inventory()
        assert "has expired" in scene.tls.rotation.expiry_notice()
        with pytest.raises(CertificateError, match=r"has expired on .*; issue it again"):
            ClientTls(scene.owner, Role.COORDINATOR)
        async with scene.agent.called_by(scene.owner) as late:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await late.stop(attempt_id())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await scene.agent.logs("refused a connection from 127.0.0.1:", "its certificate has expired")
        assert scene.agent.kept() == kept
        scene.office.issue(COORDINATOR, "owner", place=scene.owner)
        scene.renew_link()
        await scene.link.inventory()
        assert await caller.stop(attempt_id())
        await stream.until(is_kind("attempt_ended"))


async def test_an_agents_certificate_ends_while_it_works(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.office.issue(AGENT, "host", place=scene.host, begun=datetime.timedelta(days=1, seconds=-6), days=1)
    end = x509.load_pem_x509_certificate((scene.host / "tls.crt").read_bytes()).not_valid_after_utc
    async with scene.set():
        await scene.agent.logs("the certificate in", "ends on", "issue it again")
        await scene.link.inventory()
        await wait_until(end)
        await scene.link.inventory()
        late = AgentLink(AgentAddress(scene.agent.address), tls=scene.tls)
        try:
            with pytest.raises(HostUnreachableError, match="its certificate has expired; nhop-coordinator"):
                await late.inventory()
            scene.office.issue(AGENT, "host", place=scene.host)
            await scene.agent.logs("was read again")
            async with asyncio.timeout(DEADLINE):
                while True:
                    with contextlib.suppress(HostUnreachableError):
                        await late.inventory()
                        break
        finally:
            await late.close()
