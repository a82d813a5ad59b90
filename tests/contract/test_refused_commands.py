"""What users are told, in one line and with which exit status, where a certificate is not the right one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

import nhop
from nhop.client import CoordinatorError
from nhop.v1 import study_pb2
from tests.certificates import AGENT, CLIENT, COORDINATOR, Office, credentials, with_authority_of
from tests.contract.harness import DEADLINE, ROOT, RealAgent
from tests.contract.secure import SecureAgent, refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 60.0
WAIT = "0.5"
SERVICE = study_pb2.DESCRIPTOR.services_by_name["StudyService"]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


async def start(*words: object, cwd: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *map(str, words)),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def command(*words: object, cwd: Path) -> Done:
    process = await start(*words, cwd=cwd)
    try:
        async with asyncio.timeout(LIMIT):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


class Scene:
    agent: SecureAgent
    plain: RealAgent

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.office = Office(folder / "ours")
        self.other = Office(folder / "others")
        self.coordinator = self.office.issue(COORDINATOR, "owner")

    async def study(self, *options: object, agent: RealAgent | None = None) -> Done:
        """Tries to run one on an agent."""
        hosts = self.folder / "hosts.txt"
        hosts.write_text(f"{(agent or self.agent).address}\n")
        output = self.folder / "out"
        done = await command(
            *("coordinator", "with", "opt_stages=[[10,1]]", "cluster={ps: 0, workers: 1}"),
            *("--hosts", hosts, "--wait-hosts", WAIT, "--output", output, *options),
            cwd=self.folder,
        )
        assert not output.exists()
        return done


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    scene = Scene(folder)
    (folder / "plain").mkdir()
    scene.agent = await SecureAgent.start(folder, scene.office.issue(AGENT, "host"), told_a_second=1000)
    scene.plain = await RealAgent.launch(folder / "plain", listen="127.0.0.1:0")
    try:
        yield scene
    finally:
        await scene.agent.close()
        await scene.plain.close()


# --- a study whose certificate its agents do not take ---------------------------------------------

REFUSED: dict[str, tuple[Callable[[Scene], Path], str, str]] = {
    "another authority": (
        lambda s: with_authority_of(s.other.issue(COORDINATOR, "owner"), s.office),
        "it ends the connection when it sees our certificate, and its log says why",
        "its certificate is of another authority",
    ),
    "an agent of another authority": (
        lambda s: s.other.issue(COORDINATOR, "owner"),
        "its certificate is of another authority than our ca.crt",
        "",
    ),
}


@pytest.mark.parametrize("who", REFUSED)
async def test_a_study_with_a_certificate_of_others(scene: Scene, who: str) -> None:
    certificates, said, logged = REFUSED[who]
    before = len(scene.agent.log)
    kept = scene.agent.kept()
    done = await scene.study("--tls", certificates(scene))
    assert done.status == 3, done
    assert [line for line in done.lines if said in line] == done.lines[-1:], done
    assert len(done.lines) == 1, done
    assert scene.agent.kept() == kept
    if logged:
        await scene.agent.logs("refused a connection from 127.0.0.1:", logged, since=before)


async def test_a_study_without_tls_at_an_agent_that_has_it(scene: Scene) -> None:
    done = await scene.study()
    assert (done.status, len(done.lines)) == (3, 1), done
    assert "it speaks TLS, probably; use --tls FOLDER (our certificate)" in done.err


async def test_a_study_with_tls_at_an_agent_that_has_none(scene: Scene) -> None:
    done = await scene.study("--tls", scene.coordinator, agent=scene.plain)
    assert (done.status, len(done.lines)) == (3, 1), done
    assert "what listens there does not speak TLS; was it started with --insecure?" in done.err


async def test_an_agent_whose_certificate_is_for_another_address(scene: Scene, tmp_path: Path) -> None:
    agent = await SecureAgent.start(tmp_path, scene.office.issue(AGENT, "host", "gpu-9"))
    try:
        done = await scene.study("--tls", scene.coordinator, agent=agent)
    finally:
        await agent.close()
    assert (done.status, len(done.lines)) == (3, 1), done
    assert "its certificate is not for that name or address" in done.err


async def test_an_agent_that_has_the_certificate_of_a_client(scene: Scene, tmp_path: Path) -> None:
    done = await command(
        *("agent", "--listen", "127.0.0.1:0", "--state-dir", tmp_path / "state"),
        *("--tls", scene.office.issue(CLIENT, "eve")),
        cwd=tmp_path,
    )
    assert done.status == 2
    assert "is the certificate of client eve, where one of an agent is needed" in done.lines[-1]
    assert not (tmp_path / "state").exists()


def opened(folder: Path) -> Path:
    (folder / "tls.key").chmod(0o640)
    return folder


OWN: dict[str, tuple[Callable[[Scene], Path], str]] = {
    "expired": (lambda s: s.office.expired(COORDINATOR), "has expired on"),
    "of tomorrow": (lambda s: s.office.not_yet_valid(COORDINATOR), "is this clock right?"),
    "an agent's": (lambda s: s.office.issue(AGENT), "where one of a coordinator is needed"),
    "a client's": (lambda s: s.office.issue(CLIENT), "where one of a coordinator is needed"),
    "readable": (lambda s: opened(s.office.issue(COORDINATOR)), "others can read this key (mode 0640)"),
    "missing": (lambda s: s.folder / "nowhere", "is missing"),
}


@pytest.mark.parametrize("what", OWN)
async def test_a_certificate_of_our_own_that_cannot_be_used(scene: Scene, what: str) -> None:
    certificates, said = OWN[what]
    folder = certificates(scene)
    done = await scene.study("--tls", folder)
    assert (done.status, len(done.lines)) == (2, 1), done
    assert done.err.startswith(f"nhop-coordinator: --tls: {folder}")
    assert said in done.err


# --- StudyService ---------------------------------------------------------------------------------


class Served:
    """A coordinator that serves with TLS, on the agent of the scene."""

    def __init__(self, scene: Scene, address: str) -> None:
        self.scene = scene
        self.address = address
        self._said = ""
        self._more = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        hosts = self.scene.folder / "served.txt"
        hosts.write_text(f"{self.scene.agent.address}\n")
        process = await start(
            *("coordinator", "--serve", self.address, "--hosts", hosts),
            *("--tls", self.scene.coordinator, "--output", self.scene.folder / "runs"),
            cwd=self.scene.folder,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        reading = asyncio.create_task(self._read(process.stdout))
        try:
            await self.says("serving")
            yield self
        finally:
            process.terminate()
            async with asyncio.timeout(DEADLINE):
                assert await process.wait() == 0
            await reading
            assert await process.stderr.read() == b""

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self._said += line.decode()
            self._more.set()

    async def says(self, *words: str) -> None:
        async with asyncio.timeout(LIMIT):
            while not any(all(word in line for word in words) for line in self._said.splitlines()):
                self._more.clear()
                await self._more.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(scene: Scene) -> AsyncIterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    async with Served(scene, address).running() as served:
        yield served


async def test_a_client_is_served(scene: Scene, served: Served) -> None:
    folder = scene.office.issue(CLIENT, "alice")
    with nhop.Client(served.address, tls=folder) as client:
        assert await asyncio.to_thread(client.list) == ()


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_a_coordinators_certificate_is_not_a_clients(scene: Scene, served: Served, method: str) -> None:
    async with grpc.aio.secure_channel(served.address, credentials(scene.coordinator)) as channel:
        call: Any = channel.unary_unary(f"/nhop.v1.StudyService/{method}")
        error = await refusal(call(b"", timeout=DEADLINE))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    await served.says("refused", f"StudyService/{method}", "127.0.0.1:", "(coordinator owner)")


STRANGERS: dict[str, tuple[Callable[[Scene], Path], str]] = {
    "an agent": (lambda s: s.office.issue(AGENT, "host"), "its certificate is not for calling"),
    "another authority": (
        lambda s: with_authority_of(s.other.issue(CLIENT, "alice"), s.office),
        "its certificate is of another authority",
    ),
    "expired": (lambda s: s.office.expired(CLIENT, "alice"), "its certificate has expired"),
}


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_stranger_at_a_coordinator(scene: Scene, served: Served, who: str) -> None:
    certificates, reason = STRANGERS[who]
    async with grpc.aio.secure_channel(served.address, credentials(certificates(scene))) as channel:
        call: Any = channel.unary_unary("/nhop.v1.StudyService/ListStudies")
        assert (await refusal(call(b"", timeout=DEADLINE))).code() is grpc.StatusCode.UNAVAILABLE
    await served.says("refused a connection from 127.0.0.1:", reason)


async def test_a_client_says_in_a_line_what_is_wrong(scene: Scene, served: Served) -> None:
    strange = with_authority_of(scene.other.issue(CLIENT, "bob"), scene.office)
    distrusting = scene.other.issue(CLIENT, "bob")
    for folder, said in (
        (strange, "it ends the connection when it sees our certificate, and its log says why"),
        (distrusting, "its certificate is of another authority than our ca.crt"),
        (None, "it speaks TLS, probably; use --tls FOLDER (our certificate)"),
    ):
        with nhop.Client(served.address, tls=folder) as client, pytest.raises(CoordinatorError) as caught:
            await asyncio.to_thread(client.list)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_logs_takes_the_folder_of_the_environment(
    scene: Scene, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NHOP_TLS", str(scene.office.issue(CLIENT, "alice")))
    done = await command("coordinator", "logs", "1", "--serve", served.address, cwd=scene.folder)
    assert done.status == 2
    assert done.lines == ["nhop-coordinator: --study: name the study: there is none yet"]


async def test_a_client_at_an_agent(scene: Scene) -> None:
    folder = scene.office.issue(CLIENT, "alice")
    address = scene.agent.address
    done = await command("coordinator", "logs", "1", "--serve", address, "--tls", folder, cwd=scene.folder)
    assert (done.status, len(done.lines)) == (1, 1)
    assert f"{address}: what listens there is no coordinator" in done.err
