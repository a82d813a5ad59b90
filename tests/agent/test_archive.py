"""Archives that must be refused whole, and those that must not."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import archive as unpacking
from agent.archive import ArchiveError, ArchiveLimits, UnpackingStoppedError, unpack
from agent.leases import NotEnoughError
from tests.fakes.archives import archive, digest_of, member, packed

LIMITS = ArchiveLimits(packed=1 << 30, unpacked=100_000, members=20)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder / "unpacked"


def take(
    data: bytes,
    place: Path,
    limits: ArchiveLimits = LIMITS,
    digest: str = "",
    stopped: threading.Event | None = None,
) -> None:
    file = place.parent.parent / "archive"
    file.write_bytes(data)
    unpack(file, digest or digest_of(data), place, limits, stopped or threading.Event())


def files(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): p.read_text() for p in place.rglob("*") if p.is_file()}


def test_files_and_folders_are_unpacked(place: Path) -> None:
    take(archive({"mine.py": "x", "a/b/c.py": "y", "Mine.py": "z"}, folders=["a", "empty"]), place)
    assert files(place) == {"mine.py": "x", "a/b/c.py": "y", "Mine.py": "z"}
    assert (place / "empty").is_dir()


def test_long_and_strange_names_are_unpacked(place: Path) -> None:
    names = ["/".join(["n" * 200] * 5), "ü ö.py", "new\nline", b"\xff\xfe".decode(errors="surrogateescape")]
    take(archive(dict.fromkeys(names, "x")), place)
    assert sorted(files(place)) == sorted(names)


@pytest.mark.parametrize(("mode", "expected"), [(0o644, 0o644), (0o755, 0o755), (0o4777, 0o755), (0, 0o644)])
def test_of_a_mode_only_whether_it_can_be_run_counts(place: Path, mode: int, expected: int) -> None:
    before = os.umask(0o022)
    try:
        take(packed(member("x", b"", mode=mode)), place)
    finally:
        os.umask(before)
    assert (place / "x").stat().st_mode & 0o7777 == expected


def sparse() -> bytes:
    """An old GNU sparse file that says to be 8 GiB of nothing."""
    info = tarfile.TarInfo("hole")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"\x80" + (8 << 30).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(1024))


def pax_sparse() -> bytes:
    info = tarfile.TarInfo("hole")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(8 << 30)}
    content = b"1\n0\n0\n".ljust(512, b"\0")
    info.size = len(content)
    return packed((info, content))


def endless_sparse_map() -> bytes:
    """A sparse file whose map has a thousand million entries."""
    info = tarfile.TarInfo("hole")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    content = b"1000000000\n" + b"0\n" * (4 << 20)
    info.size = len(content)
    return packed((info, content))


def header_bomb(kind: bytes) -> bytes:
    """A long name, or pax header, of 8 MiB."""
    return packed(member("long", b"x" * (8 << 20), kind), member("x", b"x"))


def many_headers() -> bytes:
    """A thousand pax headers, one for the other."""
    header = b"18 comment=xxxxxxx\n"[:18]
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(header)
    block = info.tobuf(tarfile.USTAR_FORMAT) + header.ljust(512, b"\0")
    return gzip.compress(block * 900 + tarfile.TarInfo("x").tobuf() + bytes(1024))


def damaged() -> bytes:
    """Something behind the first member that is no header."""
    plain = bytearray(gzip.decompress(archive({"a": "x", "b": "y"})))
    plain[1024 + 100] ^= 0xFF
    return gzip.compress(bytes(plain))


def cut(size: int) -> bytes:
    return gzip.compress(gzip.decompress(archive({"a": "x" * 5000}))[:size])


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (lambda: packed(member("../x")), "leads out"),
    "up inside": (lambda: packed(member("a/../../x")), "leads out"),
    "up at the end": (lambda: packed(member("a/..", kind=tarfile.DIRTYPE)), "leads out"),
    "absolute": (lambda: packed(member("/etc/x")), "absolute"),
    "dot": (lambda: packed(member("./x")), "without '.'"),
    "the folder": (lambda: packed(member(".", kind=tarfile.DIRTYPE)), "without '.'"),
    "no name": (lambda: packed(member("")), "no name"),
    "link": (lambda: packed(member("x", kind=tarfile.SYMTYPE, link="/etc/passwd")), "is a link"),
    "link inside": (lambda: packed(member("a"), member("x", kind=tarfile.SYMTYPE, link="a")), "is a link"),
    "hard link": (lambda: packed(member("a"), member("x", kind=tarfile.LNKTYPE, link="a")), "is a link"),
    "through a link": (
        lambda: packed(member("d", kind=tarfile.SYMTYPE, link="/tmp"), member("d/x")),
        "is a link",
    ),
    "device": (lambda: packed(member("x", kind=tarfile.CHRTYPE)), "neither"),
    "block device": (lambda: packed(member("x", kind=tarfile.BLKTYPE)), "neither"),
    "FIFO": (lambda: packed(member("x", kind=tarfile.FIFOTYPE)), "neither"),
    "contiguous": (lambda: packed(member("x", kind=tarfile.CONTTYPE)), "neither"),
    "unknown": (lambda: packed(member("x", kind=b"Z")), "neither"),
    "sparse": (sparse, "neither|behind the end|damaged|too large"),
    "pax sparse": (pax_sparse, "neither"),
    "endless map": (endless_sparse_map, "headers"),
    "twice": (lambda: packed(member("x", b"1"), member("x", b"2")), "twice"),
    "file and folder": (lambda: packed(member("x", b"1"), member("x/y", b"2")), "is a file, and a folder"),
    "folder and file": (lambda: packed(member("x/y", b"1"), member("x", b"2")), "is a file, and a folder"),
    "long name": (lambda: packed(member("/".join(["n" * 200] * 11))), "longer than"),
    "long part": (lambda: packed(member("n" * 256)), "longer than"),
    "deep": (lambda: packed(member("/".join("d" * 201))), "nested more than 200"),
    "long name bomb": (lambda: header_bomb(tarfile.GNUTYPE_LONGNAME), "headers"),
    "pax bomb": (lambda: header_bomb(tarfile.XHDTYPE), "headers"),
    "many headers": (many_headers, "headers|damaged"),
    "damaged": (damaged, "damaged"),
    "cut in a header": (lambda: cut(100), "tar archive"),
    "cut in a file": (lambda: cut(3000), "behind the end"),
    "empty": (lambda: gzip.compress(b""), "tar archive"),
    "not tar": (lambda: gzip.compress(b"x" * 5000), "tar archive"),
    "not gzip": (lambda: b"x" * 5000, "gzip"),
    "cut gzip": (lambda: archive({"a": "x"})[:-5], "gzip"),
    "damaged gzip": (lambda: archive({"a": "x"})[:-8] + bytes(8), "gzip"),
    "nothing": (lambda: b"", "tar archive|gzip"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_with_its_cause_and_leaves_nothing(place: Path, name: str) -> None:
    make, cause = BAD[name]
    limits = ArchiveLimits(1 << 30, 32 << 20, 20)
    with pytest.raises(ArchiveError, match=cause):
        take(make(), place, limits)
    assert list(place.parent.iterdir()) == []


def test_what_came_must_be_what_was_announced(place: Path) -> None:
    with pytest.raises(ArchiveError, match="SHA-256"):
        take(archive({"a": "x"}), place, digest="0" * 64)
    assert list(place.parent.iterdir()) == []


def zeros(size: int) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return packed.getvalue()


def test_a_bomb_is_refused_once_it_is_over_the_limit(place: Path) -> None:
    bomb = zeros(200 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(NotEnoughError, match="unpacks to more than 100000 bytes") as refused:
            take(bomb, place)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.resource == "BUNDLE"
    assert peak < 20 << 20
    assert list(place.parent.iterdir()) == []


def test_too_many_members_are_refused(place: Path) -> None:
    with pytest.raises(NotEnoughError, match="more than 20 members"):
        take(archive({f"{n}.py": "" for n in range(21)}), place)
    assert list(place.parent.iterdir()) == []


def test_a_full_disk_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unpacking, "_make", full)
    with pytest.raises(NotEnoughError, match="No space left") as refused:
        take(archive({"a": "x"}), place)
    assert refused.value.resource == "DISK"
    assert list(place.parent.iterdir()) == []


def test_no_room_is_known_before_it_is_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 1, 1, 1, 1, 1, 1, 1, 255)))
    with pytest.raises(NotEnoughError, match="are free"):
        take(archive({"a": "x"}), place)


def test_unpacking_that_is_stopped_leaves_nothing(place: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(UnpackingStoppedError):
        take(archive({"a": "x"}), place, stopped=stopped)
    assert list(place.parent.iterdir()) == []


def test_unpacking_that_is_stopped_in_its_last_file_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gave up has removed the folder by then; it must not come back with the file."""
    stopped = threading.Event()
    make = vars(unpacking)["_make"]

    def made_again(member: tarfile.TarInfo, plain: object, path: Path) -> None:
        stopped.set()
        place.rmdir()
        make(member, plain, path)

    monkeypatch.setattr(unpacking, "_make", made_again)
    with pytest.raises(UnpackingStoppedError):
        take(archive({"a": "x"}), place, stopped=stopped)
    assert not place.exists()


def test_a_python_without_filters_refuses_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(ArchiveError, match="leads out"):
        take(packed(member("../x")), place)
