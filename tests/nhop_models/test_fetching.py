from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from pathlib import Path

import fsspec
import pytest

from nhop_models import fetch, fetching
from nhop_models.base import DataError
from nhop_models.fetching import NotNowError
from tests.fakes.s3 import s3_server


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("NHOP_CACHE", str(folder))
    monkeypatch.setattr(fetching, "_fetched", {})
    monkeypatch.setattr(fetching, "_held", set())
    yield folder
    let_go(folder)


def let_go(folder: Path) -> None:
    """As if the process that uses this entry, or all of the cache, had ended."""
    fetching._held.clear()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            if descriptor.readlink().is_relative_to(folder):
                os.close(int(descriptor.name))


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_file_is_fetched_under_its_own_name(memory, cache):
    memory.pipe("/data/table.csv", b"1,2\n")
    path = fetch("memory://data/table.csv")
    assert path.name == "table.csv"
    assert path.read_bytes() == b"1,2\n"


def test_a_path_is_itself(cache):
    assert fetch("some/table.csv") == Path("some/table.csv")


def test_a_folder_is_fetched_with_all_below_it(memory, cache):
    memory.pipe({"/data/c/deep/one.c": b"1", "/data/python/two.py": b"22"})
    path = fetch("memory://data")
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert found == {"c/deep/one.c": b"1", "python/two.py": b"22"}


def test_the_second_time_nothing_is_downloaded(memory, cache, monkeypatch):
    memory.pipe("/data/table.csv", b"1,2\n")
    first = fetch("memory://data/table.csv")
    monkeypatch.setattr(fetching, "_download", None)
    assert fetch("memory://data/table.csv") == first


def test_a_changed_object_is_fetched_anew(memory, cache):
    memory.pipe("/data/table.csv", b"1,2\n")
    first = fetch("memory://data/table.csv")
    memory.pipe("/data/table.csv", b"3,4\n")
    assert fetch("memory://data/table.csv").read_bytes() == b"3,4\n"
    assert first.read_bytes() == b"1,2\n"


def test_an_object_that_changes_while_it_is_fetched_is_fetched_once_more(memory, cache, monkeypatch):
    memory.pipe("/data/table.csv", b"1,2\n")
    download, contents = fetching._download, [b"3,4\n"]

    def change(*arguments):
        download(*arguments)
        if contents:
            memory.pipe("/data/table.csv", contents.pop())

    monkeypatch.setattr(fetching, "_download", change)
    assert fetch("memory://data/table.csv").read_bytes() == b"3,4\n"
    assert len(entries(cache)) == 1


def test_an_object_that_always_changes_is_given_up(memory, cache, monkeypatch):
    memory.pipe("/data/table.csv", b"1,2\n")
    download = fetching._download

    def change(*arguments):
        download(*arguments)
        memory.pipe("/data/table.csv", b"3,4\n")

    monkeypatch.setattr(fetching, "_download", change)
    with pytest.raises(NotNowError, match="changes while it is fetched"):
        fetch("memory://data/table.csv")
    assert entries(cache) == []


def test_what_a_dead_task_left_unfinished_is_removed(memory, cache):
    memory.pipe("/data/table.csv", b"1,2\n")
    (cache / ".half").mkdir(parents=True)
    (cache / ".half" / "table.csv").write_bytes(b"1")
    fetch("memory://data/table.csv")
    assert not (cache / ".half").exists()


def test_what_comes_short_is_no_data(memory, cache, monkeypatch):
    memory.pipe("/data/table.csv", b"1,2\n")
    monkeypatch.setattr(type(memory), "get", lambda self, remote, local: Path(local[0]).write_bytes(b"1"))
    with pytest.raises(NotNowError, match=r"memory://data/table.csv: 1 bytes of table.csv came, not 4"):
        fetch("memory://data/table.csv")
    assert entries(cache) == []


def test_what_hangs_is_given_up(memory, cache, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(fetching, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(type(memory), "info", lambda *_: release.wait(10))
    try:
        with pytest.raises(NotNowError, match="memory://data: no answer for"):
            fetch("memory://data")
    finally:
        release.set()


def test_what_was_given_up_does_not_get_into_what_another_task_fetches(memory, cache, monkeypatch):
    """Once the network is back, the download that nobody waits for any more goes on, too."""
    memory.pipe({"/data/one.c": b"1", "/data/two.c": b"22"})
    back, through, get = threading.Event(), threading.Event(), type(memory).get
    calls = []

    def hang(files, remote, local):
        calls.append(local)
        if len(calls) == 1:
            back.wait(10)
            with contextlib.suppress(FileNotFoundError):
                Path(local[-1]).write_bytes(b"")  # as far as it has got
            through.set()
        else:
            get(files, remote, local)
            back.set()
            through.wait(10)

    monkeypatch.setattr(type(memory), "get", hang)
    monkeypatch.setattr(fetching, "STALL_SECONDS", 0.05)
    with pytest.raises(NotNowError, match="no answer for"):
        fetch("memory://data")
    monkeypatch.setattr(fetching, "STALL_SECONDS", 10.0)
    assert (fetch("memory://data") / "two.c").read_bytes() == b"22"


def test_no_such_object(memory, cache):
    with pytest.raises(DataError, match=r"^memory://none/table.csv: it does not exist: correct the URL"):
        fetch("memory://none/table.csv")


def test_an_unknown_protocol(cache):
    with pytest.raises(DataError, match=r"^nothing://x: the protocol nothing:// is not known"):
        fetch("nothing://x")


def test_a_name_that_leads_out_of_the_folder_is_refused(memory, cache, monkeypatch):
    memory.pipe("/data/c/one.c", b"1")
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: {"/data/../../x": {"size": 1}})
    with pytest.raises(DataError, match=r"'../../x', which is not below it"):
        fetch("memory://data")


def test_a_name_of_a_file_and_a_folder_is_refused(memory, cache, monkeypatch):
    found = {"/data/c": {"size": 1}, "/data/c/one.c": {"size": 1}}
    memory.pipe("/data/c/one.c", b"1")
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: found)
    with pytest.raises(DataError, match="data/c is a file and a folder, too"):
        fetch("memory://data")


def test_without_a_known_tag_all_that_is_told_of_an_object_counts(memory, cache, monkeypatch):
    memory.pipe("/data/table.csv", b"1,2\n")
    told = {"type": "file", "size": 4, "version": 1}
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: dict(told))
    first = fetch("memory://data/table.csv")
    told["version"] = 2
    assert fetch("memory://data/table.csv") != first


def test_fetching_often_takes_one_descriptor(memory, cache):
    memory.pipe("/data/table.csv", b"1,2\n")
    fetch("memory://data/table.csv")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        fetch("memory://data/table.csv")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_messages_name_the_url_and_not_the_copy(memory, cache):
    memory.pipe("/data/table.csv", b"1,2\n")
    path = fetch("memory://data/table.csv")
    assert fetching.with_urls(f"{path}:3: bad") == "memory://data/table.csv:3: bad"


def test_the_oldest_entry_goes_when_there_are_too_many_bytes(memory, cache, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_BYTES", 10)
    paths = []
    for number in range(3):
        memory.pipe(f"/data/{number}.csv", b"12345")
        paths.append(fetch(f"memory://data/{number}.csv"))
        os.utime(paths[-1].parent, (number, number))
        let_go(paths[-1].parent)
    assert [path.exists() for path in paths] == [False, True, True]


def test_an_entry_in_use_stays(memory, cache, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_BYTES", 6)
    memory.pipe({"/data/0.csv": b"12345", "/data/1.csv": b"12345"})
    first = fetch("memory://data/0.csv")
    fetch("memory://data/1.csv")
    assert first.exists()


def test_no_room_is_said_with_the_host_s_folder(memory, cache, monkeypatch):
    memory.pipe("/data/table.csv", b"1,2\n")
    monkeypatch.setattr(fetching, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(OSError, match=r"memory://data/table.csv has 4 bytes") as caught:
        fetch("memory://data/table.csv")
    assert caught.value.errno == 28


def _fetch_and_say(url: str, barrier: object, found: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    path = fetch(url)
    found.put((str(path), path.read_bytes()))  # type: ignore[attr-defined]


def test_tasks_that_fetch_at_once_share_one_copy(tmp_path, cache):
    (tmp_path / "table.csv").write_bytes(b"1,2\n" * 100_000)
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(3), context.Queue()
    url = f"file://{tmp_path}/table.csv"
    processes = [context.Process(target=_fetch_and_say, args=(url, barrier, found)) for _ in range(3)]
    try:
        for process in processes:
            process.start()
        results = {found.get(timeout=60) for _ in processes}
    finally:
        for process in processes:
            process.join(60)
            process.kill()
    assert len(results) == 1
    assert len(entries(cache)) == 1


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture
def use(monkeypatch):
    """Makes a server the one of this process's environment."""

    def use(server):
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return server

    return use


@pytest.fixture
def s3_environment(s3, use):
    return use(s3)


def test_a_file_and_a_folder_of_a_real_server(s3_environment, cache):
    s3 = s3_environment
    one = s3.write("folder/c/one.c", b"1")
    s3.write("folder/python/", b"")  # as consoles make folders
    s3.write("folder/python/two.py", b"22")
    assert fetch(one).read_bytes() == b"1"
    path = fetch(s3.url("folder"))
    assert (path / "python" / "two.py").read_bytes() == b"22"
    s3.write("folder/python/two.py", b"33")
    assert (fetch(s3.url("folder")) / "python" / "two.py").read_bytes() == b"33"


def test_no_such_key_and_no_such_bucket_of_a_real_server(s3_environment, cache):
    for url in (s3_environment.url("none.csv"), "s3://nowhere/table.csv"):
        with pytest.raises(DataError, match=f"^{url}: it does not exist"):
            fetch(url)


def test_no_credentials_for_a_real_server(s3_environment, cache, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"x.csv: access is denied: give credentials"):
        fetch(s3_environment.url("x.csv"))


def test_a_server_that_is_gone(cache, use, monkeypatch):
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3_server() as server:
        use(server)
        path = fetch(server.write("table.csv", b"1,2\n"))
    with pytest.raises(DataError, match=r"other.csv: nobody answers there") as caught:
        fetch(server.url("other.csv"))
    assert not isinstance(caught.value, NotNowError)
    assert fetch(server.url("table.csv")) == path  # what this host has serves
