from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import fsspec
import pytest

from coordinator import remote
from coordinator.errors import StudyFailedError, UsageError
from coordinator.remote import Place, RemoteFolder
from tests.fakes.s3 import s3_server

URL = "memory://out"


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(tmp_path):
    """What a study has left."""
    for name in ("config.yaml", "summary.json", "study.db", "trials.csv", "logs/trial-1.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(memory):
    return sorted(path.removeprefix("/out/") for path in memory.find("/out"))


@pytest.mark.parametrize(
    ("output", "train_log_dir", "place"),
    [
        (None, "logs", Place(Path("logs/s"))),
        ("out", "logs", Place(Path("out"))),
        (Path("out"), "s3://b/logs", Place(Path("out"))),
        ("s3://b/out", "logs", Place(Path("runs/s"), "s3://b/out")),
        (None, "s3://b/logs/", Place(Path("runs/s"), "s3://b/logs/s")),
    ],
)
def test_where_results_go(output, train_log_dir, place):
    assert Place.of(output, train_log_dir, "s") == place


def test_an_unknown_protocol_is_refused_at_once():
    with pytest.raises(UsageError, match=r"^nothing://x: the protocol nothing:// is not known"):
        RemoteFolder("nothing://x", "s")


async def test_a_claim_leaves_the_configuration(memory):
    await RemoteFolder(URL, "s").claim("seed: 1\n")
    assert memory.cat("/out/config.yaml") == b"# study s\nseed: 1\n"


@pytest.mark.parametrize("name", ["summary.json", "study.db"])
async def test_a_url_that_holds_a_study_is_refused(memory, name):
    memory.pipe(f"/out/{name}", b"{}")
    with pytest.raises(UsageError, match=f"^{URL}: already holds a study"):
        await RemoteFolder(URL, "s").claim("seed: 1\n")
    assert names(memory) == [name]


async def test_a_check_writes_nothing(memory):
    await RemoteFolder(URL, "s").check()
    assert names(memory) == []


async def test_an_error_is_not_taken_for_an_empty_url(memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr(type(memory), "info", refuse)
    with pytest.raises(UsageError, match="cannot be used for the results: access is denied"):
        await RemoteFolder(URL, "s").claim("")


async def test_a_claim_is_taken_back(memory):
    folder = RemoteFolder(URL, "s")
    await folder.claim("seed: 1\n")
    await folder.release()
    assert names(memory) == []


async def test_the_claim_of_another_study_is_not_taken_back(memory):
    await RemoteFolder(URL, "other").claim("seed: 1\n")
    await RemoteFolder(URL, "s").release()
    assert names(memory) == ["config.yaml"]


async def test_all_files_are_copied(memory, folder):
    await RemoteFolder(URL, "s").copy(folder)
    assert names(memory) == ["config.yaml", "logs/trial-1.log", "study.db", "summary.json", "trials.csv"]


async def test_hidden_and_temporary_files_are_not_copied(memory, folder):
    for made in (".artifacts", "agent"):
        (folder / made).mkdir()
    for name in (".artifacts/model.keras", "agent/lock", ".trials.csv.1", "study.db-wal", "study.db-shm"):
        (folder / name).write_text("")
    await RemoteFolder(URL, "s").copy(folder)
    assert len(names(memory)) == 5


async def test_the_summary_is_copied_last(memory, folder, monkeypatch):
    order = []
    put = type(memory).put_file
    monkeypatch.setattr(
        type(memory),
        "put_file",
        lambda self, local, *rest, **kw: (order.append(local), put(self, local, *rest)),
    )
    await RemoteFolder(URL, "s").copy(folder)
    assert order[-1] == str(folder / "summary.json")


async def test_nothing_is_copied_over_another_study(memory, folder):
    mine = RemoteFolder(URL, "s")
    await mine.claim("")
    await RemoteFolder(URL, "other").claim("")
    with pytest.raises(StudyFailedError, match="that of another study"):
        await mine.copy(folder)
    assert names(memory) == ["config.yaml"]


async def test_a_failed_copy_names_both_places_and_why(memory, folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr(type(memory), "put_file", refuse)
    with pytest.raises(StudyFailedError) as caught:
        await RemoteFolder(URL, "s").copy(folder)
    for words in (URL, "access is denied", str(folder)):
        assert words in str(caught.value)


async def test_what_hangs_is_given_up(memory, folder, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: release.wait(30))
    monkeypatch.setattr(type(memory), "put_file", lambda *_, **__: release.wait(30))
    monkeypatch.setattr(remote, "CLAIM_LIMIT", 0.05)
    monkeypatch.setattr(remote, "COPY_LIMIT", 0.05)
    try:
        with pytest.raises(UsageError, match="no answer for"):
            await RemoteFolder(URL, "s").claim("")
        with pytest.raises(StudyFailedError, match="not done after"):
            await RemoteFolder(URL, "s").copy(folder)
    finally:
        release.set()


async def test_a_folder_is_made_where_there_are_folders(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("target") / "deep" / "out"
    there = RemoteFolder(f"file://{target}", "s")
    await there.claim("")
    await there.copy(folder)
    assert (target / "logs" / "trial-1.log").read_text() == "logs/trial-1.log"


@pytest.fixture
def s3(monkeypatch):
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield server


async def test_a_real_server(s3, folder):
    there = RemoteFolder(s3.url("out"), "s")
    await there.claim("seed: 1\n")
    await there.copy(folder)
    assert s3.names("out") == ["config.yaml", "logs/trial-1.log", "study.db", "summary.json", "trials.csv"]
    with pytest.raises(UsageError, match="already holds a study"):
        await RemoteFolder(s3.url("out"), "next").claim("")


async def test_no_bucket_is_made_on_a_real_server(s3):
    with pytest.raises(UsageError, match="it does not exist: correct the URL"):
        await RemoteFolder("s3://misspelt/out", "s").claim("")
    assert not await asyncio.to_thread(s3.files.exists, "misspelt")
