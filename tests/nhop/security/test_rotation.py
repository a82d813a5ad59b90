"""Files that are replaced while they are in use, and what is said of their end."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nhop.security.errors import CertificateError
from nhop.security.rotation import Rotation, describe
from tests.certificates import AGENT, CLIENT, DAY, Office, trust, utc_now

DEADLINE = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


@pytest.fixture
def folder(office: Office) -> Path:
    return office.issue(AGENT, "host")


def test_what_cannot_be_used_is_refused_at_the_start(office: Office) -> None:
    with pytest.raises(CertificateError, match="has expired"):
        Rotation(office.expired(AGENT), AGENT)
    with pytest.raises(CertificateError, match="of client"):
        Rotation(office.issue(CLIENT), AGENT)


def test_nothing_new(folder: Path) -> None:
    rotation = Rotation(folder, AGENT)
    assert not rotation.look()
    assert rotation.generation == 1


def test_new_files(office: Office, folder: Path) -> None:
    rotation = Rotation(folder, AGENT)
    before = rotation.files
    office.issue(AGENT, "host", place=folder)
    assert rotation.look()
    assert rotation.generation == 2
    assert rotation.files != before
    assert rotation.files.key == (folder / "tls.key").read_bytes()
    assert not rotation.look()


def test_another_authority_alone(office: Office, folder: Path, tmp_path: Path) -> None:
    rotation = Rotation(folder, AGENT)
    trust(folder, office, Office(tmp_path / "new"))
    assert rotation.look()
    assert rotation.files.authority.count(b"BEGIN") == 2


def test_files_that_were_only_touched(folder: Path) -> None:
    rotation = Rotation(folder, AGENT)
    os.utime(folder / "tls.crt", (0, 0))
    assert not rotation.look()
    assert rotation.generation == 1


def test_half_written_files_are_looked_at_again(office: Office, folder: Path) -> None:
    rotation = Rotation(folder, AGENT)
    before = rotation.files
    other = office.issue(AGENT, "host")
    (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())
    for _ in range(2):
        with pytest.raises(CertificateError, match="is not the key of"):
            rotation.look()
    assert rotation.files is before
    (folder / "tls.crt").write_bytes((other / "tls.crt").read_bytes())
    assert rotation.look()


@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "ca.crt"])
def test_a_file_that_vanishes(folder: Path, name: str) -> None:
    rotation = Rotation(folder, AGENT)
    before = rotation.files
    (folder / name).rename(folder / "away")
    with pytest.raises(CertificateError, match="is missing"):
        rotation.look()
    assert rotation.files is before
    (folder / "away").rename(folder / name)
    assert not rotation.look()


def test_a_key_that_others_can_read_is_not_taken(office: Office, folder: Path) -> None:
    rotation = Rotation(folder, AGENT)
    office.issue(AGENT, "host", place=folder)
    (folder / "tls.key").chmod(0o644)
    with pytest.raises(CertificateError, match="others can read"):
        rotation.look()


def test_links_that_are_moved_as_kubernetes_does(office: Office, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for number in (1, 2):
        office.issue(AGENT, "host", place=mount / f"..{number}")
    (mount / "..data").symlink_to("..1")
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    rotation = Rotation(mount, AGENT)
    (mount / "..new").symlink_to("..2")
    (mount / "..new").rename(mount / "..data")
    assert rotation.look()
    assert rotation.files.certificate == (mount / "..2" / "tls.crt").read_bytes()


# --- what is said of their end --------------------------------------------------------------------


def test_its_end_is_said_once_a_day(folder: Path) -> None:
    clock = Clock()
    rotation = Rotation(folder, AGENT, now=clock)
    assert rotation.expiry_notice() == ""
    clock.now = rotation.files.end - 12 * DAY
    assert "12 days from now; issue it again with nhop-coordinator certs issue" in rotation.expiry_notice()
    clock.now += DAY - datetime.timedelta(seconds=1)
    assert rotation.expiry_notice() == ""
    clock.now += datetime.timedelta(seconds=1)
    assert "11 days from now" in rotation.expiry_notice()
    clock.now = rotation.files.end
    assert "has expired on" in rotation.expiry_notice()


def test_a_short_lived_one_is_not_said_to_end_all_its_life(office: Office) -> None:
    clock = Clock()
    rotation = Rotation(office.issue(AGENT, days=3, begun=datetime.timedelta()), AGENT, now=clock)
    assert rotation.expiry_notice() == ""
    clock.now = rotation.files.end - datetime.timedelta(hours=20)
    assert "20 hours from now" in rotation.expiry_notice()


def test_a_new_one_is_not_said_to_end(office: Office, folder: Path) -> None:
    clock = Clock()
    rotation = Rotation(folder, AGENT, now=clock)
    clock.now = rotation.files.end - DAY
    assert rotation.expiry_notice()
    office.issue(AGENT, "host", place=folder, begun=-364 * DAY + DAY)
    clock.now += 2 * DAY
    assert rotation.look()
    assert rotation.expiry_notice() == ""


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (datetime.timedelta(days=30, hours=5), "30 days"),
        (datetime.timedelta(days=1, hours=23), "47 hours"),
        (datetime.timedelta(minutes=61), "1 hour"),
        (datetime.timedelta(seconds=1), "1 hour"),
    ],
)
def test_spans_of_time(time: datetime.timedelta, words: str) -> None:
    assert describe(time) == words


# --- following ------------------------------------------------------------------------------------


class Following:
    def __init__(self, rotation: Rotation) -> None:
        self.said: list[str] = []
        self.changes = 0
        self._more = asyncio.Event()
        self.task = asyncio.create_task(rotation.follow(self._tell, self._changed, seconds=0.01))

    def _tell(self, text: str) -> None:
        self.said.append(text)
        self._more.set()

    def _changed(self) -> None:
        self.changes += 1
        self._more.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._more.clear()
                await self._more.wait()

    def count(self, words: str) -> int:
        return sum(words in text for text in self.said)


@pytest.fixture
async def following(folder: Path) -> AsyncIterator[Following]:
    following = Following(Rotation(folder, AGENT))
    yield following
    following.task.cancel()
    await asyncio.gather(following.task, return_exceptions=True)


async def test_new_files_are_said_and_passed_on(office: Office, folder: Path, following: Following) -> None:
    office.issue(AGENT, "host", place=folder)
    await following.until(lambda: following.changes == 1)
    assert following.count("was read again: it ends on") == 1


async def test_what_cannot_be_used_is_said_once_and_again_after_it_was_mended(
    folder: Path, following: Following
) -> None:
    whole = (folder / "tls.crt").read_bytes()
    for times in (1, 2):
        (folder / "tls.crt").write_bytes(b"garbage")
        await following.until(lambda times=times: following.count("cannot be used") == times)  # type: ignore[misc]
        (folder / "tls.key").touch()  # something else has changed: nothing new is to be said
        await asyncio.sleep(0.1)
        assert following.count("cannot be used") == times
        (folder / "tls.crt").write_bytes(whole)
        await asyncio.sleep(0.1)
    assert following.changes == 0
