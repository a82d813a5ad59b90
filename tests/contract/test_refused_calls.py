"""Those who are let in, and ask for what is not theirs: refused and logged, and nothing has changed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from nhop.v1 import agent_pb2, types_pb2
from tests.certificates import AGENT, CLIENT, COORDINATOR, Office, trust
from tests.contract.harness import DEADLINE, attempt_id, is_kind, start_request, task_id
from tests.contract.secure import Caller, SecureAgent, end_of, refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
DENIED = grpc.StatusCode.PERMISSION_DENIED


class Scene:
    """An agent on which the owner's trial 1 runs, trial 2 is prepared; others who have certificates."""

    agent: SecureAgent

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.office = Office(folder)
        self.host = self.office.issue(AGENT, "host")
        self.owner = self.office.issue(COORDINATOR, "owner")
        self.other = self.office.issue(COORDINATOR, "other")
        self.client = self.office.issue(CLIENT, "owner")

    async def start(self) -> None:
        self.agent = await SecureAgent.start(self.folder, self.host, told_a_second=1000, check_seconds=0.2)

    async def work(self, owner: Caller) -> None:
        script = {"worker/0": {"runs_for": None, "log": "secret", "artifacts": {"a": "secret"}}}
        await owner.run(attempt_id(1), "worker/0", script=script)
        await owner.prepare(attempt_id(2), "worker/0", timeout=600.0)
        async with owner.follow() as stream:
            await stream.until(is_kind("report"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("scene"))
    await scene.start()
    try:
        async with scene.agent.called_by(scene.owner) as owner:
            await scene.work(owner)
        yield scene
    finally:
        await scene.agent.close()


@pytest_asyncio.fixture(loop_scope="module")
async def unchanged(scene: Scene) -> AsyncIterator[None]:
    """After the test both attempts are as they were, and their owner is served."""
    kept = scene.agent.kept()
    yield
    assert scene.agent.kept() == kept
    async with scene.agent.called_by(scene.owner) as owner:
        assert (await owner.inventory()).free_slots == 0
        await owner.prepare(attempt_id(2), "worker/0")  # it holds its lease still


# --- another coordinator's study ------------------------------------------------------------------

Attack = Callable[[Caller], Awaitable[grpc.aio.AioRpcError]]


def subscribed(caller: Caller, study: str, *, named: str = "") -> Any:
    """A stream whose subscription also names positions of an attempt of ``named``."""
    position = agent_pb2.Position(attempt=attempt_id(study=named), source="agent", sequence=99)
    return caller.follow(study, [position] if named else [])


async def subscribe(caller: Caller) -> grpc.aio.AioRpcError:
    async with subscribed(caller, "study") as stream:
        return await end_of(stream)


async def subscribe_with_positions(caller: Caller) -> grpc.aio.AioRpcError:
    async with subscribed(caller, "mine", named="study") as stream:
        return await end_of(stream)


async def acknowledge(caller: Caller) -> grpc.aio.AioRpcError:
    async with subscribed(caller, "mine") as stream:
        await stream.acknowledge(agent_pb2.Event(attempt=attempt_id(), source="agent", sequence=99))
        return await end_of(stream)


async def read_all(call: Any) -> list[Any]:
    return [part async for part in call]


async def write(caller: Caller, attempt: types_pb2.AttemptId) -> grpc.aio.AioRpcError:
    """Sends the header alone: a refusal in the middle of the content may get lost on its way."""
    artifact = types_pb2.Artifact(name="restore.npz", size=1)
    header = agent_pb2.ArtifactHeader(attempt=attempt, artifact=artifact)
    call = caller.stub.WriteArtifact(timeout=DEADLINE)
    await call.write(agent_pb2.WriteArtifactRequest(header=header))
    return await refusal(call)


ATTACKS: dict[str, Attack] = {
    "GetInventory": lambda c: refusal(
        c.stub.GetInventory(agent_pb2.GetInventoryRequest(study_ids=["mine", "study"]), timeout=DEADLINE)
    ),
    "PrepareAttempt": lambda c: refusal(c.prepare(attempt_id(3), "worker/0")),
    "PrepareAttempt, a newer one": lambda c: refusal(c.prepare(attempt_id(1, 2), "worker/0")),
    "StartAttempt": lambda c: refusal(
        c.stub.StartAttempt(
            start_request(attempt_id(2), [agent_pb2.TaskLease(task=task_id("worker/0"))]), timeout=DEADLINE
        )
    ),
    "StopAttempt": lambda c: refusal(c.stop(attempt_id(1))),
    "StopAttempt, prepared": lambda c: refusal(c.stop(attempt_id(2))),
    "StopAttempt, not known": lambda c: refusal(c.stop(attempt_id(9))),
    "StreamEvents": subscribe,
    "StreamEvents, positions": subscribe_with_positions,
    "StreamEvents, acknowledgement": acknowledge,
    "ReadLog": lambda c: refusal(
        read_all(c.stub.ReadLog(agent_pb2.ReadLogRequest(attempt=attempt_id(), task=task_id("worker/0"))))
    ),
    "ReadLog, followed": lambda c: refusal(
        read_all(
            c.stub.ReadLog(
                agent_pb2.ReadLogRequest(attempt=attempt_id(), task=task_id("worker/0"), follow=True)
            )
        )
    ),
    "ReadArtifact": lambda c: refusal(c.read(attempt_id(), "a")),
    "WriteArtifact": lambda c: write(c, attempt_id(2)),
}


async def test_every_method_that_names_a_study_is_tried() -> None:
    def names_a_study(message: Any, depth: int = 0) -> bool:
        return depth < 5 and any(
            field.name in ("study_id", "study_ids")
            or (field.message_type is not None and names_a_study(field.message_type, depth + 1))
            for field in message.fields
        )

    naming = {method.name for method in SERVICE.methods if names_a_study(method.input_type)}
    assert naming == {name.partition(",")[0] for name in ATTACKS}


@pytest.mark.parametrize("name", ATTACKS)
async def test_another_coordinators_study(scene: Scene, unchanged: None, name: str) -> None:
    before = len(scene.agent.log)
    async with scene.agent.called_by(scene.other) as caller:
        error = await ATTACKS[name](caller)
    assert error.code() is DENIED
    assert error.details() == "study 'study' is another coordinator's"
    method = f"/nhop.v1.AgentService/{name.partition(',')[0]}"
    await scene.agent.logs("refused", method, "127.0.0.1:", "(coordinator other)", "'study'", since=before)


async def test_a_refused_call_claims_nothing(scene: Scene, unchanged: None) -> None:
    request = agent_pb2.GetInventoryRequest(study_ids=["free", "study"])
    async with scene.agent.called_by(scene.other) as caller:
        await refusal(caller.stub.GetInventory(request, timeout=DEADLINE))
    async with scene.agent.called_by(scene.owner) as owner:
        await owner.stub.GetInventory(agent_pb2.GetInventoryRequest(study_ids=["free"]), timeout=DEADLINE)


async def test_a_stream_that_is_refused_is_gone(scene: Scene, unchanged: None) -> None:
    """Of an acknowledgement in the middle: nobody follows that study from then on."""
    async with scene.agent.called_by(scene.other) as caller:
        await acknowledge(caller)
        async with subscribed(caller, "mine") as stream:  # in its place, not beside it
            await stream.acknowledge()
            await caller.stub.GetInventory(
                agent_pb2.GetInventoryRequest(study_ids=["mine"]), timeout=DEADLINE
            )
    assert "Traceback" not in scene.agent.log


async def test_the_owner_is_known_after_the_agent_was_killed(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.start()
    async with scene.agent.called_by(scene.owner) as owner:
        await owner.run(attempt_id(), "worker/0", script={"worker/0": {"log": "secret"}})
        await owner.events(attempt_id())  # not acknowledged: it is kept
    await scene.agent.kill()
    await scene.start()
    try:
        kept = scene.agent.kept()
        async with scene.agent.called_by(scene.other) as caller:
            for name in ("StreamEvents", "ReadLog", "StopAttempt", "GetInventory", "PrepareAttempt"):
                assert (await ATTACKS[name](caller)).code() is DENIED, name
        assert scene.agent.kept() == kept
        async with scene.agent.called_by(scene.owner) as owner:
            assert await owner.events(attempt_id())
    finally:
        await scene.agent.close()


# --- wrong roles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_a_client_at_an_agent(scene: Scene, unchanged: None, method: str) -> None:
    before = len(scene.agent.log)
    async with scene.agent.called_by(scene.client) as caller:
        described = SERVICE.methods_by_name[method]
        kind = "unary_unary" if not described.client_streaming else "stream_unary"
        call = getattr(caller.channel, kind)(f"/nhop.v1.AgentService/{method}")
        error = await refusal(call(b"" if kind == "unary_unary" else iter([b""]), timeout=DEADLINE))
    assert error.code() is DENIED
    assert "not for a certificate of role client" in (error.details() or "")
    path = f"/nhop.v1.AgentService/{method}"
    await scene.agent.logs("refused", path, "127.0.0.1:", "(client owner)", since=before)


async def test_a_certificate_without_a_role(scene: Scene, unchanged: None) -> None:
    """Signed by our authority, and for calling; its names only look like a role."""
    from cryptography import x509

    place = scene.office.issue(COORDINATOR, "owner")
    names = [x509.DNSName("nhop://coordinator/owner"), x509.RFC822Name("nhop://coordinator/owner")]
    sign_anew(scene.office, place, names)
    before = len(scene.agent.log)
    async with scene.agent.called_by(place) as caller:
        error = await refusal(caller.inventory())
    assert error.code() is DENIED
    await scene.agent.logs("GetInventory", "the certificate has no role of NHOP", since=before)


def sign_anew(office: Office, place: Path, names: list[Any]) -> None:
    """Gives the certificate in a folder other names."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    own = x509.load_pem_x509_certificate((place / "tls.crt").read_bytes())
    builder = x509.CertificateBuilder(
        issuer_name=own.issuer,
        subject_name=own.subject,
        public_key=own.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=own.not_valid_before_utc,
        not_valid_after=own.not_valid_after_utc,
    ).add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(office.authority.key, hashes.SHA256())
    (place / "tls.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


# --- an authority that is not trusted any more ----------------------------------------------------


async def test_who_loses_its_authority_is_out_at_once(tmp_path: Path) -> None:
    """Also on a connection that was open before, in calls and in streams."""
    scene = Scene(tmp_path / "old")
    new = Office(tmp_path / "new")
    trust(scene.owner, scene.office, new)
    await scene.start()
    try:
        async with scene.agent.called_by(scene.owner) as caller, caller.follow() as stream:
            await caller.run(attempt_id(), "worker/0", script={"worker/0": {"runs_for": None}})
            await stream.until(is_kind("report"))
            shutil.copytree(new.issue(AGENT, "host"), scene.host, dirs_exist_ok=True)
            await scene.agent.logs("was read again")
            error = await refusal(caller.inventory())
            assert error.code() is DENIED
            assert "is not trusted any more" in (error.details() or "")
            await stream.acknowledge()
            assert (await end_of(stream)).code() is DENIED
            await scene.agent.logs("refused /nhop.v1.AgentService/StreamEvents", "not trusted any more")
        async with scene.agent.called_by(new.issue(COORDINATOR, "owner")) as successor:
            assert (await successor.inventory()).free_slots == 1
            assert await successor.stop(attempt_id())  # the same name: the study is its own
    finally:
        await scene.agent.close()
