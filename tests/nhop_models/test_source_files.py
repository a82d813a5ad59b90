"""Folders of source code: what is read, and how it is split."""

from __future__ import annotations

import os

import pytest

from nhop_models import DataError
from nhop_models.source_files import MOST_BYTES, read_folder, split
from tests.nhop_models.languages import make_languages


@pytest.fixture
def folder(tmp_path):
    return make_languages(tmp_path / "code", files=12)


def test_files_come_in_the_order_of_their_paths(folder):
    (folder / "braces" / "deep").mkdir()
    (folder / "braces" / "000.txt").rename(folder / "braces" / "deep" / "x.txt")
    files, languages, left_out = read_folder(str(folder))
    assert languages == ("braces", "colons")
    assert [file.path for file in files[:2]] == ["braces/001.txt", "braces/002.txt"]
    assert "braces/deep/x.txt" in [file.path for file in files]
    assert [file.language for file in files] == [0] * 12 + [1] * 12
    assert not left_out


def test_what_is_no_source_file_is_left_out_and_counted(folder, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text("if a_1: b_2 = 3\n" * 40)
    braces = folder / "braces"
    (braces / "link").symlink_to(outside)
    (braces / "folder").symlink_to(tmp_path)
    (braces / "binary").write_bytes(b"if (a) { }\n" * 40 + b"\0")
    (braces / "latin").write_bytes(b"if (\xe9) { }\n" * 40)
    (braces / "short").write_text("if (a) { }")
    (braces / "copy").write_text((braces / "000.txt").read_text())
    (braces / "renamed").write_text((braces / "000.txt").read_text().replace("_", "x"))
    (braces / ".hidden").write_text("if (a) { }\n" * 40)
    os.mkfifo(braces / "fifo")
    (folder / "loose.txt").write_text("of no language")
    files, _, left_out = read_folder(str(folder))
    assert len(files) == 24
    assert left_out == {"links": 2, "not UTF-8 text": 2, "too short": 1, "copies of others": 2, "no files": 1}


def test_a_character_may_be_cut_at_the_end_of_what_is_read(folder):
    (folder / "braces" / "long").write_text("if (a) { x = 1; }\n" + "é" * MOST_BYTES)
    (folder / "braces" / "longer").write_text("if (a) { y = 1; z; }\n" * 9 + "x" + "é" * MOST_BYTES)
    assert "not UTF-8 text" not in read_folder(str(folder))[2]


@pytest.mark.parametrize(
    ("remove", "words"),
    [("colons", "fewer than two sub-folders"), ("files", "no usable file in braces, colons")],
)
def test_a_folder_without_two_languages(folder, remove, words):
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and remove in ("files", path.parent.name):
            path.unlink()
        elif path.name == remove:
            path.rmdir()
    with pytest.raises(DataError, match=words) as caught:
        read_folder(str(folder))
    assert str(folder) in str(caught.value)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_folder(str(tmp_path / "none"))


def test_a_fifth_of_each_language_is_held_out(folder):
    files, languages, _ = read_folder(str(folder))
    train, test = split(files, languages, seed=1)
    assert sorted(file.path for file in train + test) == [file.path for file in files]
    assert [sum(file.language == language for file in test) for language in (0, 1)] == [2, 2]
    assert split(files, languages, seed=1) == (train, test)
    assert split(files, languages, seed=2) != (train, test)


def test_files_that_are_nearly_the_same_stand_on_one_side(folder):
    original = (folder / "braces" / "000.txt").read_text()
    for number in range(6):
        (folder / "braces" / f"near{number}").write_text(original + "\nextra = 5;" * (number + 1))
    files, languages, _ = read_folder(str(folder))
    for seed in range(8):
        for side in split(files, languages, seed=seed):
            relatives = [file.path for file in side if "near" in file.path or "braces/000" in file.path]
            assert len(relatives) in (0, 7)


def test_a_language_that_cannot_be_split(folder):
    for number in range(1, 12):
        (folder / "braces" / f"{number:03d}.txt").unlink()
    files, languages, _ = read_folder(str(folder))
    with pytest.raises(DataError, match="braces"):
        split(files, languages, seed=1)
