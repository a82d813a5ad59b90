"""Packing: the same folder makes the same archive, and nothing is left of it."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import tempfile
import threading

import pytest

from coordinator import bundles as packing
from coordinator.bundles import Bundles, pack
from coordinator.domain import Sources
from coordinator.folders import PackError
from tests.coordinator.studies import make_spec


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "project")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where archives are made; nothing must be left there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def make_project(folder):
    (folder / "helpers").mkdir(parents=True)
    (folder / "mine.py").write_text("x = 1\n")
    (folder / "helpers" / "a.py").write_text("y = 2\n" * 1000)
    return folder


async def content(bundle):
    return b"".join([piece async for piece in bundle.pieces()])


async def test_an_archive_holds_the_files(project):
    with await pack(Sources(code=project)) as bundles:
        data = await content(bundles.code)
    assert len(data) == bundles.code.size
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["helpers", "helpers/a.py", "mine.py"]
        assert tar.extractfile("helpers/a.py").read() == b"y = 2\n" * 1000
    assert (bundles.code.files, bundles.code.content) == (2, 6006)


async def test_the_same_files_make_the_same_archive(project, tmp_path):
    other = make_project(tmp_path / "other")
    os.utime(other / "mine.py", (1, 1))
    (other / "mine.py").chmod(0o600)
    with await pack(Sources(code=project)) as first, await pack(Sources(code=other)) as second:
        assert await content(first.code) == await content(second.code)
    assert first.code.digest == second.code.digest


@pytest.mark.parametrize("change", ["content", "name", "mode"])
async def test_other_files_make_another_archive(project, change):
    with await pack(Sources(code=project)) as before:
        pass
    if change == "content":
        (project / "mine.py").write_text("x = 2\n")
    elif change == "name":
        (project / "mine.py").rename(project / "yours.py")
    else:
        (project / "mine.py").chmod(0o755)
    with await pack(Sources(code=project)) as after:
        assert after.code.digest != before.code.digest


async def test_nothing_of_this_machine_is_in_the_archive(project):
    with await pack(Sources(code=project)) as bundles:
        data = await content(bundles.code)
    assert data[4:8] == bytes(4), "the time in gzip's header"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert str(project).encode() not in gzip.decompress(data)


async def test_a_study_without_sources_needs_nothing():
    bundles = await pack(Sources())
    assert list(bundles) == []
    assert bundles.put_into(make_spec()) == make_spec()


async def test_the_study_names_its_bundles(project):
    with await pack(Sources(project, project / "mine.py")) as bundles:
        training = bundles.put_into(make_spec()).training
    assert (training.code, training.data) == (bundles.code.digest, bundles.data.digest)


async def test_pieces_are_of_1_mib(project):
    (project / "random").write_bytes(os.urandom(3_000_000))
    with await pack(Sources(code=project)) as bundles:
        sizes = [len(piece) async for piece in bundles.code.pieces()]
    assert max(sizes) == 1 << 20
    assert sum(sizes) == bundles.code.size


async def test_where_the_second_cannot_be_packed_the_first_is_not_left(project, tmp_path):
    with pytest.raises(PackError, match=r"^data: .*none: cannot be read"):
        await pack(Sources(project, tmp_path / "none"))


async def test_a_file_that_becomes_shorter_meanwhile_is_named(project, monkeypatch):
    walk = packing.walk

    def then_changes(*arguments):
        entries = walk(*arguments)
        (project / "mine.py").write_text("x")
        return entries

    monkeypatch.setattr(packing, "walk", then_changes)
    with pytest.raises(PackError, match=r"mine\.py has become shorter"):
        await pack(Sources(code=project))


async def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(project, monkeypatch):
    walk = packing.walk

    def then_changes(*arguments):
        entries = walk(*arguments)
        (project / "mine.py").unlink()
        (project / "mine.py").symlink_to("/etc/passwd")
        return entries

    monkeypatch.setattr(packing, "walk", then_changes)
    with pytest.raises(PackError, match=r"mine\.py cannot be read"):
        await pack(Sources(code=project))


async def test_a_full_disk_is_said(project, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(packing, "_write", full)
    with pytest.raises(PackError, match=r"No space left.*TMPDIR"):
        await pack(Sources(code=project))


async def test_packing_that_is_cancelled_ends(project, monkeypatch):
    loop, begun, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    write = packing._write

    def slowly(name, source, entries, file, stopped):
        loop.call_soon_threadsafe(begun.set)
        assert stopped.wait(10)
        try:
            write(name, source, entries, file, stopped)
        except packing.PackingStoppedError:
            ended.set()
            raise

    monkeypatch.setattr(packing, "_write", slowly)
    work = asyncio.create_task(pack(Sources(code=project)))
    await begun.wait()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert await asyncio.to_thread(ended.wait, 10)


def test_its_numbers_are_told(project):
    bundles = asyncio.run(pack(Sources(code=project)))
    with bundles:
        assert bundles.code.describe().startswith(f"{project}: 2 files, 5.9 KiB (")
    assert Bundles().notes == ()
