"""The cache of bundles: what stays, what goes, and what attempts are told."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from agent import bundles as cache
from agent.archive import ArchiveError, ArchiveLimits, unpack
from agent.attempts import AttemptDirectory, Manifest
from agent.bundles import Bundles, NoBundleError, Wanted
from agent.config import AgentConfig, ListenAddress
from agent.domain import AttemptId, Limits, TaskLease, TaskRequirement
from agent.leases import NotEnoughError
from agent.recovery import recover
from agent.runtime import ATTEMPTS, Agent
from nhop_models.contract import TaskId, TaskSpec
from tests.fakes.archives import archive, digest_of

ATTEMPT = AttemptId("study", 1, 1)
TASK = TaskId.parse("worker/0")
SPEC = TaskSpec("study", 1, 1, "mine:Model", {}, {}, 10, 0.0, 1, python_path=("/opt/more",))
KILOBYTE = 1000


@pytest.fixture
def pinned() -> set[str]:
    return set()


@pytest.fixture
def bundles(tmp_path: Path, pinned: set[str]) -> Bundles:
    """With room for three kilobytes."""
    made = Bundles(tmp_path / "bundles", lambda: pinned, most=3 * KILOBYTE)
    made.clean()
    return made


async def put(bundles: Bundles, name: str, size: int = KILOBYTE) -> str:
    data = archive({name: "x" * size})
    digest = digest_of(data)
    async with bundles.receive(digest, len(data)) as file:
        file.write(data)
        await bundles.keep(file, digest)
    return digest


def age(bundles: Bundles, tmp_path: Path, *digests: str) -> None:
    """The first was used least recently."""
    for number, digest in enumerate(digests):
        os.utime(tmp_path / "bundles" / digest, (number, number))


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "bundles").iterdir()} - {".boot"}


async def test_the_least_recently_used_goes_where_there_is_no_room(bundles: Bundles, tmp_path: Path) -> None:
    digests = [await put(bundles, name) for name in "abc"]
    age(bundles, tmp_path, *digests)
    assert bundles.has(digests[0])
    more = await put(bundles, "d")
    assert left(tmp_path) == {digests[0], digests[2], more}


async def test_nothing_goes_while_there_is_room(bundles: Bundles, tmp_path: Path) -> None:
    digests = {await put(bundles, name) for name in "abc"}
    assert left(tmp_path) == digests


async def test_as_many_go_as_it_takes(bundles: Bundles, tmp_path: Path) -> None:
    age(bundles, tmp_path, *[await put(bundles, name) for name in "abc"])
    more = await put(bundles, "d", 3 * KILOBYTE)
    assert left(tmp_path) == {more}


async def test_what_an_attempt_uses_stays(bundles: Bundles, tmp_path: Path, pinned: set[str]) -> None:
    digests = [await put(bundles, name) for name in "abc"]
    age(bundles, tmp_path, *digests)
    pinned.add(digests[0])
    more = await put(bundles, "d")
    assert left(tmp_path) == {digests[0], digests[2], more}


async def test_a_bundle_for_which_the_rest_leaves_no_room_is_refused(
    bundles: Bundles, tmp_path: Path, pinned: set[str]
) -> None:
    pinned.update([await put(bundles, name) for name in "abc"])
    with pytest.raises(NotEnoughError, match="leave no room"):
        await put(bundles, "d")
    assert left(tmp_path) == pinned


async def test_an_archive_over_the_limit_is_refused_before_it_comes(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path / "bundles", set, ArchiveLimits(packed=10))
    bundles.clean()
    with pytest.raises(NotEnoughError, match="11 bytes, 10 are the most"):
        async with bundles.receive("0" * 64, 11):
            pass


async def test_uploads_at_once_of_the_same_bundle_all_succeed(bundles: Bundles, tmp_path: Path) -> None:
    digests = await asyncio.gather(*(put(bundles, "a", 2 * KILOBYTE) for _ in range(4)))
    assert left(tmp_path) == set(digests)


async def test_uploads_at_once_share_the_room(bundles: Bundles, tmp_path: Path) -> None:
    await asyncio.gather(*(put(bundles, name, 2 * KILOBYTE) for name in "abc"))
    assert len(left(tmp_path)) == 1


async def test_a_bad_archive_leaves_nothing(bundles: Bundles, tmp_path: Path) -> None:
    async with bundles.receive("0" * 64, 3) as file:
        file.write(b"xxx")
        with pytest.raises(ArchiveError):
            await bundles.keep(file, "0" * 64)
    assert left(tmp_path) == set()


async def test_who_gives_up_while_it_is_unpacked_leaves_nothing(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, through = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def slow(file: Path, digest: str, folder: Path, limits: ArchiveLimits, stopped: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert stopped.wait(10)  # type: ignore[attr-defined]
        try:
            unpack(file, digest, folder, limits, stopped)  # type: ignore[arg-type]
        finally:
            loop.call_soon_threadsafe(through.set)

    monkeypatch.setattr(cache, "unpack", slow)
    upload = asyncio.create_task(put(bundles, "a"))
    await begun.wait()
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    await through.wait()
    assert left(tmp_path) == set()


async def test_what_has_to_go_goes_even_if_nobody_waits_for_it(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, gone = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    go_on, remove = threading.Event(), cache._remove

    def slow(*paths: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        remove(*paths)
        if not any(digest in name for name in left(tmp_path) for digest in digests):
            loop.call_soon_threadsafe(gone.set)

    digests = [await put(bundles, name) for name in "abc"]
    age(bundles, tmp_path, *digests)
    monkeypatch.setattr(cache, "_remove", slow)
    upload = asyncio.create_task(put(bundles, "d", 3 * KILOBYTE))
    await begun.wait()
    upload.cancel()
    go_on.set()
    await asyncio.gather(upload, return_exceptions=True)
    async with asyncio.timeout(10):
        await gone.wait()


# --- a full disk ----------------------------------------------------------------------------


@pytest.fixture
def disk(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundles:
    """With room for three more bundles of a kilobyte: to unpack one takes ten."""

    def statvfs(_: object) -> SimpleNamespace:
        used = KILOBYTE * len([name for name in left(tmp_path) if not name.startswith(".")])
        return SimpleNamespace(f_bavail=12_500 - used, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return Bundles(tmp_path / "bundles", bundles._in_use)


async def test_the_least_recently_used_goes_where_the_disk_is_full(disk: Bundles, tmp_path: Path) -> None:
    digests = [await put(disk, name) for name in "abc"]
    age(disk, tmp_path, *digests)
    more = await put(disk, "d")
    assert left(tmp_path) == {*digests[1:], more}


async def test_for_an_archive_that_does_not_fit_as_many_go_as_it_takes(disk: Bundles, tmp_path: Path) -> None:
    digests = [await put(disk, name) for name in "abc"]
    age(disk, tmp_path, *digests)
    async with disk.receive("0" * 64, 10_500):
        assert left(tmp_path) >= set(digests[1:])
    async with disk.receive("0" * 64, 12_000):
        assert not left(tmp_path) & set(digests)
    with pytest.raises(NotEnoughError, match="13000 bytes are wanted, 12500 are free"):
        async with disk.receive("0" * 64, 13_000):
            pass


async def test_what_an_attempt_uses_stays_on_a_full_disk(
    disk: Bundles, tmp_path: Path, pinned: set[str]
) -> None:
    pinned.update([await put(disk, name) for name in "abc"])
    with pytest.raises(NotEnoughError, match="bytes are wanted"):
        await put(disk, "d")
    assert left(tmp_path) == pinned


@pytest.mark.parametrize("boot", [None, "another"])
def test_an_agent_starts_on_a_full_disk(
    bundles: Bundles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    boot: str | None,
) -> None:
    mark = tmp_path / "bundles" / ".boot"
    mark.write_text(boot) if boot is not None else mark.unlink()
    monkeypatch.setattr(cache, "write_atomically", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    bundles.clean()
    assert "bundles will be sent again" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "write_atomically", Mock(side_effect=OSError(errno.EROFS, "read-only")))
    with pytest.raises(OSError, match="read-only"):
        Bundles(tmp_path / "bundles", set).clean()


# --- what attempts are told -----------------------------------------------------------------


async def test_code_comes_first_on_the_path_and_is_the_working_directory(
    bundles: Bundles, tmp_path: Path
) -> None:
    code, data = await put(bundles, "mine.py"), await put(bundles, "t.csv")
    spec = bundles.furnish(SPEC, Wanted(code, data))
    folder = str(tmp_path / "bundles" / code)
    assert (spec.python_path, spec.working_directory) == ((folder, "/opt/more"), folder)
    assert spec.data_directory == str(tmp_path / "bundles" / data)


def test_without_bundles_nothing_changes(bundles: Bundles) -> None:
    assert bundles.furnish(SPEC, Wanted()) == SPEC


def test_a_bundle_that_is_not_here_is_named(bundles: Bundles) -> None:
    with pytest.raises(NoBundleError, match="0000"):
        bundles.furnish(SPEC, Wanted(code="0" * 64))


# --- attempts hold their bundles ------------------------------------------------------------


def make_agent(tmp_path: Path) -> Agent:
    (tmp_path / ATTEMPTS).mkdir(exist_ok=True)
    agent = Agent(AgentConfig(ListenAddress(path=tmp_path / "sock"), tmp_path, slots=1))
    agent.bundles.clean()
    return agent


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[list[Agent]]:
    """Those of a test, whose zygotes never start."""
    made: list[Agent] = []
    yield made
    for agent in made:
        agent.processes.close()
        for attempt in agent.attempts.values():
            attempt.directory.close_doorbell()


async def test_an_attempt_holds_its_bundles_until_it_has_ended(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := make_agent(tmp_path))
    digest = await put(agent.bundles, "mine.py")
    agent.prepare(ATTEMPT, [TaskRequirement(TASK, 1, port=False)], None)
    assert agent.bundles_in_use() == set()
    agent.begin(ATTEMPT, SPEC, Limits(), Wanted(code=digest))
    assert agent.bundles_in_use() == {digest}


async def test_an_attempt_of_an_earlier_agent_holds_its_bundles(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := make_agent(tmp_path))
    manifest = Manifest((TaskLease(TASK, 1, None, ()),), Limits(), ("a" * 64,))
    AttemptDirectory.create(tmp_path / ATTEMPTS, ATTEMPT, manifest)
    recover(agent)
    attempt = agent.attempts[ATTEMPT]
    assert attempt.manifest.bundles == ("a" * 64,)


def test_a_manifest_of_an_earlier_version_names_none() -> None:
    text = '{"leases": [], "limits": null}'
    assert Manifest.from_json(text).bundles == ()
