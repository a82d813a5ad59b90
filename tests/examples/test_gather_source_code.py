"""The script that gathers source files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "gather_source_code.py"


@pytest.fixture
def script(tmp_path):
    """The script, on a machine that has files of two languages in tmp_path/machine."""
    specification = importlib.util.spec_from_file_location("gather_source_code", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    machine = tmp_path / "machine"
    for language in ("a", "b"):
        (machine / language).mkdir(parents=True)
        for number in range(6):
            (machine / language / f"{number}.txt").write_text(f"{language} {number}\n" * 200)

    def language(name):
        return (
            lambda: module.below(machine / name, suffix=".txt"),
            lambda content: b"refused" not in content,
            str(machine / name),
            f"install {name}",
        )

    module.LANGUAGES = {name: language(name) for name in ("a", "b")}
    return module


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_bounded_unique_text_and_no_links(script, tmp_path):
    machine = tmp_path / "machine" / "a"
    (machine / "7.txt").write_text((machine / "0.txt").read_text())
    (machine / "8.txt").write_text("short")
    (machine / "9.txt").write_text("long" * 100_000)
    (machine / "binary.txt").write_bytes(b"\0" * 1000)
    (machine / "latin.txt").write_bytes(b"\xe9" * 1000)
    (machine / "refused.txt").write_text("refused" * 100)
    (machine / "link.txt").symlink_to(tmp_path / "machine" / "b" / "0.txt")
    script.gather(tmp_path / "out", 100, 2)
    found = files_of(tmp_path / "out")
    assert sum(name.startswith("a/") for name in found) == 6
    assert len(found) == 13


def test_the_same_machine_gives_the_same_files_again(script, tmp_path, capsys):
    script.gather(tmp_path / "out", 4, 2)
    first = files_of(tmp_path / "out")
    assert len(first) == 9
    assert "a          4 of 6 files" in capsys.readouterr().out
    script.gather(tmp_path / "out", 4, 2)
    assert files_of(tmp_path / "out") == first
    script.gather(tmp_path / "out", 2, 2)
    assert len(files_of(tmp_path / "out")) == 5, "those of the earlier run are gone"


def test_a_language_with_too_few_files_says_what_helps(script, tmp_path):
    with pytest.raises(SystemExit, match=r"b: 6 files in .*/b, and 7 are needed: install b"):
        (tmp_path / "machine" / "a" / "x.txt").write_text("x" * 1000)
        script.gather(tmp_path / "out", 10, 7)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mine.txt", "a/mine.txt"])
def test_a_folder_with_files_of_someone_else_is_not_touched(script, tmp_path, name):
    out = tmp_path / "out"
    script.gather(out, 4, 2)
    (out / name).write_text("mine")
    before = files_of(out)
    with pytest.raises(SystemExit, match=name):
        script.gather(out, 2, 2)
    assert files_of(out) == before


def test_a_manifest_cannot_name_what_is_elsewhere(script, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gathered.json").write_text(json.dumps(["../mine.txt"]))
    script.gather(tmp_path / "out", 4, 2)
    assert (tmp_path / "mine.txt").exists()


def test_files_are_taken_at_even_distances(script):
    assert script.spread(list(range(10)), 5) == [0, 2, 4, 6, 8]


def test_headers_of_c_plus_plus_and_scripts_are_known_by_their_text(script):
    assert script.CPP.search(b"int a;\nnamespace x {\n")
    assert script.CPP.search(b"  template <class T>\n")
    assert not script.CPP.search(b'extern "C" {\nint class_of(int a);\n')
    for shebang in (b"#!/bin/sh\n", b"#! /usr/bin/env bash\n", b"#!/bin/bash -e\n", b"#!/usr/bin/dash"):
        assert script.SHELL.match(shebang)
    assert not script.SHELL.match(b"#!/usr/bin/perl\n")
    assert not script.SHELL.match(b"#!/bin/shellcheck\n")


def test_the_script_needs_the_standard_library_only():
    imported = {
        line.split()[1].split(".")[0]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported <= sys.stdlib_module_names
